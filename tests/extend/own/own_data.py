"""A data set: how its files lie and what they mean."""

from input_pipeline.catalog import Entry
from input_pipeline.layouts.files import Files
from input_pipeline.layouts.rasters import Mask, Raster, Values
from input_pipeline.layouts.splits import Folders

FIELDS = Entry(
    name="fields",
    title="Fields in aerial images of 0.2 m",
    task="segmentation",
    layout=Files(
        (Raster("rgb", ("{split}/images/{id}.png",), 0.2),),
        Folders({"train": "train", "validation": "held_out"}),
        Mask("{split}/masks/{id}.png", Values((0, 255)), "land_cover"),
    ),
    classes=("other", "field"),
    tile=16,
    licence="ours",
    source="https://example.org/fields",
    citation="our survey of 2025",
    evidence="our own files",
)
