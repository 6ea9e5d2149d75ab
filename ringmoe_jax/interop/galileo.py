"""Galileo's published encoder: `encoder.pt` with `config.json` beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ringmoe_jax.errors import DataError
from ringmoe_jax.interop.files import Tensors
from ringmoe_jax.interop.mapping import WeightMap, rows
from ringmoe_jax.interop.source import SOURCES, Source
from ringmoe_jax.interop.tables import transformer
from ringmoe_jax.models.channel_groups import GROUPS
from ringmoe_jax.sensors import Sensor, Statistics

BLOCK = """
    norm1      attention_norm    norm
    attn.q     attention/query   linear
    attn.k     attention/key     linear
    attn.v     attention/value   linear
    attn.proj  attention/out     linear
    norm2      ffn_norm          norm
    mlp.fc1    ffn/shared/wi     linear
    mlp.fc2    ffn/shared/wo     linear
"""
LEFT_OUT = {
    "pos_embed": "computed: sines of the date's number",
    "month_embed": "computed: sines of the month",
    "space_embed": "elevation and land cover, which no image shows",
    "time_embed": "weather and night lights",
    "static_embed.LS": "population",
    "static_embed.DW_static": "land cover",
    "static_embed.WC_static": "crops",
    "sp_channel_embed": "of the groups above",
    "t_channel_embed": "of the groups above",
}
# Mean and standard deviation of the published training places (normalization.json): dB, and digital numbers.
S1 = {"VV": (-11.728724, 4.887146), "VH": (-18.855582, 5.730270)}
S2 = {
    "B02": (1395.340873, 917.704144),
    "B03": (1338.402692, 913.298842),
    "B04": (1343.098838, 1092.678724),
    "B05": (1543.860798, 1047.220608),
    "B06": (2186.202207, 1048.010161),
    "B07": (2525.093285, 1143.690303),
    "B08": (2410.337719, 1098.979178),
    "B8A": (2750.285465, 1204.472755),
    "B11": (2234.911100, 1145.977406),
    "B12": (1474.531127, 980.242998),
}
KNOWN = S1 | {name: (mean * 1e-4, std * 1e-4) for name, (mean, std) in S2.items()}  # in the units of the sensor table


@SOURCES.register("galileo")
@dataclasses.dataclass(frozen=True)
class Galileo(Source):
    """Nano, Tiny and Base; channel groups that no image feeds are left out."""

    sensors: tuple[str, ...] = ("s1_grd", "s2_10")
    title: ClassVar[str] = "Galileo"
    licence: ClassVar[str] = "MIT"
    citation: ClassVar[str] = "Tseng et al. 2025, Galileo (arXiv 2502.09356), github.com/nasaharvest/galileo"

    def model(self, tensors: Tensors, path: Path) -> dict[str, Any]:
        """See `Source`; the number of heads is in the file beside it.

        Raises:
            DataError: there is no such file, or the tensors are of another model.
        """
        if "s_t_channel_embed" not in tensors:
            raise DataError(f"{path} is no encoder of Galileo: its first tensors are {', '.join(list(tensors)[:3])}")
        beside = path.with_name("config.json")
        try:
            encoder = json.loads(beside.read_text())["model"]["encoder"]
            blocks = dict(width=encoder["embedding_size"], depth=encoder["depth"], heads=encoder["num_heads"])
            blocks |= dict(hidden_ratio=int(encoder["mlp_ratio"]), drop_path=float(encoder["drop_path"]))
            sizes = dict(base_patch=encoder["max_patch_size"], dates=encoder["max_sequence_length"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{beside} is not what Galileo publishes beside {path.name}: {error}") from error
        return {"name": "galileo", "sensors": self.sensors, **sizes, "blocks": blocks | dict(exact_gelu=True)}

    def prepare(self, tensors: Tensors, model: Mapping[str, Any]) -> Tensors:
        """See `Source`: without ".backbone" in names, and of the static groups' codes only that of the place."""
        tensors = {name.replace(".backbone", ""): value for name, value in tensors.items()}
        codes = tensors.get("st_channel_embed")
        return tensors if codes is None else tensors | {"st_channel_embed": codes[1:2]}

    def map(self, model: Mapping[str, Any]) -> WeightMap:
        """See `Source`."""
        ends = """
            s_t_channel_embed      channels
            st_channel_embed       place_channel  1 d -> d
            static_embed.location  place          linear
            norm                   norm           norm
        """
        embed = [f"space_time_embed.{group}.proj  embed/{group}  patches {model['base_patch']}" for group in GROUPS]
        table = rows(ends) + rows("\n".join(embed)) + transformer("blocks.{block}.", "transformer", names=BLOCK)
        return WeightMap(table, LEFT_OUT)

    def statistics(self, sensor: Sensor, path: Path) -> Statistics | None:
        """See `Source`: of Sentinel-1 in dB and of Sentinel-2 in reflectance."""
        if sensor.unit not in ("dB (sigma0)", "reflectance") or not set(sensor.band_names) <= set(KNOWN):
            return None
        mean, std = zip(*(KNOWN[name] for name in sensor.band_names), strict=True)
        return Statistics(mean, std, f"{self.title}: published normalisation")
