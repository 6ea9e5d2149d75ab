"""From tokens to expert indices and gates. Always in float32.

A router is named in `model.moe.router`, {"name": "softmax_top_k"} or `module:Name` of one's own file with its fields.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.registry import Registry

NOTHING = -1  # counts as the modality of a token of an image of which nothing was observed


class Routing(NamedTuple):
    """What a router decided.

    Attributes:
        experts: [N, K] int32, chosen experts, best first; E where a token chose fewer than K.
        gates: [N, K] float32 in 0..1, weight of each chosen expert's output, 0 where there is none.
        probabilities: [N, E] float32, how a token's preference is spread over the experts in reach: rows sum to 1.
            Entropies and balance losses read it.
        reach: [N, E] bool, the experts that a token could have chosen; None where these are all that its modality is
            allowed.
    """

    experts: jax.Array
    gates: jax.Array
    probabilities: jax.Array
    reach: jax.Array | None = None


def logits(tokens: jax.Array, kernels: Sequence[jax.Array]) -> list[jax.Array]:
    """Router scores of several router groups by one product.

    Args:
        tokens: [N, D], any float dtype; cast to float32.
        kernels: [D, E_g] float32 each, no bias (released RingMoE code).

    Returns:
        [N, E_g] float32 each.
    """
    joined = jnp.concatenate([kernel.astype(jnp.float32) for kernel in kernels], axis=1)
    scores = jnp.dot(tokens.astype(jnp.float32), joined, precision=jax.lax.Precision.HIGHEST)
    return jnp.split(scores, np.cumsum([kernel.shape[1] for kernel in kernels])[:-1], axis=1)


@dataclasses.dataclass(frozen=True)
class Router(abc.ABC):
    """From scores to choices. A router of your own is a frozen dataclass made from this class.

    It has no parameters but those of the scores, is computed in float32, and sees all tokens of the batch at once, on
    however many devices they lie.

    Attributes:
        takes_bias: whether it is called with `bias`, as `model.moe.bias_rate` wants; see `highest`.
    """

    takes_bias: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(
        self, scores: jax.Array, modality: jax.Array, allowed: np.ndarray, k: int, bias: jax.Array | None = None
    ) -> Routing:
        """Chooses.

        Args:
            scores: [N, E] float32, of `logits`.
            modality: [N] int32, row of `allowed` for each token.
            allowed: [M, E] bool; every row allows at least `k` experts.
            k: experts per token, `model.moe.top_k`; where their number varies, its mean: buffers are sized by it.
            bias: [E] float32, for the choice and not for the gates; None without. Routers that do not take it may leave
                the argument out.
        """


ROUTERS = Registry("router", Router)


@ROUTERS.register("softmax_top_k")
@dataclasses.dataclass(frozen=True)
class SoftmaxTopK(Router):
    """The k likeliest of the experts that a token's modality may choose (released RingMoE code; V-MoE).

    Ties go to the lower expert index.

    Attributes:
        temperature: divides the scores; 1 is the released code's. Kernels start at 0.02, so scores of tokens of unit
            variance start at 0.02 sqrt(D), and narrow models' routers stay undecided for thousands of steps: below 1
            they decide sooner, and what a choice gains reaches the kernel as a larger gradient (our choice).
    """

    takes_bias: ClassVar[bool] = True
    temperature: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ConfigError(f"softmax_top_k: temperature = {self.temperature}: wanted above 0")

    def __call__(
        self, scores: jax.Array, modality: jax.Array, allowed: np.ndarray, k: int, bias: jax.Array | None = None
    ) -> Routing:
        """See `Router`."""
        probabilities = jax.nn.softmax(masked(scores / self.temperature, modality, allowed), axis=-1)
        gates, experts = highest(probabilities, k, modality, allowed, bias)
        return Routing(experts, gates, probabilities)


def normalised(gates: jax.Array) -> jax.Array:
    """Gates [N, K] over their sum; zeros stay zeros."""
    return gates / (gates.sum(axis=-1, keepdims=True) + 1e-9)


def highest(
    preferences: jax.Array, k: int, modality: jax.Array, allowed: np.ndarray, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The k experts of the highest preference, with what it is.

    A bias is added to choose, and is not in what a chosen expert's output is multiplied by (Wang et al. 2024,
    "Auxiliary-loss-free load balancing strategy for mixture-of-experts", arXiv 2408.15664, Eq. 3): it sends the
    router no gradient. Experts out of reach stay so, whatever their bias.

    Args:
        preferences: [N, E] float32, 0 out of reach.
        k: experts per token.
        modality: see `Router`.
        allowed: see `Router`.
        bias: [E] float32, or None.

    Returns:
        [N, K] preferences, and [N, K] int32 experts.
    """
    if bias is None:
        return jax.lax.top_k(preferences, k)
    _, experts = jax.lax.top_k(masked(preferences + bias, modality, allowed), k)
    return jnp.take_along_axis(preferences, experts, axis=1), experts


def masked(scores: jax.Array, modality: jax.Array, allowed: np.ndarray) -> jax.Array:
    """Scores [N, E], minus infinity where a token's modality may not choose the expert; see `Router`."""
    if allowed.all():
        return scores
    return jnp.where(jnp.asarray(allowed)[modality], scores, -jnp.inf)


def route(
    logits: jax.Array,
    modality: jax.Array,
    allowed: np.ndarray,
    *,
    k: int,
    normalise_gates: bool = False,
    router: Router = SoftmaxTopK(),
    observed: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> Routing:
    """Chooses experts among those that a token's modality may choose.

    Args:
        logits: [N, E] float32.
        modality: [N] int32, row of `allowed` for each token.
        allowed: [M, E] bool; a row allows at least `k` experts, or none: tokens of that modality choose nobody.
        k: experts per token.
        normalise_gates: divide the gates by their sum over the chosen experts. With k = 1 the
            gate is then exactly 1 and the task sends no gradient to the router, as in the
            released code; False keeps the softmax probability (Switch Transformer), our default.
        router: the rule.
        observed: [N] bool, whether a token is of an image that shows something; others choose nobody. None: all are.
        bias: [E] float32, see `highest`; only for a router that takes it.
    """
    some = allowed.any(axis=1)
    routing = router(logits, modality, allowed | ~some[:, None], k, *(() if bias is None else (bias,)))
    if not some.all():
        guided = jnp.asarray(some)[modality]
        observed = guided if observed is None else observed & guided
        routing = routing._replace(probabilities=routing.probabilities * guided[:, None])
    if normalise_gates:
        routing = routing._replace(gates=normalised(routing.gates))
    if observed is not None:
        chosen = observed[:, None]
        experts = jnp.where(chosen, routing.experts, logits.shape[1])
        routing = routing._replace(experts=experts, gates=routing.gates * chosen)
    return routing
