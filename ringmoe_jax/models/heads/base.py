"""What a head is to a config, and what it states of its predictions."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from flax import nnx

from ringmoe_jax.contracts import Meaning
from ringmoe_jax.registry import Registry

ROWS_COLUMNS = ("height", "width")  # axes of a map
IMAGE_LOGITS = Meaning(("class",), "logits of the classes of an image", of_classes=True)
PIXEL_LOGITS = Meaning((*ROWS_COLUMNS, "class"), "logits of the classes of every pixel", of_classes=True)


@dataclasses.dataclass(frozen=True)
class HeadConfig(abc.ABC):
    """A head as a config names it. One of your own is a frozen dataclass made from this class.

    Attributes:
        gives: predictions by name and what they mean; a task that reads them by these axes can be learnt. What a head
            gives beside them is for losses alone.
        pairs: whether its levels hold two dates, before and after.
    """

    gives: ClassVar[Mapping[str, Meaning]]
    pairs: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype) -> nnx.Module:
        """The module, see `ringmoe_jax.models.heads`.

        Args:
            widths: D_i of the levels.
            outputs: C, number of classes; 1 for heights.
            rngs: random numbers.
            dtype: of activations; parameters are float32.
        """

    @property
    def deep_supervision(self) -> tuple[str, ...]:
        """Further predictions, like the task's own logits, that are trained beside them."""
        return ()


HEADS = Registry("head", HeadConfig)
