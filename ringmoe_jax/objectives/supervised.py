"""What all objectives with labels share: where predictions and labels are found, and that they belong together.

Labels of value -1 (unknown, void) add neither value, weight nor gradient. A label that is no class at all cannot raise
inside a compiled step. It makes the value NaN, on which training stops; `check_labels` says before, and in words, which
label of which sample it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.contracts import UNLABELLED
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.objectives.base import Objective


def check_labels(labels: Mapping[str, np.ndarray], classes: Mapping[str, int]) -> None:
    """Looks at the values of class labels. For arrays on the host, before they are trained on.

    Args:
        labels: `batch["labels"]`.
        classes: number of classes C, by the labels to look at. Those of integers ([B], [B, H, W]) may hold
            -1 to C - 1, those of floats ([B, C]) 0 to 1, or -1 or NaN where unknown.

    Raises:
        DataError: names the label, the first row with another value, and the value.
    """
    for name, count in classes.items():
        if name not in labels:
            raise DataError(f'the batch holds no label "{name}": {nearest(name, labels)}')
        label = np.asarray(labels[name])
        if np.issubdtype(label.dtype, np.integer):
            good, wanted = (label >= UNLABELLED) & (label < count), f"{UNLABELLED} to {count - 1}"
        else:
            good = ((label >= 0) & (label <= 1)) | (label == UNLABELLED) | np.isnan(label)
            wanted = f"0 to 1, or {UNLABELLED} or NaN where unknown"
            if label.shape[-1:] != (count,):
                raise DataError(f'label "{name}" has shape {label.shape}, wanted [B, {count}]')
        for place in np.argwhere(~good)[:1]:
            raise DataError(
                f'label "{name}" holds {label[tuple(place)]} in row {place[0]}, wanted {wanted}: are these the classes '
                "that the head was made for?"
            )


def predicted(outputs: Mapping, name: str, who: str) -> jax.Array:
    """`outputs["predictions"][name]` as float32; a `ConfigError` of objective `who` where the head has no such."""
    predictions = outputs.get("predictions", {})
    if name not in predictions:
        raise ConfigError(f'{who}: the head gives no "{name}": {nearest(name, predictions)}')
    return predictions[name].astype(jnp.float32)


def labelled(batch: Mapping, name: str, who: str) -> jax.Array:
    """`batch["labels"][name]`; a `DataError` where the batch lacks it."""
    labels = batch.get("labels", {})
    if name not in labels:
        raise DataError(f'{who}: the batch holds no label "{name}": {nearest(name, labels)}')
    return labels[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationObjective(Objective):
    """Base of objectives about logits of which one class is right.

    Attributes:
        label: name in `batch["labels"]`: int32, [N] or [N, H, W], -1 unknown.
        output: name in `outputs["predictions"]`: logits [N, C] or [N, H, W, C]; "auxiliary" for that of UPerNet.
    """

    label: str
    output: str = "logits"

    def pair(self, outputs: Mapping, batch: Mapping) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits [..., C] float32, classes [...] int32 (0 where unknown), and where they are known, [...] bool.

        Raises:
            ConfigError: the head gives no such logits.
            DataError: the batch holds no such label, or it is not one class for each of the logits.
        """
        who = type(self).__name__
        logits, label = predicted(outputs, self.output, who), labelled(batch, self.label, who)
        if label.shape != logits.shape[:-1] or not jnp.issubdtype(label.dtype, jnp.integer):
            raise DataError(
                f'{who}: label "{self.label}" is {label.dtype}{list(label.shape)}, "{self.output}" '
                f"{list(logits.shape)}: wanted whole numbers {list(logits.shape[:-1])}"
            )
        known = (label >= 0) & (label < logits.shape[-1])
        return logits, jnp.where(known, label, 0), known

    def or_nan(self, value: jax.Array, batch: Mapping, count: int) -> jax.Array:
        """The value, NaN where a label is none of `count` classes."""
        label = batch["labels"][self.label]
        return jnp.where(jnp.any((label < UNLABELLED) | (label >= count)), jnp.nan, value)
