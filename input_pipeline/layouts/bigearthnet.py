"""BigEarthNet v2 (reBEN): one folder a patch and sensor, one file a band; labels and splits in `metadata.parquet`."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow.parquet

from input_pipeline.layouts import Opened, Request
from input_pipeline.layouts.files import index
from input_pipeline.layouts.rasters import Raster
from input_pipeline.layouts.tiles import Scene
from input_pipeline.places import Places
from input_pipeline.schema import MULTILABEL, LabelInfo
from ringmoe_jax import geo
from ringmoe_jax.errors import DataError

LABEL = "labels"
_name = operator.itemgetter("patch_id")
_COLUMNS = ("patch_id", "labels", "split", "s1_name")
_S2, _S1 = "BigEarthNet-S2/{s2_tile}/{s2}/{s2}_{band}.tif", "BigEarthNet-S1/{s1_product}/{s1}/{s1}_{band}.tif"


def _sensed(name: str):
    """Function that takes the day from the product's name in one field."""
    return lambda source, fields: [int(geo.acquisition(fields[name]).astype("datetime64[D]").astype(np.int64))]


@dataclasses.dataclass(frozen=True)
class BigEarthNet:
    """Sentinel-2 at 120, 60 and 20 px brought to 120 px by repeating pixels, and Sentinel-1 in dB, of one patch.

    Attributes:
        splits: the column `split` of the table.
    """

    splits: tuple[str, ...] = ("train", "validation", "test")
    rasters: tuple[Raster, ...] = (
        Raster("s2_12", (_S2,), 10.0, dates=_sensed("s2")),
        Raster("s1_grd", (_S1,), 10.0, dates=_sensed("s1")),
    )

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors that the archive holds."""
        return tuple(raster.sensor for raster in self.rasters)

    @property
    def rule(self) -> str:
        """How splits are made."""
        return "as published, the column split of metadata.parquet"

    def open(self, request: Request) -> Opened:
        """Reads the table, see `Opened`.

        Raises:
            DataError: the table is not there or lacks a column or split.
        """
        path = request.source / "metadata.parquet"
        try:
            rows = pyarrow.parquet.read_table(path, columns=list(_COLUMNS)).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path} cannot be read ({error}): wanted columns {', '.join(_COLUMNS)}") from error
        if not rows or set(rows[0]) != set(_COLUMNS):
            raise DataError(f"{path} has {len(rows)} rows of {sorted(rows[0]) if rows else []}: wanted {_COLUMNS}")
        places = {split: [row for row in rows if row["split"] == split] for split in self.splits}
        rasters = [raster for raster in self.rasters if raster.sensor in request.sensors]
        return Opened(
            {
                split: Places(found, functools.partial(_scenes, request, rasters), request.report, _name)
                for split, found in places.items()
            },
            {LABEL: LabelInfo(MULTILABEL, request.classes, "CORINE Land Cover 2018 in 19 classes, present or not")},
            {raster.sensor: 1 for raster in rasters},
            {raster.sensor: raster.gsd for raster in rasters},
            self.rule,
        )


def _scenes(request: Request, rasters, rows: Sequence[Mapping]) -> Iterator[Scene]:
    for row in rows:
        s2, s1 = row["patch_id"], row["s1_name"]
        # Patches lie in a folder of their Sentinel-2 tile, S2A_..._T33UUP, or of their Sentinel-1 product.
        fields = {"s2": s2, "s2_tile": s2.rsplit("_", 2)[0], "s1": s1, "s1_product": s1.rsplit("_", 3)[0]}
        read = {raster.sensor: raster.read(request.source, fields, request.report) for raster in rasters}
        labels = np.zeros(len(request.classes), np.float32)
        labels[[index(name, request.classes, s2) for name in row["labels"]]] = 1
        images = {name: image for name, (image, _) in read.items()}
        yield Scene(s2, images, {LABEL: labels}, next(iter(read.values()))[1])
