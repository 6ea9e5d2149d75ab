"""SwinV2 and ViT as timm (PyTorch Image Models) names their tensors; classifiers are left out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError
from ringmoe_jax.interop.files import Tensors
from ringmoe_jax.interop.mapping import Row, WeightMap, rows
from ringmoe_jax.interop.source import RGB, SOURCES, Source, adapted, counted
from ringmoe_jax.interop.tables import VIT_BLOCK, swin, transformer
from ringmoe_jax.sensors import Sensor, Statistics

CLASSIFIER = {"head.": "the classifier"}
HEAD_WIDTH = 64  # of timm's ViT, but for few; tensors do not tell


@SOURCES.register("timm")
@dataclasses.dataclass(frozen=True)
class Timm(Source):
    """`timm.create_model("swinv2_...")` and `"vit_..."` of any size, with a class token and no registers.

    Tensors tell neither window nor number of heads: say `window` (of SwinV2; 8 by default) or `blocks.heads` (of a ViT;
    64 channels each by default) where they are others. SwinV2 whose window was enlarged for fine-tuning
    ("12to16") has another position bias and is not known.
    """

    sensors: tuple[str, ...] = ("rgb",)
    title: ClassVar[str] = "timm"
    licence: ClassVar[str] = "other"  # each model has its own
    citation: ClassVar[str] = "Wightman 2019, PyTorch Image Models"

    def model(self, tensors: Tensors, path: Path) -> dict[str, Any]:
        """See `Source`."""
        first, scale = tensors.get("patch_embed.proj.weight"), tensors.get("layers.0.blocks.0.attn.logit_scale")
        if first is not None and first.ndim == 4:
            shared = {"sensors": self.sensors, "patch": first.shape[-1]}
            if scale is not None:
                return {"name": "swinv2", **shared, **_swin(tensors, len(first), len(scale))}
            if {"cls_token", "pos_embed", "blocks.0.mlp.fc1.weight"} <= tensors.keys():
                return {"name": "vit", **shared, **_vit(tensors, len(first), first.shape[-1])}
        raise DataError(f"{path} is no SwinV2 or ViT of timm: its first tensors are {', '.join(list(tensors)[:3])}")

    def map(self, model: Mapping[str, Any]) -> WeightMap:
        """See `Source`."""
        return WeightMap({"swinv2": swin_rows, "vit": vit_rows}[model["name"]](model["patch"]), CLASSIFIER)

    def prepare(self, tensors: Tensors, model: Mapping[str, Any]) -> Tensors:
        """See `Source`: the first convolution for other bands than red, green and blue."""
        (name,) = model["sensors"]
        kernel = adapted(tensors["patch_embed.proj.weight"], RGB, sensor_table.get(name))
        return tensors | {"patch_embed.proj.weight": kernel}

    def statistics(self, sensor: Sensor, path: Path) -> Statistics | None:
        """See `Source`: ImageNet's for red, green and blue of 8 bits, which the sensor table has as well."""
        return sensor.statistics if tuple(band.alias for band in sensor.bands) == RGB else None


def swin_rows(patch: int) -> list[Row]:
    """The table of a SwinV2 with patches of so many pixels."""
    ends = f"""
        patch_embed.proj  embed/project  patches {patch}
        patch_embed.norm  embed/norm     norm
        norm              norm           norm
    """
    names = dict(attention="attn", hidden=("mlp.fc1", "mlp.fc2"), stage="layers.{stage}", merged="(w h c)")
    return rows(ends, path="encoder/*") + swin("", "encoder/backbone", **names)


def vit_rows(patch: int) -> list[Row]:
    """The table of a ViT with patches of so many pixels."""
    ends = f"""
        patch_embed.proj  vit/embed/project  patches {patch}
        cls_token         vit/class_token    1 1 d -> d
        pos_embed         vit/positions      1 n d -> n d
        norm              norm               norm
    """
    return rows(ends, path="encoder/*") + transformer("blocks.{block}.", "encoder/vit/transformer", names=VIT_BLOCK)


def _swin(tensors: Tensors, width: int, heads: int) -> dict[str, Any]:
    stages = counted(tensors, "layers.", ".blocks.0.norm1.weight")
    depths = tuple(counted(tensors, f"layers.{i}.blocks.", ".norm1.weight") for i in range(stages))
    return {"width": width, "depths": depths, "head_width": width // heads}


def _vit(tensors: Tensors, width: int, patch: int) -> dict[str, Any]:
    grid = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    depth, hidden = counted(tensors, "blocks.", ".norm1.weight"), len(tensors["blocks.0.mlp.fc1.weight"])
    blocks = dict(width=width, depth=depth, heads=max(1, width // HEAD_WIDTH), hidden_ratio=hidden // width)
    return {"image_size": grid * patch, "grid": grid, "blocks": blocks | dict(exact_gelu=True, epsilon=1e-6)}
