"""Which parameters of a pre-trained encoder a downstream task trains."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.adapters import CONVPASS, add_low_rank, low_rank
from ringmoe_jax.models.api import Params
from ringmoe_jax.models.paths import flatten, nest

METHODS = ("full", "frozen", "lora", "convpass")
KERNELS = r"(query|value)/kernel$"  # of attention, as in the LoRA paper


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
    """How an encoder is adapted; what comes after it is always trained.

    Attributes:
        method: "full" trains all, "frozen" nothing, "lora" low-rank changes of the kernels that match `targets`,
            "convpass" convolutional bypasses in every Swin block.
        rank: r of "lora".
        alpha: changes are multiplied by alpha / rank.
        targets: regular expression over parameter paths, for "lora". Kernels are matrices [..., D, F]; experts too,
            for example r"(wi|wo)(/kernel)?$".
        hidden: width of the bypasses of "convpass".
        also: regular expression of further parameters to train as they are, for example r"norm/"; "" for none.
    """

    method: str = "full"
    rank: int = 8
    alpha: float = 16.0
    targets: str = KERNELS
    hidden: int = 8
    also: str = ""

    def __post_init__(self):
        if self.method not in METHODS:
            raise ConfigError(f'adaptation.method = "{self.method}" does not exist: {nearest(self.method, METHODS)}')
        for name in ("rank", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"adaptation.{name} = {getattr(self, name)}: wanted 1 or more")
        for name in ("targets", "also"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ConfigError(f"adaptation.{name} is no regular expression ({error})") from error

    def trains(self, path: str) -> bool:
        """Whether a parameter of the encoder is trained as it is."""
        if self.method == "full":
            return True
        return bool((self.method == "convpass" and CONVPASS in path) or (self.also and re.search(self.also, path)))


def split(params: Params, config: AdaptationConfig, key: jax.Array) -> tuple[dict[str, Any], Params]:
    """Divides an encoder.

    Args:
        params: of the encoder.
        config: what to train.
        key: of new parameters.

    Returns:
        What is trained, {"encoder": part of the tree, "lora": changes by kernel}, each only where there is any; and
        the part of the tree that is not.

    Raises:
        ConfigError: `targets` or `also` match nothing that they can train.
    """
    flat = flatten(params)
    trained = {name: leaf for name, leaf in flat.items() if config.trains(name)}
    if config.also and config.method != "full" and not any(re.search(config.also, name) for name in flat):
        raise ConfigError(f'adaptation.also = "{config.also}" matches no parameter, for example {_example(flat)}')
    parts = {"encoder": trained} if trained else {}
    if config.method == "lora":
        kernels = sorted(n for n, leaf in flat.items() if re.search(config.targets, n) and leaf.ndim >= 2)
        if not kernels:
            raise ConfigError(f'adaptation.targets = "{config.targets}" matches no kernel, such as {_example(flat)}')
        keys = jax.random.split(key, len(kernels))
        changes = {name: low_rank(k, flat[name].shape, config.rank) for name, k in zip(kernels, keys, strict=True)}
        parts["lora"] = {f"{name}/{part}": x for name, change in changes.items() for part, x in change.items()}
    frozen = {name: leaf for name, leaf in flat.items() if name not in trained}
    return {name: nest(part) for name, part in parts.items()}, nest(frozen)


def join(trained: dict[str, Any], frozen: Params, config: AdaptationConfig) -> Params:
    """The encoder's parameters, inverse of `split`; low-rank changes are added to their kernels."""
    flat = flatten(frozen) | flatten(trained.get("encoder", {}))
    changes = flatten(trained.get("lora", {}))
    for name in {name.rpartition("/")[0] for name in changes}:
        change = {"a": changes[f"{name}/a"], "b": changes[f"{name}/b"]}
        flat[name] = add_low_rank(flat[name], change, config.alpha / config.rank)
    return nest(flat)


def _example(flat: dict[str, Any]) -> str:
    return next((name for name in flat if name.endswith("query/kernel")), next(iter(flat)))
