"""No token is dropped: choices sorted by expert, computed by a grouped product of the platform.

But for one case, where it is asked for: room for rows of other devices that is less than all that may come.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ringmoe_jax.moe import dispatch as dispatching
from ringmoe_jax.moe import exchange
from ringmoe_jax.moe.engines import blocks, products, ranges
from ringmoe_jax.moe.engines.layout import Layout
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing, normalised
from ringmoe_jax.parallel.mesh import EXPERT_AXIS

# What `engine = "dropless"` means on each platform. Measured in docs/benchmarks.md: on CPU and, before
# jax 0.12, in the weight gradient on TPU, `ragged_dot` does E times the work.
BY_PLATFORM = {
    "cpu": ("ranges",),
    "tpu": ("megablox",),  # v4, v5e, v5p and v6e: exact work in both directions
    "gpu": ("tokamax", "blocks"),  # the first that is installed
}
OWN = {"ranges": ranges.grouped, "blocks": blocks.grouped}  # without a grouped product


def choose(platform: str, expected: float = math.inf, dtype=jnp.float32) -> str:
    """Name of the grouped product; says so once.

    Args:
        platform: "cpu", "gpu" or "tpu".
        expected: mean number of rows of an expert.
        dtype: of a row.
    """
    names = BY_PLATFORM.get(platform, ("blocks",))
    name = next(n for n in names if n != "tokamax" or importlib.util.find_spec("tokamax"))
    where = platform
    if name == "ranges" and dtype != jnp.float32:  # every range would convert its expert's weights
        name, where = "blocks", f"{platform} in {jnp.dtype(dtype)}"
    elif name == "ranges" and expected < blocks.FEW_ROWS:  # as fast there, and it compiles sooner
        name, where = "blocks", f"{platform} for few rows an expert"
    _say(name, where)
    return name


@functools.cache
def _say(name: str, where: str) -> None:
    print(f'mixture of experts: "dropless" means "{name}" on {where}; model.moe.engine overrules it')


def dropless(
    tokens: jax.Array,
    routings: Sequence[Routing],
    experts: Sequence[Experts],
    layout: Layout,
    *,
    product: str | None = None,
):
    """See `engines.ENGINES`.

    Args:
        tokens: [N, D].
        routings: one per router group.
        experts: one per router group.
        layout: `shards`, `ring` and `platform` matter, and where room is limited `priority` and `after_drops`.
        product: a name of `OWN` or of `products`; default by platform.
    """
    outputs, kept = jnp.zeros_like(tokens), []
    for routing, group in zip(routings, experts, strict=True):
        if layout.shards > 1 and layout.ring:
            added, found = _around(tokens, routing, group, layout, product), jnp.ones(routing.experts.shape, bool)
        elif layout.shards > 1:
            added, found = _exchanged(tokens, routing, group, layout, product)
        else:
            added = _grouped(product, layout.platform, tokens, routing.experts, routing.gates, group)
            found = jnp.ones(routing.experts.shape, bool)
        outputs = outputs + added
        kept.append(found)
    return outputs, tuple(kept)


def _grouped(product, platform, tokens, chosen, gates, experts, expected=None):
    expected = chosen.size / experts.count if expected is None else expected
    product = product or choose(platform, expected, tokens.dtype)
    if product in OWN:
        return OWN[product](tokens, chosen, gates, experts, expected)
    return products.grouped(products.by_name(product, platform), tokens, chosen, gates, experts)


def _around(tokens, routing: Routing, experts: Experts, layout: Layout, product: str | None):
    """Sends every device's experts to all others in turn, each computing its own rows of those that are there.

    Experts are sent to the device before while they compute here. No device has more rows than its own, however
    uneven the routing is. The backward pass keeps all experts that came by, in the dtype of the tokens, and computes
    rows again, for each turn has a buffer for all of them.
    """
    me, shards, local = jax.lax.axis_index(EXPERT_AXIS), layout.shards, experts.count
    before = [(device, (device - 1) % shards) for device in range(shards)]

    @jax.checkpoint
    def added(here: Experts, turn) -> jax.Array:
        first = (me + turn) % shards * local
        own = (routing.experts >= first) & (routing.experts < first + local)
        chosen = jnp.where(own, routing.experts - first, local)
        expected = routing.experts.size / (shards * local)
        return _grouped(product, layout.platform, tokens, chosen, routing.gates, here, expected)

    def step(carry, turn):
        outputs, here = carry
        following = jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, EXPERT_AXIS, before), here)
        return (outputs + added(here, turn), following), None

    start = (jnp.zeros_like(tokens), experts.astype(tokens.dtype))
    (outputs, last), _ = jax.lax.scan(step, start, jnp.arange(shards - 1))
    return outputs + added(last, shards - 1)


def _exchanged(tokens, routing: Routing, experts: Experts, layout: Layout, product: str | None):
    """Sends every choice to the device that holds its expert and back; outputs, and the choices that had room.

    Without `layout.exchange_factor` the receiving buffer has room for the worst case, in which every device sends
    all that one device's experts can take.
    """
    (n, k), local = routing.experts.shape, experts.count
    room = worst = layout.shards * n * min(k, local)
    if layout.exchange_factor:
        room = min(worst, math.ceil(layout.exchange_factor * n * k))
    limited = room < worst
    with jax.named_scope("dispatch"):
        priority = routing.gates.max(axis=1) if layout.priority and limited else None
        choices = dispatching.sort(routing.experts, local * layout.shards, priority)
        plan = exchange.plan(choices.load, layout.shards, room if limited else None)
        if limited:
            choices = dispatching.first(choices, plan.sent)
        dispatch = dispatching.compact(choices, (n, k))
        received = exchange.send(dispatching.gather(tokens, dispatch), plan, room, layout.platform)
        expert = exchange.local_experts(plan, room)
    y = _grouped(
        product, layout.platform, received, expert[:, None], jnp.ones((room, 1)), experts, expected=n * k / local
    )
    with jax.named_scope("combine"):
        rows = exchange.send(y, plan.back, n * k, layout.platform)
        kept = dispatch.kept if limited else jnp.ones((n, k), bool)
        gates = normalised(routing.gates * kept) if limited and layout.after_drops else routing.gates
        return dispatching.combine(rows, dispatch, gates), kept
