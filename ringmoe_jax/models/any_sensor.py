"""What models share whose patch embeddings may be made from what bands are: config, and which bands an image shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from ringmoe_jax import contracts
from ringmoe_jax.bands import describe
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.api import ModelConfig, chosen_sensors
from ringmoe_jax.sensors import COMPLEX, Sensor, Statistics

LINEAR, PHYSICS = "linear", "physics"


@dataclasses.dataclass(frozen=True)
class AnySensorConfig(ModelConfig):
    """A model with a choice of stems, of which "physics" takes any bands and sensors, see `models.physics`.

    Attributes:
        stems: that there are.
        stem: one of them.
        band_dropout: chance that a band is hidden from the encoder in a whole training image; one stays.
    """

    stems: ClassVar[tuple[str, ...]] = (LINEAR, PHYSICS)
    stem: ClassVar[str]  # a field of every such model
    band_dropout: ClassVar[float]  # as well

    def __post_init__(self):
        super().__post_init__()
        if self.stem not in self.stems:
            raise ConfigError(f'model.stem = "{self.stem}" does not exist: {nearest(self.stem, self.stems)}')
        if not 0 <= self.band_dropout < 1 or (self.band_dropout and not self.told):
            raise ConfigError(
                f'model.band_dropout = {self.band_dropout}: wanted 0 to below 1, and model.stem = "physics", which can '
                "be told what is missing"
            )
        if self.unseen and not self.told:
            super().with_unseen(self.unseen)

    @property
    def told(self) -> bool:
        """Whether the stem is told what bands are, and so which ones are missing."""
        return self.stem == PHYSICS

    def with_unseen(self, names: Sequence[str], changed: Sequence[str] = ()) -> AnySensorConfig:
        """See `ModelConfig`."""
        if not self.told:
            super().with_unseen(names, changed)
        return dataclasses.replace(self, unseen=(*self.unseen, *names))

    def chosen(
        self, sensors: Mapping[str, Sensor] | None, statistics: Mapping[str, Statistics] | None
    ) -> tuple[dict[str, Sensor], dict[str, Statistics]]:
        """`chosen_sensors` of all that the model takes.

        Raises:
            ConfigError: as there; or the stem cannot be told what a band is.
        """
        table, values = chosen_sensors(self.all_sensors, sensors, statistics)
        for sensor in table.values() if self.told else ():
            describe(sensor)
        return table, values


def standardise(entry: Mapping, statistics: Statistics) -> jax.Array:
    """`contracts.standardise` of one sensor of a batch; bands that it says are missing are 0, too."""
    image = contracts.standardise(entry["pixels"], entry["valid"], statistics)
    return jnp.where(entry["bands"][:, :, None, None], image, 0) if "bands" in entry else image


def shown_bands(
    entries: Mapping[str, Mapping], sensors: Mapping[str, Sensor], rate: float, key: jax.Array | None
) -> tuple[dict[str, jax.Array | None], jax.Array | None]:
    """Which bands the images of each sensor show, [B, T, C] bool or None for all; and the key for what comes after.

    With a `rate` and a key some of them are hidden, but never the one of an image that a draw protects; real and
    imaginary part go together.

    Args:
        entries: of `batch["sensors"]`.
        sensors: by name.
        rate: chance that a band is hidden, 0 to below 1.
        key: of the draws; None hides nothing.
    """
    if not rate or key is None:
        return {name: entry.get("bands") for name, entry in entries.items()}, key
    shown, (key, draw) = {}, jax.random.split(key)
    for (name, entry), own in zip(entries.items(), jax.random.split(draw, len(entries)), strict=True):
        (b, t, *_, c), pair = entry["pixels"].shape, 2 if sensors[name].resampling == COMPLEX else 1
        present = entry.get("bands", jnp.ones((b, t, c), bool))
        first, second = jax.random.split(own)
        kept = jax.random.bernoulli(first, 1 - rate, (b, t, c // pair))
        luck = jnp.where(present[..., ::pair], jax.random.uniform(second, kept.shape), -1.0)
        kept |= luck == luck.max(axis=-1, keepdims=True)
        shown[name] = present & jnp.repeat(kept, pair, axis=-1)
    return shown, key
