"""A head with its task, loss and metric: which share of an image every class covers."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringmoe_jax.contracts import VALUE, Meaning
from ringmoe_jax.evaluate.metrics.base import Sums, error, ratio
from ringmoe_jax.models.downstream import HeadSpec
from ringmoe_jax.models.heads.base import HeadConfig
from ringmoe_jax.models.heads.neck import MEAN
from ringmoe_jax.models.layers import linear
from ringmoe_jax.objectives import Objective
from ringmoe_jax.tasks import Task

SHARES = Meaning(("class",), "share of the image that every class covers; they sum to 1", of_classes=True)


@dataclasses.dataclass(frozen=True)
class SharesHead(HeadConfig):
    gives: ClassVar = {"shares": SHARES}
    temperature: float = 1.0

    def build(self, widths, outputs, rngs, *, dtype):
        return SharesModule(self, widths, outputs, rngs, dtype)


class SharesModule(nnx.Module):
    def __init__(self, config, widths, outputs, rngs, dtype):
        self.config, self.classify = config, linear(widths[-1], outputs, rngs, dtype=dtype)

    def __call__(self, levels, size, *, key, train):
        logits = self.classify(levels[-1]).astype(jnp.float32) / self.config.temperature
        return {"shares": jax.nn.softmax(logits, axis=-1).mean(axis=(1, 2))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharesLoss(Objective):
    label: str

    def __call__(self, outputs, batch):
        apart = jnp.abs(outputs["predictions"]["shares"] - batch["labels"][self.label])
        return jnp.sum(apart.mean(axis=-1)), jnp.float32(len(apart)), {}


class SharesError(Sums):
    @property
    def quantities(self):
        return {"share error": error("mean absolute error of the classes' shares")}

    def add(self, truth, predicted):
        self.rows.append(np.array([np.abs(truth - predicted).mean(), 1.0]))

    def values(self, weights):
        total, images = self.totals(weights).T
        return {"share error": ratio(total, images)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares(Task):
    kinds: ClassVar = (VALUE,)
    answers: ClassVar = {"shares": SHARES}
    maps: ClassVar = ("shares",)

    def head_spec(self, target):
        return HeadSpec("own_task:SharesHead", {"shares": SHARES.axes}, len(target.names), MEAN)

    def objectives(self, target, head):
        return {"shares": dict(name="own_task:SharesLoss", label=self.target)}

    def answer(self, predictions, target):
        return {"shares": predictions["shares"]}

    def windows(self, predictions):
        return predictions["shares"][:, None, None]

    def metric(self, target):
        return SharesError()

    def add(self, metric, answer, truth):
        metric.add(truth, answer["shares"])

    def constant(self, truths, target):
        """The mean shares of the training samples."""
        return {"shares": np.mean(truths, axis=0)}

    def figures(self, title, metric, examples, target):
        return {}
