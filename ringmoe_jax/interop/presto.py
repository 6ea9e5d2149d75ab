"""Presto's published weights: `default_model.pt`, encoder and decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ringmoe_jax.errors import DataError
from ringmoe_jax.interop.files import Tensors
from ringmoe_jax.interop.mapping import WeightMap, rows
from ringmoe_jax.interop.source import SOURCES, Source, counted
from ringmoe_jax.interop.tables import VIT_BLOCK, transformer
from ringmoe_jax.models.channel_groups import GROUPS
from ringmoe_jax.sensors import Sensor, Statistics

CODES = (0, 1, 2, 3, 4, 5, 8)  # of the published table of groups, those of `GROUPS`; weather and elevation are 6 and 7
LEFT_OUT = {
    "decoder.": "the decoder",
    "encoder.pos_embed": "computed: sines of the date's number",
    "encoder.month_embed": "computed: sines of the month",
    "encoder.eo_patch_embed.ERA5": "weather",
    "encoder.eo_patch_embed.SRTM": "elevation",
    "encoder.dw_embed": "land cover",
}
SCALES = {"dB (sigma0)": (-25.0, 25.0), "reflectance": (0.0, 1.0)}  # published shift and divisor, as mean and deviation
BATCH = 2  # images of a step: every pixel is a sequence of its own


@SOURCES.register("presto")
@dataclasses.dataclass(frozen=True)
class Presto(Source):
    """The published model; channel groups that no image feeds are left out, and the decoder."""

    sensors: tuple[str, ...] = ("s1_grd", "s2_10")
    title: ClassVar[str] = "Presto"
    licence: ClassVar[str] = "MIT"
    citation: ClassVar[str] = "Tseng et al. 2023, Presto (arXiv 2304.14065), github.com/nasaharvest/presto"

    def model(self, tensors: Tensors, path: Path) -> dict[str, Any]:
        """See `Source`; tensors do not tell the number of heads: say `blocks.heads` where it is not 8."""
        if not {"encoder.latlon_embed.weight", "encoder.pos_embed"} <= tensors.keys():
            raise DataError(f"{path} is no model of Presto: its first tensors are {', '.join(list(tensors)[:3])}")
        width, hidden = (len(tensors[f"encoder.{name}.weight"]) for name in ("norm", "blocks.0.mlp.fc1"))
        blocks = dict(width=width, depth=counted(tensors, "encoder.blocks.", ".norm1.weight"), heads=8)
        blocks |= dict(hidden_ratio=hidden // width, drop_path=0.0, exact_gelu=True)
        dates = tensors["encoder.pos_embed"].shape[1]
        return {"name": "presto", "sensors": self.sensors, "dates": dates, "blocks": blocks}

    def prepare(self, tensors: Tensors, model: Mapping[str, Any]) -> Tensors:
        """See `Source`: the codes of the groups that images feed."""
        name = "encoder.channel_embed.weight"
        return tensors | {name: tensors[name][list(CODES)]} if name in tensors else tensors

    def map(self, model: Mapping[str, Any]) -> WeightMap:
        """See `Source`."""
        ends = """
            channel_embed.weight  channels
            latlon_embed          place     linear
            norm                  norm      norm
        """
        embed = [f"eo_patch_embed.{group}  embed/{group}  linear" for group in GROUPS]
        table = rows(ends, "encoder.") + rows("\n".join(embed), "encoder.")
        return WeightMap(table + transformer("encoder.blocks.{block}.", "transformer", names=VIT_BLOCK), LEFT_OUT)

    def statistics(self, sensor: Sensor, path: Path) -> Statistics | None:
        """See `Source`: of dB and of reflectance, the same for all bands."""
        if sensor.unit not in SCALES:
            return None
        mean, std = ((value,) * sensor.channels for value in SCALES[sensor.unit])
        return Statistics(mean, std, f"{self.title}: published normalisation")

    def data(self, path: Path) -> dict[str, Any]:
        """See `Source`."""
        return {"batch_size": BATCH}
