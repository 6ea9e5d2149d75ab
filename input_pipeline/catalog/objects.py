"""Data sets with boxes and tracks."""

from __future__ import annotations

from input_pipeline.catalog.entry import Entry
from input_pipeline.layouts import annotations
from input_pipeline.layouts.objects import Boxes, Coco, Tracks
from input_pipeline.layouts.rasters import Raster
from input_pipeline.layouts.splits import Folders, Lists

DIOR = tuple(
    """airplane airport baseballfield basketballcourt bridge chimney dam Expressway-Service-area
    Expressway-toll-station golffield groundtrackfield harbor overpass ship stadium storagetank tenniscourt trainstation
    vehicle windmill""".split()
)
FAIR1M = (
    *("Passenger Ship", "Motorboat", "Fishing Boat", "Tugboat", "other-ship", "Engineering Ship", "Liquid Cargo Ship"),
    *("Dry Cargo Ship", "Warship", "Small Car", "Bus", "Cargo Truck", "Dump Truck", "other-vehicle", "Van", "Trailer"),
    *("Tractor", "Excavator", "Truck Tractor", "Boeing737", "Boeing747", "Boeing777", "Boeing787", "ARJ21", "C919"),
    *("A220", "A321", "A330", "A350", "other-airplane", "Baseball Field", "Basketball Court", "Football Field"),
    *("Tennis Court", "Roundabout", "Intersection", "Bridge"),
)
_SHORT = dict(train="train", validation="val", test="test")  # what most files call the splits
_DIOR_SPLITS = Lists({split: f"ImageSets/Main/{name}.txt" for split, name in _SHORT.items()})
_DIOR_IMAGES = Raster("rgb", ("JPEGImages-{part}/{id}.jpg",), 1.0)

TABLE = (
    Entry(
        name="dior",
        title="DIOR: 23,463 images from Google Earth, horizontal boxes",
        task="detection",
        layout=Boxes(_DIOR_IMAGES, "Annotations/Horizontal Bounding Boxes/{id}.xml", annotations.voc, _DIOR_SPLITS),
        classes=DIOR,
        tile=800,
        licence="not stated by the authors; imagery (c) Google",
        source="https://gcheng-nwpu.github.io/#Datasets",
        citation="Li et al. 2020, Object Detection in Optical Remote Sensing Images: A Survey and a New Benchmark",
        evidence="image folders as public readers have them; names of lists and classes from memory",
        note="0.5 to 30 m a pixel, stored as 1 m",
    ),
    Entry(
        name="dior_r",
        title="DIOR-R: the images of DIOR, oriented boxes",
        task="oriented detection",
        layout=Boxes(_DIOR_IMAGES, "Annotations/Oriented Bounding Boxes/{id}.xml", annotations.dior_r, _DIOR_SPLITS),
        classes=DIOR,
        tile=800,
        licence="not stated by the authors; imagery (c) Google",
        source="https://gcheng-nwpu.github.io/#Datasets",
        citation="Cheng et al. 2022, Anchor-Free Oriented Proposal Generator for Object Detection",
        evidence="folders as public readers have them; names of lists and classes from memory",
        note="shares its images with DIOR",
    ),
    Entry(
        name="hrsc2016",
        title="HRSC2016: 1,061 images of harbours and sea from Google Earth, oriented boxes of ships",
        task="oriented detection",
        layout=Boxes(
            Raster("rgb", ("FullDataSet/AllImages/{id}.bmp",), 1.0),
            "FullDataSet/Annotations/{id}.xml",
            lambda paths, classes: annotations.hrsc2016(paths),
            Lists({split: f"ImageSets/{name}.txt" for split, name in _SHORT.items()}),
        ),
        classes=("ship",),
        tile=800,
        stride=600,
        licence="academic use only",
        source="https://doi.org/10.5220/0006120603240331",
        citation="Liu et al. 2017, A High Resolution Optical Satellite Image Dataset for Ship Recognition",
        evidence="folders and lists as mmrotate reads them; licence from memory",
        note="0.4 to 2 m a pixel, stored as 1 m; one class (task L1)",
    ),
    Entry(
        name="hrsid",
        title="HRSID: 5,604 SAR images (Sentinel-1, TerraSAR-X, TanDEM-X), horizontal boxes of ships",
        task="detection",
        layout=Coco(
            Raster("sar_8bit", ("JPEGImages/{id}.jpg",), 3.0),
            {"train": "annotations/train2017.json", "test": "annotations/test2017.json"},
        ),
        classes=("ship",),
        tile=800,
        licence="not checked",
        source="https://github.com/chaozhong2010/HRSID",
        citation="Wei et al. 2020, HRSID: A High-Resolution SAR Images Dataset for Ship Detection",
        evidence="folders and files as public readers have them",
        note="8-bit pictures of SAR amplitude, calibration unknown; 0.5 to 3 m a pixel, stored as 3 m",
    ),
    Entry(
        name="fair1m",
        title="FAIR1M v2.0: GaoFen and Google Earth images, oriented boxes of 37 kinds of objects",
        task="oriented detection",
        layout=Boxes(
            Raster("rgb", ("{split}/images/{id}.tif",), 0.8),
            "{split}/labelXml/{id}.xml",
            annotations.fair1m,
            Folders({"train": ("train/part1", "train/part2"), "validation": "validation"}),
        ),
        classes=FAIR1M,
        tile=1024,
        stride=824,
        licence="CC-BY-NC-SA-4.0",
        source="https://www.gaofen-challenge.com/benchmark",
        citation="Sun et al. 2022, FAIR1M",
        evidence="folders and classes as torchgeo reads them; licence from memory",
        note="labels of the test split are not public",
    ),
    Entry(
        name="air_mot",
        title="AIR-MOT: Jilin-1 satellite videos with tracks of planes and ships",
        task="tracking",
        layout=Tracks(
            Raster("rgb", ("{split}/{id}/img1/{frame}.jpg",), 1.0),
            "{split}/{id}/gt/gt.txt",
            Folders({"train": "train", "test": "test"}),
            window=8,
        ),
        classes=("plane", "ship"),
        tile=512,
        series=True,
        licence="not stated by the authors",
        source="https://github.com/HeQibin/TGraM",
        citation="He et al. 2022, Multi-Object Tracking in Satellite Videos with Graph-Based Multi-Task Modeling",
        evidence="not checked: the layout is MOTChallenge's, order of classes and splits are from memory",
        note="frames have no date; videos are released in parts",
    ),
)
