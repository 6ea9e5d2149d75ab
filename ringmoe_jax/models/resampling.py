"""Position tables for another size than a model was trained with, as the published Swin and ViT recipes have it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import DataError

TABLES = {"relative_position_bias": 0, "positions": 1}  # parameters that are tables, and rows before the square


def fitted(old: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """A parameter of a checkpoint for a model of another image size.

    Tables of relative positions [..., (2 w - 1)^2, K] and of the places of a grid [..., 1 + g^2, D] (a class token
    before them) are squares in their last axis but one, and are resampled bicubically there (Liu et al. 2021 and
    Dosovitskiy et al. 2021, released code; the kernel, Keys' with a = -0.5, is JAX's). Others have to fit as they are.

    Args:
        old: of the checkpoint.
        shape: that the model wants.
        where: path of the parameter, for messages.

    Raises:
        DataError: it fits neither as it is nor as a table.
    """
    if old.shape == shape:
        return old
    if where.rpartition("/")[2] in TABLES and old.ndim == len(shape) >= 2:
        extra = TABLES[where.rpartition("/")[2]]
        sides = [math.isqrt(rows - extra) for rows in (old.shape[-2], shape[-2])]
        whole = [side**2 + extra for side in sides] == [old.shape[-2], shape[-2]]
        if whole and (*old.shape[:-2], old.shape[-1]) == (*shape[:-2], shape[-1]):
            first, table = old[..., :extra, :], old[..., extra:, :]
            table = table.reshape(*old.shape[:-2], sides[0], sides[0], old.shape[-1])
            wanted = (*shape[:-2], sides[1], sides[1], shape[-1])
            table = jax.image.resize(jnp.asarray(table), wanted, "cubic", antialias=False)
            return np.concatenate([first, np.asarray(table).reshape(*shape[:-2], -1, shape[-1])], axis=-2)
    raise DataError(
        f"the checkpoint's {where} is {list(old.shape)}, the model wants {list(shape)}: fine-tune the "
        "model that the checkpoint has"
    )
