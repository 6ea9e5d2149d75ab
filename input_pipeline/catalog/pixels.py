"""Data sets with labels of pixels: segmentation and change."""

from __future__ import annotations

import re
from pathlib import Path

from input_pipeline.catalog.entry import Entry
from input_pipeline.layouts.cubes import Pastis
from input_pipeline.layouts.files import Files
from input_pipeline.layouts.rasters import Colours, Layers, Mask, Raster, Values
from input_pipeline.layouts.splits import Folders, Fractions, Lists, Named
from ringmoe_jax import files, geo

# Class, colour of iSAID's masks.
ISAID = {
    "background": (0, 0, 0),
    "ship": (0, 0, 63),
    "storage tank": (0, 63, 63),
    "baseball diamond": (0, 63, 0),
    "tennis court": (0, 63, 127),
    "basketball court": (0, 63, 191),
    "ground track field": (0, 63, 255),
    "bridge": (0, 127, 63),
    "large vehicle": (0, 127, 127),
    "small vehicle": (0, 0, 127),
    "helicopter": (0, 0, 191),
    "swimming pool": (0, 0, 255),
    "roundabout": (0, 191, 127),
    "soccer ball field": (0, 127, 191),
    "plane": (0, 127, 255),
    "harbor": (0, 100, 155),
}
ISPRS = {
    "impervious surface": (255, 255, 255),
    "building": (0, 0, 255),
    "low vegetation": (0, 255, 255),
    "tree": (0, 255, 0),
    "car": (255, 255, 0),
    "clutter": (255, 0, 0),
}
PASTIS = (
    *("background", "meadow", "soft winter wheat", "corn", "winter barley", "winter rapeseed", "spring barley"),
    *("sunflower", "grapevine", "beet", "winter triticale", "winter durum wheat", "fruits, vegetables, flowers"),
    *("potatoes", "leguminous fodder", "soybeans", "orchard", "mixed cereal", "sorghum"),
)
_SHORT = dict(train="train", validation="val", test="test")  # what most files call the splits
CHANGE = ("unchanged", "changed")

_ISPRS_SCORING = "the contest's scores, and many published ones, leave out 3 pixels beside borders between classes"
_ISPRS_LICENCE = "for research; ISPRS and the data's owners are to be named"
_TORCHGEO = "file names, bands, classes and splits as torchgeo reads them"


def _areas(prefix: str, **areas: str) -> dict[str, tuple[str, ...]]:
    return {split: tuple(f"{prefix}{area}" for area in names.split()) for split, names in areas.items()}


def _oscd_dates(source: Path, fields) -> list[int]:
    """The two days in dates.txt, lines that end with yyyymmdd."""
    path = source / f"Onera Satellite Change Detection dataset - Images/{fields['id']}/dates.txt"
    text = files.read_text(path, "two lines that end with yyyymmdd")
    return [
        geo.days(f"{year}-{month}-{day}") for year, month, day in re.findall(r"(\d{4})(\d\d)(\d\d)\s*$", text, re.M)
    ]


def _oscd(date: int) -> str:
    return f"Onera Satellite Change Detection dataset - Images/{{id}}/imgs_{date}_rect/{{band}}.tif"


_SEGMENTATION = (
    Entry(
        name="isaid",
        title="iSAID: semantic masks of 15 kinds of objects on the aerial images of DOTA v1.0",
        task="segmentation",
        layout=Files(
            (Raster("rgb", ("{split}/images/{id}.png",), 0.3),),
            Folders({"train": "train", "validation": "val"}),
            Mask("{split}/images/{id}_instance_color_RGB.png", Colours(tuple(ISAID.values()))),
        ),
        classes=tuple(ISAID),
        tile=512,
        licence="academic use only",
        source="https://captain-whu.github.io/iSAID/",
        citation="Waqas Zamir et al. 2019, iSAID",
        evidence="folders as its development kit has them; colours as two public converters have them",
        note="shares its images with DOTA: a model that saw DOTA saw them; GSD varies; test masks are not public",
    ),
    Entry(
        name="potsdam",
        title="ISPRS Potsdam 2D semantic labelling: true orthophotos with near infrared, 5 cm",
        task="segmentation",
        layout=Files(
            (Raster("rgbn", ("4_Ortho_RGBIR/{id}_RGBIR.tif",), 0.05),),
            Named(
                _areas(
                    "top_potsdam_",
                    train="2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_7 6_8 6_9 6_10 6_11 6_12 7_7 "
                    "7_8 7_9 7_10 7_11 7_12",
                    test="2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13",
                ),
                "the contest's",
            ),
            Mask("5_Labels_all/{id}_label.tif", Colours(tuple(ISPRS.values()))),
        ),
        classes=tuple(ISPRS),
        unscored=("clutter",),
        scoring=_ISPRS_SCORING,
        tile=512,
        licence=_ISPRS_LICENCE,
        source="https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-potsdam.aspx",
        citation="Rottensteiner et al. 2012, The ISPRS Benchmark on Urban Object Classification",
        evidence=f"{_TORCHGEO}; folder of the labels is the archive's name",
        note="labels of area 4_12 are said to hold wrong colours: an error names the pixel",
    ),
    Entry(
        name="vaihingen",
        title="ISPRS Vaihingen 2D semantic labelling: true orthophotos, 9 cm",
        task="segmentation",
        layout=Files(
            (Raster("irrg", ("top/{id}.tif",), 0.09),),
            Named(
                _areas(
                    "top_mosaic_09cm_area",
                    train="1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37",
                    test="2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38",
                ),
                "the contest's",
            ),
            Mask("{id}.tif", Colours(tuple(ISPRS.values()))),
        ),
        classes=tuple(ISPRS),
        unscored=("clutter",),
        scoring=_ISPRS_SCORING,
        tile=512,
        licence=_ISPRS_LICENCE,
        source="https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-vaihingen.aspx",
        citation="Rottensteiner et al. 2012, The ISPRS Benchmark on Urban Object Classification",
        evidence=_TORCHGEO,
        note="near infrared, red, green: not RGB",
    ),
    Entry(
        name="loveda",
        title="LoveDA: land cover of urban and rural areas in China from Google Earth, 0.3 m",
        task="segmentation",
        layout=Files(
            (Raster("rgb", ("{split}/{area}/images_png/{id}.png",), 0.3),),
            Folders({"train": "Train", "validation": "Val"}),
            Mask("{split}/{area}/masks_png/{id}.png", Values((1, 2, 3, 4, 5, 6, 7), void=(0,))),
        ),
        classes=("background", "building", "road", "water", "barren", "forest", "agriculture"),
        tile=512,
        licence="CC-BY-NC-SA-4.0",
        source="https://github.com/Junjue-Wang/LoveDA",
        citation="Wang et al. 2021, LoveDA",
        evidence=f"{_TORCHGEO}; licence from memory",
        note="0 in the masks is void, classes begin with 1; test masks are not public",
    ),
    Entry(
        name="dynamicearthnet",
        title="DynamicEarthNet: monthly land cover of 75 places, PlanetFusion images of the first of every month",
        task="segmentation",
        layout=Files(
            (
                Raster(
                    "ms4",
                    ("planet/{folder}/{month}-01.tif",),
                    3.0,
                    dates=lambda source, fields: [geo.days(f"{fields['month']}-01")],
                ),
            ),
            Lists(
                {s: f"dynnet_training_splits/{f}.txt" for s, f in _SHORT.items()},
                "/reprocess-cropped/UTM-24000/{folder} /{mask} {month}",
            ),
            Mask("{mask}", Layers(7)),
        ),
        classes=("impervious surface", "agriculture", "forest", "wetland", "soil", "water"),
        tile=256,
        licence="CC-BY-SA-4.0",
        source="https://mediatum.ub.tum.de/1650201",
        citation="Toker et al. 2022, DynamicEarthNet",
        evidence="layers, bands and lists as pangaea-bench and dynnet read them; licence from memory",
        note="the seventh layer, snow and ice, is void; splits are by place, months of a place stay together",
    ),
    Entry(
        name="whu_opt_sar",
        title="WHU-OPT-SAR: land use of Hubei from GaoFen-1 (RGB and near infrared) and GaoFen-3 (SAR), 5 m",
        task="segmentation",
        layout=Files(
            (Raster("rgbn", ("optical/{id}.tif",), 5.0), Raster("sar_8bit", ("sar/{id}.tif",), 5.0)),
            Lists(
                dict.fromkeys(("train", "test"), "The division of the dataset.txt"),
                "{id}.tif",
                "the authors'",
                Fractions(0.2, 0.2),
            ),
            Mask("lbl/{id}.tif", Values((10, 20, 30, 40, 50, 60, 70), void=(0,))),
        ),
        classes=("farmland", "city", "village", "water", "forest", "road", "others"),
        tile=256,
        licence="not stated by the authors",
        source="https://github.com/AmberHen/WHU-OPT-SAR-dataset",
        citation="Li et al. 2022, MCANet: A joint semantic segmentation framework of optical and SAR images",
        evidence="values and division as the authors' repository has them; folders, band order and 8 bits from memory",
        note="mask values are 10 times the class, 0 is void",
    ),
    Entry(
        name="sen1floods11",
        title="Sen1Floods11: 446 hand-labelled chips of surface water, Sentinel-2 L1C and Sentinel-1 GRD",
        task="segmentation",
        layout=Files(
            tuple(
                Raster(sensor, (f"data/flood_events/HandLabeled/{kind}Hand/{{id}}_{kind}Hand.tif",), 10.0)
                for sensor, kind in (("s2_13", "S2"), ("s1_grd", "S1"))
            ),
            Lists(
                {
                    split: f"splits/flood_handlabeled/flood_{name}_data.csv"
                    for split, name in dict(train="train", validation="valid", test="test", bolivia="bolivia").items()
                },
                "{id}_{layer}Hand.tif,{id}_LabelHand.tif",
            ),
            Mask("data/flood_events/HandLabeled/LabelHand/{id}_LabelHand.tif", Values((0, 1), void=(-1,))),
        ),
        classes=("land", "water"),
        tile=256,
        licence="CC-BY-4.0",
        source="https://github.com/cloudtostreet/Sen1Floods11",
        citation="Bonafilia et al. 2020, Sen1Floods11",
        evidence="folders, bands, values and lists as the authors' documentation has them; licence from memory",
        note="the source is the folder v1.1; Sentinel-2 is top of atmosphere, reflectance x 10,000; -1 is void; the "
        "split bolivia is a region that no other split holds",
    ),
    Entry(
        name="pastis",
        title="PASTIS and PASTIS-R: crops of 2,433 patches of 1,280 m in France, a year of Sentinel-2 (and Sentinel-1)",
        task="segmentation",
        layout=Pastis({"train": (1, 2, 3), "validation": (4,), "test": (5,)}, void=19),
        classes=PASTIS,
        tile=128,
        series=True,
        licence="CC-BY-4.0",
        source="https://github.com/VSainteuf/pastis-benchmark",
        citation="Sainte Fare Garnot and Landrieu 2021, Panoptic Segmentation of Satellite Image Time Series",
        evidence="files, folds and classes as torchgeo reads them; keys of the metadata and licence from memory",
        note="Sentinel-1 (ascending passes) is in PASTIS-R alone: --sensors s2_10 reads PASTIS; the source is the "
        "folder of metadata.geojson",
    ),
)
_CHANGE = (
    Entry(
        name="levir_cd",
        title="LEVIR-CD: changed buildings in 637 pairs from Google Earth, Texas, 0.5 m",
        task="change detection",
        layout=Files(
            (Raster("rgb", ("A/{split}_{id}.png", "B/{split}_{id}.png"), 0.5),),
            Folders(_SHORT),
            Mask("label/{split}_{id}.png", Values((0, 255)), "change", change=True),
        ),
        classes=CHANGE,
        tile=256,
        licence="research only",
        source="https://justchenhao.github.io/LEVIR/",
        citation="Chen and Shi 2020, A Spatial-Temporal Attention-Based Method for Building Change Detection",
        evidence=f"{_TORCHGEO}; tried on six real pairs",
        note="the three archives unpacked into one folder",
    ),
    Entry(
        name="cdd",
        title="CDD: seasonal image pairs from Google Earth with changes of man-made objects, 16,000 crops of 256 px",
        task="change detection",
        layout=Files(
            (Raster("rgb", ("{split}/A/{id}.jpg", "{split}/B/{id}.jpg"), 0.5),),
            Folders(_SHORT),
            Mask("{split}/OUT/{id}.jpg", Values((0, 255), lossy=True), "change", change=True),
        ),
        classes=CHANGE,
        tile=256,
        licence="not stated by the authors; imagery (c) Google",
        source="https://doi.org/10.5194/isprs-archives-XLII-2-565-2018",
        citation="Lebedev et al. 2018, Change Detection in Remote Sensing Images Using Conditional GANs",
        evidence="folders as public readers have them",
        note="the source is the folder Real/subset; masks are JPEG, their nearer value counts; 0.03 to 1 m a pixel, "
        "stored as 0.5 m",
    ),
    Entry(
        name="oscd",
        title="OSCD (Onera): urban changes in 24 pairs of Sentinel-2 L1C",
        task="change detection",
        layout=Files(
            (Raster("s2_13", (_oscd(1), _oscd(2)), 10.0, dates=_oscd_dates),),
            Folders({"train": "Train", "test": "Test"}),
            Mask(
                "Onera Satellite Change Detection dataset - {split} Labels/{id}/cm/cm.png",
                Values((0, 255)),
                "change",
                change=True,
            ),
        ),
        classes=CHANGE,
        tile=96,
        licence="CC-BY-NC-SA-4.0",
        source="https://rcdaudt.github.io/oscd/",
        citation="Caye Daudt et al. 2018, Urban Change Detection for Multispectral Earth Observation",
        evidence=f"{_TORCHGEO}; licence from memory",
        note="the resampled images (imgs_1_rect, imgs_2_rect), all bands at 10 m",
    ),
)
_FLOODS = (
    Entry(
        name="ombria",
        title="OMBRIA: floods in pairs of Sentinel-1 and Sentinel-2 pictures before and after, worldwide, 2017 to 2020",
        task="change detection",
        layout=Files(
            (
                Raster("s2_8bit", ("{split}/S2_before/{id}.png", "{split}/S2_after/{id}.png"), 10.0, void=0),
                Raster("s1_8bit", ("{split}/S1_before/{id}.png", "{split}/S1_after/{id}.png"), 10.0, void=255),
            ),
            Folders({"train": "train", "test": "test"}, validation=0.15),
            Mask("{split}/mask/{id}.png", Values((0, 255)), "flood", change=True, observed=True),
        ),
        classes=("dry", "flooded"),
        tile=256,
        licence="not stated by the authors",
        source="https://github.com/geodrak/OMBRIA",
        citation="Drakonakis et al. 2022, OmbriaNet: Supervised Flood Mapping via Convolutional Neural Networks Using "
        "Multitemporal Sentinel-1 and Sentinel-2 Data Fusion",
        evidence="tried on 240 training and 70 test places with files of one name a place; citation from memory",
        note="8-bit pictures, neither dB nor reflectance; pixels that are black in Sentinel-2 or white in Sentinel-1, "
        "at the border of a pass, count as not observed and unlabelled; bright clouds overflow",
    ),
)


TABLE = (*_SEGMENTATION, *_CHANGE, *_FLOODS)
