"""Data sets with labels of whole images, and series without labels."""

from __future__ import annotations

import dataclasses

import numpy as np

from input_pipeline.catalog.entry import CustomReader, Entry
from input_pipeline.layouts.bigearthnet import BigEarthNet
from input_pipeline.layouts.cubes import So2Sat, so2sat_optical, so2sat_radar
from input_pipeline.layouts.files import Files
from input_pipeline.layouts.prepared import Tfds
from input_pipeline.layouts.rasters import Raster, ordered
from input_pipeline.layouts.splits import Fractions, Lists
from input_pipeline.schema import Image
from ringmoe_jax import geo
from ringmoe_jax import sensors as sensor_table

EUROSAT_BANDS = tuple("B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 B12 B8A".split())  # order in the files
EUROSAT = tuple(
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake".split()
)
RESISC45 = tuple(
    """airplane airport baseball_diamond basketball_court beach bridge chaparral church circular_farmland cloud
    commercial_area dense_residential desert forest freeway golf_course ground_track_field harbor industrial_area
    intersection island lake meadow medium_residential mobile_home_park mountain overpass palace parking_lot railway
    railway_station rectangular_farmland river roundabout runway sea_ice ship snowberg sparse_residential stadium
    storage_tank tennis_court terrace thermal_power_station wetland""".split()
)
AID = tuple(
    """Airport BareLand BaseballField Beach Bridge Center Church Commercial DenseResidential Desert Farmland Forest
    Industrial Meadow MediumResidential Mountain Park Parking Playground Pond Port RailwayStation Resort River School
    SparseResidential Square Stadium StorageTanks Viaduct""".split()
)
UC_MERCED = tuple(
    """agricultural airplane baseballdiamond beach buildings chaparral denseresidential forest freeway golfcourse harbor
    intersection mediumresidential mobilehomepark overpass parkinglot river runway sparseresidential storagetanks
    tenniscourt""".split()
)
LOCAL_CLIMATE_ZONES = (
    *("Compact high-rise", "Compact mid-rise", "Compact low-rise", "Open high-rise", "Open mid-rise", "Open low-rise"),
    *("Lightweight low-rise", "Large low-rise", "Sparsely built", "Heavy industry", "Dense trees", "Scattered trees"),
    *("Bush or scrub", "Low plants", "Bare rock or paved", "Bare soil or sand", "Water"),
)
BIGEARTHNET_19 = (
    *("Urban fabric", "Industrial or commercial units", "Arable land", "Permanent crops", "Pastures"),
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    *("Agro-forestry areas", "Broad-leaved forest", "Coniferous forest", "Mixed forest"),
    *("Natural grassland and sparsely vegetated areas", "Moors, heathland and sclerophyllous vegetation"),
    *("Transitional woodland, shrub", "Beaches, dunes, sands", "Inland wetlands", "Coastal wetlands"),
    *("Inland waters", "Marine waters"),
)
CORINE_43 = (
    *("Agro-forestry areas", "Airports", "Annual crops associated with permanent crops", "Bare rock"),
    *("Beaches, dunes, sands", "Broad-leaved forest", "Burnt areas", "Coastal lagoons", "Complex cultivation patterns"),
    *("Coniferous forest", "Construction sites", "Continuous urban fabric", "Discontinuous urban fabric", "Dump sites"),
    *("Estuaries", "Fruit trees and berry plantations", "Green urban areas", "Industrial or commercial units"),
    *("Inland marshes", "Intertidal flats"),
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    *("Mineral extraction sites", "Mixed forest", "Moors and heathland", "Natural grassland"),
    *("Non-irrigated arable land", "Olive groves", "Pastures", "Peatbogs", "Permanently irrigated land", "Port areas"),
    *("Rice fields", "Road and rail networks and associated land", "Salines", "Salt marshes"),
    *("Sclerophyllous vegetation", "Sea and ocean", "Sparsely vegetated areas", "Sport and leisure facilities"),
    *("Transitional woodland/shrub", "Vineyards", "Water bodies", "Water courses"),
)
_ONE_IN_TEN = Fractions(0.1, 0.1, within="class")
_TORCHGEO = "file names, bands, classes and splits as torchgeo reads them"


def _files(name: str) -> dict[str, str]:
    """Names of the lists that torchgeo distributes."""
    return {s: f"{name}-{part}.txt" for s, part in (("train", "train"), ("validation", "val"), ("test", "test"))}


def _lists(name: str, ending: str) -> Lists:
    """Lists of Neumann et al. 2019, as torchgeo distributes them, where they lie beside the images."""
    return Lists(_files(name), f"{{id}}.{ending}", "Neumann et al. 2019 (arXiv 1911.06721)", _ONE_IN_TEN)


_SPATIAL = Lists(_files("eurosat-spatial"), "{id}.jpg", "apart in space, as torchgeo distributes it")


_CLASSIFICATION = (
    Entry(
        name="eurosat_rgb",
        title="EuroSAT: 27,000 Sentinel-2 chips of 640 m in Europe, RGB as 8-bit JPEG",
        task="classification",
        layout=Files((Raster("rgb", ("{class}/{id}.jpg",), 10.0),), _lists("eurosat", "jpg")),
        classes=EUROSAT,
        tile=64,
        licence="MIT",
        source="https://github.com/phelber/EuroSAT",
        citation="Helber et al. 2019, EuroSAT",
        evidence=f"{_TORCHGEO}; tried on all 27,000 tiles with the spatial split",
        note="the source is the archive's zip or its folder, with the lists in it or beside it",
        divisions={"spatial": _SPATIAL},
    ),
    Entry(
        name="eurosat",
        title="EuroSAT: 27,000 Sentinel-2 chips of 640 m in Europe, all 13 bands of L1C",
        task="classification",
        layout=Files((Raster("s2_13", ("{class}/{id}.tif",), 10.0, EUROSAT_BANDS),), _lists("eurosat", "jpg")),
        classes=EUROSAT,
        tile=64,
        licence="MIT",
        source="https://github.com/phelber/EuroSAT",
        citation="Helber et al. 2019, EuroSAT",
        evidence=f"{_TORCHGEO}; bands checked against three real tiles",
        note="the files have B8A last, after B12; the lists lie in the source or beside its zip, and say .jpg",
        divisions={"spatial": _SPATIAL},
    ),
    Entry(
        name="resisc45",
        title="NWPU-RESISC45: 31,500 scenes from Google Earth",
        task="classification",
        layout=Files((Raster("rgb", ("{class}/{id}.jpg",), 1.0),), _lists("resisc45", "jpg")),
        classes=RESISC45,
        tile=256,
        licence="not stated by the authors; imagery (c) Google",
        source="https://doi.org/10.1109/JPROC.2017.2675998",
        citation="Cheng et al. 2017, Remote Sensing Image Scene Classification: Benchmark and State of the Art",
        evidence=_TORCHGEO,
        note="0.2 to 30 m a pixel, stored as 1 m; the authors publish random 10 % and 20 % for training, no lists",
    ),
    Entry(
        name="aid",
        title="AID: 10,000 scenes from Google Earth",
        task="classification",
        layout=Files((Raster("rgb", ("{class}/{id}.jpg",), 1.0),), Fractions(0.1, 0.5, within="class")),
        classes=AID,
        tile=600,
        licence="not stated by the authors; imagery (c) Google",
        source="https://captain-whu.github.io/AID/",
        citation="Xia et al. 2017, AID: A Benchmark Data Set for Performance Evaluation of Aerial Scene Classification",
        evidence="from memory",
        note="0.5 to 8 m a pixel, stored as 1 m; the authors publish random 20 % and 50 % for training, no lists",
    ),
    Entry(
        name="uc_merced",
        title="UC Merced Land Use: 2,100 aerial scenes of the USA",
        task="classification",
        layout=Files((Raster("rgb", ("{class}/{id}.tif",), 0.3),), _lists("uc_merced", "tif")),
        classes=UC_MERCED,
        tile=256,
        licence="public domain (USGS)",
        source="http://weegee.vision.ucmerced.edu/datasets/landuse.html",
        citation="Yang and Newsam 2010, Bag-of-visual-words and spatial extensions for land-use classification",
        evidence=_TORCHGEO,
        note="some images are a few pixels smaller or larger than 256: padded, or their middle is taken",
    ),
    Entry(
        name="so2sat",
        title="So2Sat LCZ42, version 2: 400,673 pairs of Sentinel-1 and Sentinel-2 of 320 m in 52 cities",
        task="classification",
        layout=So2Sat({"train": "training.h5", "validation": "validation.h5", "test": "testing.h5"}),
        classes=LOCAL_CLIMATE_ZONES,
        tile=32,
        licence="CC-BY-4.0",
        source="https://doi.org/10.14459/2018mp1483140",
        citation="Zhu et al. 2020, So2Sat LCZ42",
        evidence="file and array names as torchgeo reads them; meaning of the Sentinel-1 channels from memory",
        note="Sentinel-1 is Lee-filtered intensity: more looks and less texture than s1_grd elsewhere",
    ),
    Entry(
        name="bigearthnet",
        title="BigEarthNet v2 (reBEN): 549,488 pairs of Sentinel-2 L2A and Sentinel-1 of 1,200 m in Europe",
        task="multi-label classification",
        layout=BigEarthNet(),
        classes=BIGEARTHNET_19,
        tile=120,
        licence="CDLA-Permissive-1.0",
        source="https://bigearth.net",
        citation="Clasen et al. 2024, reBEN: Refined BigEarthNet Dataset for Remote Sensing Image Analysis",
        evidence=f"{_TORCHGEO}; licence from memory",
        note="19 classes; version 1 has 43, other labels and other splits",
    ),
)


def _picture(example) -> Image:
    return Image(example["image"][None])


def _eurosat_cube(example) -> Image:
    return _ordered("s2_13", example["sentinel2"], EUROSAT_BANDS)


def _bigearthnet_cube(example) -> Image:
    names = sensor_table.get("s2_12").band_names
    return _ordered("s2_12", geo.to_finest({name: example[name] for name in names}, names), names)


def _ordered(name: str, values: np.ndarray, bands: tuple[str, ...]) -> Image:
    pixels, valid = ordered(values, sensor_table.get(name), bands, 1, "TFDS")
    return Image(pixels[None], valid[None])


def _tfds(original: Entry, name: str, layout: Tfds, **changes) -> Entry:
    """The same data set as TFDS prepares it."""
    values = dict(
        note="",
        divisions={},
        evidence="features as TFDS 4.9.10 has them",
        title=f"{original.title}; as TFDS prepares it",
    )
    return dataclasses.replace(original, name=name, layout=layout, **(values | changes))


_BY_NAME = {entry.name: entry for entry in _CLASSIFICATION}
_PREPARED = (
    _tfds(_BY_NAME["eurosat_rgb"], "tfds_eurosat_rgb", Tfds("eurosat/rgb", {"rgb": _picture}, 10.0)),
    _tfds(_BY_NAME["eurosat"], "tfds_eurosat", Tfds("eurosat/all", {"s2_13": _eurosat_cube}, 10.0)),
    _tfds(_BY_NAME["resisc45"], "tfds_resisc45", Tfds("resisc45", {"rgb": _picture}, 1.0)),
    _tfds(_BY_NAME["uc_merced"], "tfds_uc_merced", Tfds("uc_merced", {"rgb": _picture}, 0.3)),
    _tfds(
        _BY_NAME["so2sat"],
        "tfds_so2sat",
        Tfds(
            "so2sat/all",
            {
                "s2_10": lambda example: so2sat_optical(example["sentinel2"], "TFDS"),
                "s1_grd": lambda example: so2sat_radar(example["sentinel1"]),
            },
            10.0,
            key="sample_id",
            parts={"train": "train", "validation": "validation"},
        ),
    ),
    _tfds(
        _BY_NAME["bigearthnet"],
        "tfds_bigearthnet",
        Tfds("bigearthnet/all", {"s2_12": _bigearthnet_cube}, 10.0, label="labels"),
        title="BigEarthNet v1: 590,326 chips of Sentinel-2 L2A in Europe; as TFDS prepares it",
        classes=CORINE_43,
        citation="Sumbul et al. 2019, BigEarthNet",
        note="version 1, 43 classes",
    ),
)
_SERIES = (
    Entry(
        name="treesatai_ts",
        title="TreeSatAI-Time-Series: aerial images, Sentinel-2 and Sentinel-1 series of 60 m of forest",
        task="classification",
        layout=CustomReader(
            "input_pipeline.treesatai",
            ("rgbn", "s2_10", "s1_grd"),
            "as published, lists train_filenames.lst, val_filenames.lst, test_filenames.lst",
            ("sensors", "max_frames"),
        ),
        classes=(),
        tile=300,
        series=True,
        licence="CC-BY-4.0",
        source="https://huggingface.co/datasets/IGNF/TreeSatAI-Time-Series",
        citation="Astruc et al. 2024, OmniSat; Ahlswede et al. 2023, TreeSatAI Benchmark Archive",
        evidence="tried on a real place, see input_pipeline/treesatai.py",
    ),
    Entry(
        name="ssl4eo_s12",
        title="SSL4EO-S12: Sentinel-1 and Sentinel-2 of 2,640 m in several seasons",
        task="pre-training",
        layout=CustomReader(
            "input_pipeline.ssl4eo",
            ("s1_grd", "s2_12", "s2_13"),
            "every fifth place to validation: our choice",
            ("sensors", "tile", "stride", "max_frames"),
        ),
        classes=(),
        tile=132,
        series=True,
        licence="CC-BY-4.0",
        source="https://github.com/zhu-xlab/SSL4EO-S12",
        citation="Wang et al. 2023, SSL4EO-S12",
        evidence="tried on a real place, see input_pipeline/ssl4eo.py",
    ),
)

TABLE = (*_CLASSIFICATION, *_PREPARED, *_SERIES)
