"""Heads: what turns an encoder's feature pyramid into predictions, one task a file.

A head is a `HeadConfig` whose `build(widths, outputs, rngs, *, dtype)` makes an nnx module that is called as
`head(levels, size, *, key, train)`:

    widths   D_i of the levels
    outputs  C, number of classes; 1 for heights
    dtype    of activations; parameters are float32
    levels   tuple of [N, h_i, w_i, D_i], finest first; change heads: [N, 2, h_i, w_i, D_i], before and after
    size     (H, W) of the image in pixels
    key      for dropout, which needs `train` as well; None keeps everything

It returns a dict of float32 predictions, which become `outputs["predictions"]`:

    linear, mlp                             {"logits": [N, C]}
    fcn, upernet                            {"logits": [N, H, W, C]}, and of upernet "auxiliary", the same
    change_difference, change_concat        {"logits": [N, H, W, C]}
    change_transformer                      {"logits": [N, H, W, C]}
    height                                  {"height": [N, H, W] metres, "bins": [N, K] metres}
    fcos                                    see `detection.DetectionHead`

A head of your own is named `module:Name` in `config.head`; docs/extend.md has one.

Any number of levels works, and any grid. Norms are layer or group norms and not batch norms (our choice): no running
statistics, and what is said of an image hangs on that image alone.
"""

from ringmoe_jax.models.heads import change as _change  # noqa: F401  (these register)
from ringmoe_jax.models.heads import dense as _dense  # noqa: F401
from ringmoe_jax.models.heads import detection as _detection  # noqa: F401
from ringmoe_jax.models.heads import height as _height  # noqa: F401
from ringmoe_jax.models.heads import pooled as _pooled  # noqa: F401
from ringmoe_jax.models.heads.base import HEADS, HeadConfig

__all__ = ["HEADS", "HeadConfig", "register"]

register = HEADS.register
