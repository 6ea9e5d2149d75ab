"""Heads: what turns an encoder's feature pyramid into predictions, one task a file.

A head is an nnx module `Head(config, widths, outputs, rngs, *, dtype)` with `head(levels, size, *, key, train)`:

    config   a frozen dataclass
    widths   D_i of the levels
    outputs  C, number of classes; 1 for heights
    dtype    of activations; parameters are float32
    levels   tuple of [N, h_i, w_i, D_i], finest first; change heads: [N, 2, h_i, w_i, D_i], before and after
    size     (H, W) of the image in pixels
    key      for dropout, which needs `train` as well; None keeps everything

It returns a dict of float32 predictions, which become `outputs["predictions"]`:

    linear, mlp                             {"logits": [N, C]}
    fcn, upernet                            {"logits": [N, H, W, C]}, and of upernet "auxiliary", the same
    change_difference, change_transformer   {"logits": [N, H, W, C]}
    height                                  {"height": [N, H, W] metres, "bins": [N, K] metres}
    fcos                                    see `detection.Detection`

Any number of levels works, and any grid. Norms are layer or group norms and not batch norms (our choice): no running
statistics, and what is said of an image hangs on that image alone.
"""

from __future__ import annotations

from flax import nnx

from ringmoe_jax.models.heads.change import ChangeDifference, ChangeTransformer, ChangeTransformerConfig
from ringmoe_jax.models.heads.dense import DenseConfig, DenseHead, FcnConfig, UPerNet, UPerNetConfig
from ringmoe_jax.models.heads.detection import Detection, DetectionConfig
from ringmoe_jax.models.heads.height import HeightConfig, HeightHead
from ringmoe_jax.models.heads.pooled import LinearConfig, MlpConfig, PooledHead

__all__ = ["HEADS"]

# name in the config -> (its dataclass, its module)
HEADS: dict[str, tuple[type, type[nnx.Module]]] = {
    "linear": (LinearConfig, PooledHead),
    "mlp": (MlpConfig, PooledHead),
    "fcn": (FcnConfig, DenseHead),
    "upernet": (UPerNetConfig, UPerNet),
    "change_difference": (DenseConfig, ChangeDifference),
    "change_transformer": (ChangeTransformerConfig, ChangeTransformer),
    "height": (HeightConfig, HeightHead),
    "fcos": (DetectionConfig, Detection),
}
