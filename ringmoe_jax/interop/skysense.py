"""SkySense's released names: the whole model, or the file of one of its encoders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ringmoe_jax.errors import DataError
from ringmoe_jax.interop.files import Tensors
from ringmoe_jax.interop.mapping import Row, WeightMap, rows
from ringmoe_jax.interop.source import SOURCES, Source, counted
from ringmoe_jax.interop.tables import swin, transformer
from ringmoe_jax.sensors import Sensor, Statistics

SERIES = {"s2": "s2_10", "s1": "s1_grd"}  # the source's names of encoders, and our sensors
HIGH = "rgb"
HEAD_WIDTH = 64  # of the ViTs and the fusion; tensors do not tell
NORM_EVERY = 6
BLOCK = """
    ln1                      attention_norm                     norm
    attn.attn.in_proj_weight attention/query+key+value/kernel   o i -> i o
    attn.attn.in_proj_bias   attention/query+key+value/bias
    attn.attn.out_proj       attention/out                      linear
    ln2                      ffn_norm                           norm
    ffn.layers.0.0           ffn/shared/wi                      linear
    ffn.layers.1             ffn/shared/wo                      linear
"""
FUSION = """
    fusion.porj_linear  fusion/project  linear
    fusion.cls_token    fusion/token    1 1 d -> d
    ctpe                dates           1 n d -> n d
"""
# As SkySense++ publishes them: of 8 bits, of digital numbers of Sentinel-2 L2A, of dB.
STATISTICS = {
    HIGH: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "s2_10": (
        (0.088430, 0.114416, 0.129747, 0.162491, 0.219464, 0.242221, 0.251776, 0.258165, 0.236851, 0.180507),
        (0.115515, 0.118363, 0.136811, 0.137027, 0.135555, 0.141651, 0.147479, 0.143931, 0.145552, 0.134348),
    ),
    "s1_grd": ((-12.548, -20.192), (5.257, 5.912)),
}


@SOURCES.register("skysense")
@dataclasses.dataclass(frozen=True)
class SkySense(Source):
    """The whole model; or `skysense_model_backbone_hr.pth` as a SwinV2, and `_s2` or `_s1` as a ViT of every frame."""

    title: ClassVar[str] = "SkySense"
    licence: ClassVar[str] = "non-commercial research only"
    citation: ClassVar[str] = "Guo et al. 2024, SkySense (CVPR), github.com/Jack-bo1220/SkySense"

    def model(self, tensors: Tensors, path: Path) -> dict[str, Any]:
        """See `Source`."""
        tensors = bare(tensors)
        if "backbone_gep.patch_embed.projection.weight" in tensors or "fusion.cls_token" in tensors:
            return whole(tensors, path)
        first = tensors.get("patch_embed.projection.weight")
        if first is not None and "stages.0.blocks.0.norm1.weight" in tensors:
            return {"name": "swinv2", "sensors": (HIGH,), **high_resolution(tensors, "")}
        if first is not None and {"cls_token", "pos_embed"} <= tensors.keys():
            sensor = "s1_grd" if first.shape[1] == 2 else "s2_10"
            blocks, grid = series(tensors, "")
            size = dict(grid=grid, patch=first.shape[-1], image_size=grid * first.shape[-1])
            rest = dict(final_norm=False, resize="sampled")
            return {"name": "vit", "sensors": (sensor,), "blocks": blocks, **size, **rest}
        raise DataError(f"{path} is no model of SkySense: its first tensors are {', '.join(list(tensors)[:3])}")

    def prepare(self, tensors: Tensors, model: Mapping[str, Any]) -> Tensors:
        """See `Source`: without the prefix that the high-resolution encoder's file has."""
        return bare(tensors)

    def map(self, model: Mapping[str, Any]) -> WeightMap:
        """See `Source`."""
        left_out = {"mask_token": "not used", "ctpe": "dates, of the fusion alone"}
        if model["name"] == "swinv2":
            return WeightMap(swin_rows("", "encoder", model["patch"], len(model["depths"])), left_out | buffers(model))
        if model["name"] == "vit":
            return WeightMap(series_rows("", "encoder/vit", model["patch"]), left_out)
        left_out = {"backbone_gep.mask_token": "not used", "head_gep": "of pre-training"}
        stages, table = len(model["depths"]), rows(FUSION)
        table += transformer("fusion.layers.{block}.", "fusion/transformer", names=BLOCK)
        if model["high_resolution"]:
            table += swin_rows("backbone_gep.", f"encoders/{HIGH}", model["patch"], stages)
            left_out |= buffers(model, "backbone_gep.")
        for name, sensor in SERIES.items():
            if sensor in model["sensors"]:
                up = f"head_{name}.decoder.0  up/project  shuffle {model['frame_patch']}"
                table += rows(up, path=f"encoders/{sensor}/*")
                table += series_rows(f"backbone_{name}.", f"encoders/{sensor}/vit", model["frame_patch"])
        return WeightMap(table, left_out)

    def statistics(self, sensor: Sensor, path: Path) -> Statistics | None:
        """See `Source`."""
        if sensor.name not in STATISTICS or len(STATISTICS[sensor.name][0]) != sensor.channels:
            return None
        return Statistics(*STATISTICS[sensor.name], "as published with SkySense++")


def bare(tensors: Tensors) -> Tensors:
    """Without "backbone." before every name, as files for downstream tasks have it."""
    return {name.removeprefix("backbone."): value for name, value in tensors.items()}


# ---- Tables -------------------------------------------------------------------------------------------


def swin_rows(source: str, path: str, patch: int, stages: int) -> list[Row]:
    """The high-resolution encoder."""
    ends = f"""
        patch_embed.projection  embed/project  patches {patch}
        patch_embed.norm        embed/norm     norm
        norm{stages - 1}        norm           norm
    """
    names = dict(attention="attn.w_msa", hidden=("ffn.layers.0.0", "ffn.layers.1"), stage="stages.{stage}")
    inner = swin(source, f"{path}/backbone", **names, merged="(c h w)", norm_every=NORM_EVERY)
    return rows(ends, source, f"{path}/*") + inner


def series_rows(source: str, path: str, patch: int) -> list[Row]:
    """The encoder of a series' frames."""
    ends = f"""
        patch_embed.projection  embed/project  patches {patch}
        cls_token               class_token    1 1 d -> d
        pos_embed               positions      1 n d -> n d
    """
    return rows(ends, source, f"{path}/*") + transformer(
        f"{source}layers.{{block}}.", f"{path}/transformer", names=BLOCK
    )


def buffers(model: Mapping[str, Any], source: str = "") -> dict[str, str]:
    """Tensors of the high-resolution encoder that are no parameters."""
    blocks = (f"{source}stages.{i}.blocks.{j}." for i, depth in enumerate(model["depths"]) for j in range(depth))
    return {f"{block}attn.w_msa.relative_": "computed: coordinates" for block in blocks}


# ---- Geometry -----------------------------------------------------------------------------------------


def high_resolution(tensors: Tensors, source: str) -> dict[str, Any]:
    """Fields of a SwinV2."""
    kernel, scale = (tensors[f"{source}{n}"] for n in ("patch_embed.projection.weight", f"{_FIRST}.logit_scale"))
    stages = counted(tensors, f"{source}stages.", ".blocks.0.norm1.weight")
    depths = tuple(counted(tensors, f"{source}stages.{i}.blocks.", ".norm1.weight") for i in range(stages))
    geometry = dict(patch=kernel.shape[-1], width=len(kernel), depths=depths, head_width=len(kernel) // len(scale))
    ways = dict(norm_every=NORM_EVERY, exact_gelu=True, shift_thin=False, pad_windows=True, drop_path=0.2)
    return geometry | ways | {"image_size": 512}


_FIRST = "stages.0.blocks.0.attn.w_msa"


def series(tensors: Tensors, source: str) -> tuple[dict[str, Any], int]:
    """Geometry of a ViT's blocks, and tokens along a side that its positions are for."""
    grid = math.isqrt(tensors[f"{source}pos_embed"].shape[1] - 1)
    return blocks_of(tensors, source), grid


def blocks_of(tensors: Tensors, source: str) -> dict[str, Any]:
    """Geometry of a transformer."""
    hidden, width = tensors[f"{source}layers.0.ffn.layers.0.0.weight"].shape
    depth = counted(tensors, f"{source}layers.", ".ln1.weight")
    return dict(
        width=width, depth=depth, heads=max(1, width // HEAD_WIDTH), hidden_ratio=hidden // width, exact_gelu=True
    )


def whole(tensors: Tensors, path: Path) -> dict[str, Any]:
    """The fields of SkySense.

    Raises:
        DataError: the fusion, or every encoder, is missing.
    """
    high = "backbone_gep.patch_embed.projection.weight" in tensors
    found = {name: sensor for name, sensor in SERIES.items() if f"backbone_{name}.pos_embed" in tensors}
    if "fusion.cls_token" not in tensors or not (high or found):
        raise DataError(f"{path} holds only a part of SkySense: wanted fusion.* and one of backbone_gep, _s2 and _s1")
    model: dict[str, Any] = {"name": "skysense", "sensors": ((HIGH,) if high else ()) + tuple(found.values())}
    model |= {"high_resolution": HIGH if high else "", "fusion": blocks_of(tensors, "fusion.")}
    model |= {"dated": tuple(sensor for sensor in ("s2_10",) if sensor in model["sensors"]), "frame_resize": "sampled"}
    if high:
        model |= high_resolution(tensors, "backbone_gep.")
    for name in found:
        kernel = tensors[f"backbone_{name}.patch_embed.projection.weight"]
        blocks, grid = series(tensors, f"backbone_{name}.")
        model |= {"frame": blocks, "frame_patch": kernel.shape[-1], "frame_size": grid * kernel.shape[-1]}
    return model
