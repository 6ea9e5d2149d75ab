"""Trains an anchor-free detector: which points answer for which object, and what they should say of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.contracts import BOX, TRACK, UNLABELLED
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.heads import boxes
from ringmoe_jax.objectives.base import Objective, Result, register
from ringmoe_jax.objectives.supervised import labelled


@register("fcos")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FCOS(Objective):
    """Focal loss of the classes at all points; losses of box and centreness at those that answer for an object.

    All three are summed over points and divided by the number of points that answer (Tian et al. 2019, Eq. 2). The
    box loss of upright boxes is 1 - GIoU (Rezatofighi et al. 2019). That of rotated ones is 1 - ProbIoU (Llerena et
    al. 2021) and the squared error of the encoded angle times 1 - height / width, as a square has no angle
    (our choice). A head of upright boxes takes the smallest upright boxes around rotated objects as the truth.
    Computed in float32.

    Metrics: "class", "box" and "centreness", the three without weight; "unassigned", the share of objects for which
    no point answers, because each that could answers for another.

    Attributes:
        label: batch["labels"][label], [B, n, 6] float32: class, x, y, width, height, angle; class -1 is not used. Or
            [B, n, 8] with track and date behind them, where the images are the T dates of each sample, [B T].
        class_weight: of the focal loss.
        box_weight: of the box loss.
        centreness_weight: of the binary cross-entropy of the centreness.
        radius: see `assign`.
        span: see `assign`.
        alpha: weight of the right class in the focal loss, 1 - alpha of the others (Lin et al. 2017).
        gamma: exponent of the focal loss.
    """

    label: str
    class_weight: float = 1.0
    box_weight: float = 1.0
    centreness_weight: float = 1.0
    radius: float = 1.5
    span: float = 16.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self):
        if not (self.radius > 0 and self.span > 0 and 0 < self.alpha < 1 and self.gamma >= 0):
            raise ConfigError(
                f"FCOS: radius = {self.radius}, span = {self.span}, alpha = {self.alpha}, gamma = {self.gamma}: wanted "
                "radius and span > 0, alpha between 0 and 1, gamma >= 0"
            )

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        predictions = outputs["predictions"]
        rows = labelled(batch, self.label, "FCOS").astype(jnp.float32)
        rows = _by_image(rows, len(predictions["raw"]))
        rotated = predictions["raw"].shape[-1] == boxes.ROTATED
        kinds, truth = rows[..., 0], (boxes.longest_first if rotated else boxes.upright)(rows[..., 1:])
        owner = self.owners(kinds, truth, predictions["points"])
        answers = owner >= 0
        kind, box = _of_owner(owner, kinds, truth)

        sums = {
            "class": focal(predictions["class"], kind, self.alpha, self.gamma).sum(),
            "box": jnp.where(answers, _apart(predictions, box), 0).sum(),
            "centreness": jnp.where(answers, _off_centre(predictions, box), 0).sum(),
        }
        weight = jnp.maximum(jnp.sum(answers, dtype=jnp.float32), 1)
        value = sum(getattr(self, f"{name}_weight") * term for name, term in sums.items())
        metrics = {name: term / weight for name, term in sums.items()}
        return value, weight, metrics | {"unassigned": _unassigned(owner, kinds)}

    def owners(self, kinds: jax.Array, truth: jax.Array, points: jax.Array) -> jax.Array:
        """`assign` of every image: [N, n], [N, n, 5] and [A, 3] to [N, A] int32."""
        return jax.vmap(lambda k, t: assign(k, t, points, radius=self.radius, span=self.span))(kinds, truth)


def assign(kinds: jax.Array, truth: jax.Array, points: jax.Array, *, radius: float, span: float) -> jax.Array:
    """Which object of an image each point answers for.

    An object belongs to the finest level on which its longer side is at most `span` strides, or to the coarsest one.
    There the points answer that lie inside it and, along both of its axes, within `radius` strides of its centre
    (centre sampling, Tian et al. 2022), and always the point nearest to its centre, so that objects smaller
    than a cell are found (our choice). A point that could answer for several objects answers for one that it is
    the nearest point of, and among those, or where there is none, for the smallest.

    FCOS assigns by the largest distance from a point to a side, up to 8 strides, so objects of up to 16: the default
    span. Thin ones need as much: with an aspect ratio of 5, those of 8 to 16 strides are 1.6 to 3.2 across.

    Args:
        kinds: [n] class of each object; below 0 it is not used.
        truth: [n, 5] boxes in pixels and radians.
        points: [A, 3] x, y and stride in pixels.
        radius: in strides, > 0.
        span: in strides, > 0.

    Returns:
        [A] int32 rows of `truth`; -1 for background.
    """
    used, count = kinds >= 0, len(kinds)
    width, height, stride = truth[:, 2], truth[:, 3], points[:, 2:]
    fits = jnp.where(jnp.maximum(width, height) <= span * stride, stride, jnp.inf)
    level = stride == jnp.minimum(fits.min(axis=0), stride.max())  # [A, n]
    u, v = boxes.local(truth, points[:, None])
    reach = radius * stride
    inside = (jnp.abs(u) <= jnp.minimum(width / 2, reach)) & (jnp.abs(v) <= jnp.minimum(height / 2, reach))
    closest = jnp.argmin(jnp.where(level, u**2 + v**2, jnp.inf), axis=0)
    closest = jnp.arange(len(points))[:, None] == closest
    rank = jnp.argsort(jnp.argsort(width * height)) + jnp.where(closest, 0, count)
    rank = jnp.where(used & level & (inside | closest), rank, 2 * count)
    return jnp.where(rank.min(axis=1) < 2 * count, jnp.argmin(rank, axis=1), -1)


def centreness(box: jax.Array, points: jax.Array) -> jax.Array:
    """How central points lie in boxes: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) in the box's own frame.

    l, r, t and b are distances to the sides (Tian et al. 2019, Eq. 3). Each side counts as at least two strides long
    (our choice): the one point of a small object may lie at its rim or beside it, and would be worth nothing.

    Args:
        box: [..., 5] in pixels and radians.
        points: [..., 3].

    Returns:
        [...] in 0..1.
    """
    value, stride = 1.0, points[..., 2]
    for offset, side in zip(boxes.local(box, points), (box[..., 2], box[..., 3]), strict=True):
        half, offset = jnp.maximum(side / 2, stride), jnp.abs(offset)
        value *= jnp.maximum(half - offset, 0) / (half + offset)
    return jnp.sqrt(value)


def focal(logits: jax.Array, kind: jax.Array, alpha: float, gamma: float) -> jax.Array:
    """Focal loss (Lin et al. 2017, Eq. 5) of independent classes: -alpha_t (1 - p_t)^gamma ln p_t, in nats.

    Args:
        logits: [..., C].
        kind: [...] the right class; below 0 for background.
        alpha: see `FCOS`.
        gamma: see `FCOS`.

    Returns:
        [..., C].
    """
    right = kind[..., None] == jnp.arange(logits.shape[-1])
    wrongness = jnp.where(right, -logits, logits)  # logit of 1 - p_t
    return jnp.where(right, alpha, 1 - alpha) * jax.nn.sigmoid(wrongness) ** gamma * jax.nn.softplus(wrongness)


def _by_image(rows: jax.Array, images: int) -> jax.Array:
    """Rows [N, n, 6] of every image; of tracks [B, n, 8] over T = N / B dates, those of another date are not used."""
    if rows.shape[-1] == len(BOX):
        return rows
    dates = jnp.arange(images // len(rows))[:, None]
    on_date = rows[:, None, :, TRACK.index("date")] == dates
    own = rows[:, None, :, : len(BOX)]
    return jnp.where(on_date[..., None], own, float(UNLABELLED)).reshape(images, -1, len(BOX))


def _of_owner(owner: jax.Array, kinds: jax.Array, truth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Class [N, A], -1 for background, and box [N, A, 5] of what each point answers for."""
    row, answers = jnp.maximum(owner, 0), owner >= 0
    kind = jnp.where(answers, jnp.take_along_axis(kinds, row, axis=1), -1)
    # Rows that are not used hold anything; a real box at the background's points keeps NaN out of gradients.
    return kind, jnp.where(answers[..., None], jnp.take_along_axis(truth, row[..., None], axis=1), 1.0)


def _apart(predictions: Mapping, box: jax.Array) -> jax.Array:
    """Box loss [N, A]."""
    raw, predicted = predictions["raw"], predictions["box"]
    if raw.shape[-1] == boxes.UPRIGHT:
        return 1 - boxes.giou(predicted, box)
    turn = boxes.encode(box, predictions["points"])[..., boxes.UPRIGHT :]
    defined = 1 - box[..., 3] / jnp.maximum(box[..., 2], 1e-6)
    error = jnp.square(raw[..., boxes.UPRIGHT :] - turn).sum(axis=-1)
    return boxes.hellinger(predicted, box) + defined * error


def _off_centre(predictions: Mapping, box: jax.Array) -> jax.Array:
    """Binary cross-entropy [N, A] of the centreness, nats."""
    logits = predictions["centreness"]
    return jax.nn.softplus(logits) - logits * centreness(box, predictions["points"])


def _unassigned(owner: jax.Array, kinds: jax.Array) -> jax.Array:
    """Share of used objects [N, n] that own no point of [N, A]; 0 where there is no object."""
    owned = (owner[:, :, None] == jnp.arange(kinds.shape[1])).any(axis=1)
    used = kinds >= 0
    return jnp.sum(used & ~owned) / jnp.maximum(used.sum(), 1)
