"""Parameters for another size than a model was trained with.

Position tables, as the published Swin and ViT recipes have it; patch kernels, as FlexiViT has it (Beyer et al. 2023,
arXiv 2212.08013).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.any_sensor import LINEAR, PHYSICS
from ringmoe_jax.models.api import MODELS, Network

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


def repatch(network: Network, patch: int) -> Network:
    """The same network for patches of another size, so that a token shows the same ground in finer or coarser pixels.

    Kernels of patch embeddings are resized by the pseudo-inverse of a bilinear resize (FlexiViT, section 3.4): where
    patches grow, the embedding of a patch that was enlarged is that of the patch. What decoders say is resized itself.
    The number of tokens stays, so images have `patch` / (the old one) times as many pixels a side.

    Args:
        network: a RingMoE model whose stem is "linear" or "physics".
        patch: side of a patch in pixels.

    Raises:
        ConfigError: the model's stem has no patches, or they are to have no whole number of pixels.
    """
    config = MODELS.build(network.model, "config.model")
    old = getattr(config, "patch", 0)
    if not config.layered or getattr(config, "stem", "") not in (LINEAR, PHYSICS):
        raise ConfigError(
            f'patches of model.name = "{network.model["name"]}" cannot be resized: wanted a RingMoE whose model.stem '
            'is "linear" or "physics"'
        )
    if not isinstance(patch, int) or patch < 1 or config.image_size * patch % old:
        raise ConfigError(
            f"patch = {patch!r}: wanted pixels, a whole number above 0, that {config.image_size} px allow"
        )
    size = config.image_size * patch // old
    params = dict(network.params)
    enlarge = _bilinear(old, patch)
    back = np.linalg.pinv(enlarge.T)  # [new, old]
    for part in {"stem", "stems"} & params.keys():
        stems = {"": params[part]} if part == "stem" else params[part]
        stems = {name: _with_kernel(stem, back, old * old) for name, stem in stems.items()}
        params[part] = stems[""] if part == "stem" else stems
    step = config.stride // old if config.decoder == "last" else 1  # patches along a side of what a decoder says
    wide = _bilinear(old * step, patch * step)
    for part in {"decoder", "decoders"} & params.keys():
        params[part] = _each_decoder(params[part], wide)
    return Network({**network.model, "patch": patch, "image_size": size}, params)


def _bilinear(old: int, new: int) -> np.ndarray:
    """[new^2, old^2] float64: a bilinear resize of a square of pixels, without smoothing where it shrinks."""
    basis = jnp.eye(old * old).reshape(old, old, old * old)
    resized = jax.image.resize(basis, (new, new, old * old), "bilinear", antialias=False)
    return np.asarray(resized, np.float64).reshape(new * new, old * old)


def _resized(matrix: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A kernel whose first axis counts pixels, [old^2 ...] -> [new^2, ...]."""
    kernel = np.asarray(kernel)
    parts = kernel.reshape(matrix.shape[1], -1)
    return (matrix @ parts).astype(kernel.dtype).reshape(-1, *kernel.shape[1:])


def _with_kernel(stem: dict, matrix: np.ndarray, pixels: int) -> dict:
    """A stem for other patches: [p p, R, D] of a `PhysicsStem`, [p p C, D] of a `PatchEmbed`."""
    if "project" not in stem:
        return {**stem, "kernel": _resized(matrix, stem["kernel"])}
    kernel = np.asarray(stem["project"]["kernel"])
    kernel = _resized(matrix, kernel.reshape(pixels, -1, kernel.shape[-1])).reshape(-1, kernel.shape[-1])
    return {**stem, "project": {**stem["project"], "kernel": kernel}}


def _each_decoder(params: dict, matrix: np.ndarray) -> dict:
    """Decoders, nested, for other patches: what a `PixelDecoder` says of a token, [..., s s channels], is resized."""
    return {
        name: _outputs(part, matrix)
        if name == "project" and "kernel" in part
        else _each_decoder(part, matrix)
        if isinstance(part, dict)
        else part
        for name, part in params.items()
    }


def _outputs(linear: dict, matrix: np.ndarray) -> dict:
    return {name: np.moveaxis(_resized(matrix, np.moveaxis(np.asarray(x), -1, 0)), 0, -1) for name, x in linear.items()}
