"""An encoder and a task as a user writes them in a file of their own: `tests.tiny_parts:Name` in a config."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringmoe_jax.contracts import MAP, Meaning, standardise
from ringmoe_jax.evaluate.metrics import METRICS
from ringmoe_jax.models import ModelConfig, from_module
from ringmoe_jax.models.api import chosen_sensors
from ringmoe_jax.models.downstream import HeadSpec
from ringmoe_jax.models.heads.base import PIXEL_LOGITS
from ringmoe_jax.models.heads.neck import MEAN
from ringmoe_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class Patches(ModelConfig):
    """One linear layer on the pixels of every patch: no experts, images of any size.

    Attributes:
        sensors: names.
        width: D.
        patch: its side in pixels.
    """

    sensors: tuple[str, ...]
    width: int = 8
    patch: int = 4

    def build(self, sensors=None, statistics=None, heads=None, mesh=None):
        """See `ModelConfig`."""
        assert not heads
        table, values = chosen_sensors(self.sensors, sensors, statistics)
        streams = dict.fromkeys(table, self.width)
        return from_module(lambda rngs: _Patches(self, table, values, rngs), streams)


class _Patches(nnx.Module):
    def __init__(self, config, sensors, statistics, rngs):
        self.sensors, self.statistics = tuple(sensors.values()), tuple(statistics.values())
        size, width = (config.patch, config.patch), config.width
        layer = lambda sensor: nnx.Conv(sensor.channels, width, size, strides=size, rngs=rngs)  # noqa: E731
        self.embed = nnx.Dict({name: layer(sensor) for name, sensor in sensors.items()})

    def __call__(self, batch, *, key, train):
        tokens = {}
        for sensor, statistics in zip(self.sensors, self.statistics, strict=True):
            if sensor.name in batch["sensors"]:
                entry = batch["sensors"][sensor.name]
                images = standardise(entry["pixels"], entry["valid"], statistics)
                tokens[sensor.name] = self.embed[sensor.name](images)
        return {
            "tokens": tokens,
            "stages": {name: (x,) for name, x in tokens.items()},
            "pooled": {name: x.mean((1, 2, 3)) for name, x in tokens.items()},
            "routing": {},
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Canopy(Task):
    """How sure it is that a pixel is wooded, and which share of an image that makes.

    Attributes:
        wooded: index of the class.
    """

    wooded: int = 2
    kinds: ClassVar = (MAP,)
    answers: ClassVar = {"share": Meaning((), "share of the image that is wooded, 0..1")}
    maps: ClassVar = ("canopy",)

    def head_spec(self, target):
        return HeadSpec("fcn", {"logits": PIXEL_LOGITS.axes}, len(target.names), MEAN, target.sensor)

    def objectives(self, target, head):
        return {"cross_entropy": dict(name="cross_entropy", label=self.target)}

    def answer(self, predictions, target):
        sure = self.windows(predictions)[..., 0]
        return {"share": sure.mean((1, 2)), "sure": sure}

    def windows(self, predictions):
        return jax.nn.softmax(predictions["logits"].astype(jnp.float32))[..., self.wooded, None]

    def map_names(self, target):
        return ("canopy",)

    def metric(self, target):
        return METRICS["height"]()

    def add(self, metric, answer, truth):
        metric.add(truth == self.wooded, answer["sure"], truth >= 0)

    def constant(self, truths, target):
        share = np.mean(np.concatenate([truth[truth >= 0] == self.wooded for truth in truths]), dtype=np.float32)
        return {"share": share, "sure": np.full(truths[0].shape, share)}

    def figures(self, title, metric, examples, target):
        return {}
