"""The training step: forward, weighted objectives, gradients, update. One jitted, donated function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives import Objective
from ringmoe_jax.parallel.mesh import batch_sharding, replicated
from ringmoe_jax.pretext import Pretext
from ringmoe_jax.training.state import TrainState, state_shardings

EPSILON = 1e-5  # keeps the division finite where nothing is hidden (released code)


def make_train_step(
    pretext: Pretext,
    objectives: Mapping[str, Objective],
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    seed: int,
    accumulate: int = 1,
    mesh=None,
) -> Callable[[TrainState, Mapping], tuple[TrainState, dict]]:
    """Builds `step(state, batch) -> (state, metrics)`; the state is donated.

    Like a jitted function it has `step.lower(state, batch)`, which also takes shapes (`jax.ShapeDtypeStruct`).

    Args:
        pretext: forward passes.
        objectives: terms of the loss by label.
        optimizer: update rule.
        learning_rate: for the metrics only.
        seed: of every random decision in the step, together with the step's number.
        accumulate: micro-batches; each takes every `accumulate`-th row, so that it spans all devices.
            Masked means are those of the whole batch. Expert capacity and balance losses are those of
            the micro-batches.
        mesh: None is one device.
    """

    def step(state: TrainState, batch: Mapping, seed: jax.Array) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, pretext_state, metrics = _gradients(state, batch, key, pretext, objectives, accumulate)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        pretext_state = pretext.after(params, pretext_state)
        metrics |= {
            "learning_rate": learning_rate(state.step),
            "norm/gradients": optax.tree.norm(gradients),
            "norm/updates": optax.tree.norm(updates),
            "norm/parameters": optax.tree.norm(params),
        }
        return TrainState(state.step + 1, params, optimizer_state, pretext_state), metrics

    return _jit(step, mesh, seed, donate=True)


def make_eval_step(
    pretext: Pretext, objectives: Mapping[str, Objective], mesh=None
) -> Callable[[TrainState, Mapping], dict]:
    """Builds `step(state, batch) -> {label: (value_sum, weight)}` without randomness, update or donation."""

    def step(state: TrainState, batch: Mapping) -> dict:
        outputs, _ = pretext.apply(state.params, state.pretext, batch, key=None, train=False)
        return {label: objective(outputs, batch)[:2] for label, objective in objectives.items()}

    return _jit(step, mesh, donate=False)


def mean_losses(sums: Sequence[Mapping], objectives: Mapping[str, Objective]) -> dict[str, float]:
    """Exact means over several batches of `make_eval_step`'s sums, what each weighs, and their total under "loss"."""
    losses = {}
    for label in objectives:
        value, weight = (sum(float(batch[label][i]) for batch in sums) for i in (0, 1))
        losses[f"loss/{label}"] = value / max(weight, EPSILON)
    weighted = {f"weighted/{label}": term.scale * losses[f"loss/{label}"] for label, term in objectives.items()}
    return {"loss": sum(weighted.values())} | losses | weighted


def _jit(step, mesh, *seeds: int, donate: bool):
    """Jits `step(state, batch, *seeds)` as a function of state and batch.

    Seeds are arguments of the program and not constants in it, so that runs which differ in them share one
    compiled program.
    """
    donated = (0,) if donate else ()
    sharding = None if mesh is None else replicated(mesh)
    jitted, arrays = None, None

    def place(state):
        if mesh is None:
            return jax.jit(step, donate_argnums=donated)
        placed = state_shardings(state, mesh)  # depends on the state's structure
        return jax.jit(
            step,
            donate_argnums=donated,
            in_shardings=(placed, batch_sharding(mesh), *[sharding] * len(seeds)),
            out_shardings=(placed, sharding) if donate else sharding,
        )

    def call(state, batch):
        nonlocal jitted, arrays
        if jitted is None:
            jitted, arrays = place(state), [jax.device_put(np.uint32(seed), sharding) for seed in seeds]
        return jitted(state, batch, *arrays)

    shapes = [jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding) for _ in seeds]
    call.lower = lambda state, batch: place(state).lower(state, batch, *shapes)  # as a jitted function has it
    return call


def _gradients(state, batch, key, pretext, objectives, accumulate):
    """Gradients, new pretext state and metrics of a batch, in `accumulate` micro-batches."""

    def forward(params, pretext_state, part, part_key):
        outputs, pretext_state = pretext.apply(params, pretext_state, part, key=part_key, train=True)
        return outputs, pretext_state, {label: objective(outputs, part) for label, objective in objectives.items()}

    def loss(params, pretext_state, part, part_key, weights):
        outputs, pretext_state, terms = forward(params, pretext_state, part, part_key)
        weights = {label: term[1] for label, term in terms.items()} if weights is None else weights
        losses = {label: term[0] / jnp.maximum(weights[label], EPSILON) for label, term in terms.items()}
        weighted = {label: objectives[label].scale_at(state.step) * losses[label] for label in objectives}
        total = sum(weighted.values())
        metrics = {f"loss/{label}": value for label, value in losses.items()} | {"loss": total}
        metrics |= {f"weighted/{label}": value for label, value in weighted.items()}
        details = {f"{label}/{name}": v / accumulate for label, term in terms.items() for name, v in term[2].items()}
        routing = {name: v / accumulate for name, v in routing_metrics(outputs.get("routing", {})).items()}
        return total, (pretext_state, metrics | details | routing)

    differentiate = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        gradients, (pretext_state, metrics) = differentiate(state.params, state.pretext, batch, key, None)
        return gradients, pretext_state, metrics

    parts = jax.tree.map(lambda x: _interleaved(x, accumulate), batch)
    keys = jax.random.split(key, accumulate)
    # The weights of the whole batch come first. Where they hang on masks and not on the network, the compiler drops
    # the forward passes of this loop; objects of two views hang on features, and cost another forward pass.
    weights = jax.lax.map(
        lambda xs: {k: t[1] for k, t in forward(state.params, state.pretext, *xs)[2].items()}, (parts, keys)
    )
    weights = jax.tree.map(jnp.sum, weights)

    def body(carry, xs):
        pretext_state, sums = carry
        gradients, (pretext_state, metrics) = differentiate(state.params, pretext_state, *xs, weights)
        return (pretext_state, jax.tree.map(jnp.add, sums, (gradients, metrics))), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    shapes = jax.eval_shape(lambda: differentiate(state.params, state.pretext, *first, weights))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][1]))
    (pretext_state, (gradients, metrics)), _ = jax.lax.scan(body, (state.pretext, zeros), (parts, keys))
    return gradients, pretext_state, metrics


def _interleaved(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]; part i holds the rows i, i + parts, ..."""
    if x.shape[0] % parts:
        raise ConfigError(f"a batch of {x.shape[0]} rows does not split in train.accumulate = {parts} micro-batches")
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def routing_metrics(routing: Mapping) -> dict[str, jax.Array]:
    """What the routers did: one number per router group, and the same by layer and modality.

    `moe/<group>/drop_rate` (share of choices that found their expert full), `entropy` (nats), `gate` (mean
    gate of the chosen experts), `max_load` (load of the busiest expert over the mean) and `dead` (share of
    the experts in reach that got no token) are means over layers. `moe/<group>/by_layer/<name>` holds the
    first three as [L, M] and `load`, the share of a modality's choices on each expert, as [L, M, E]; NaN
    where a modality is absent.
    """
    metrics = {}
    for group, s in routing.items():
        choices, load = s.load.sum(axis=-1), s.load.sum(axis=1)  # [L, M], [L, E]
        reached = s.reach.sum(axis=1) > 0  # [L, E]
        count = reached.sum(axis=1)
        metrics |= {
            f"moe/{group}/drop_rate": s.dropped.sum() / jnp.maximum(choices.sum(), 1),
            f"moe/{group}/entropy": s.entropy.sum() / jnp.maximum(s.tokens.sum(), 1),
            f"moe/{group}/gate": s.gate.sum() / jnp.maximum(choices.sum(), 1),
            f"moe/{group}/max_load": jnp.mean(load.max(axis=1) * count / jnp.maximum(load.sum(axis=1), 1)),
            f"moe/{group}/dead": jnp.mean(jnp.sum(reached & (load == 0), axis=1) / jnp.maximum(count, 1)),
            f"moe/{group}/by_layer/drop_rate": s.dropped / choices,
            f"moe/{group}/by_layer/entropy": s.entropy / s.tokens,
            f"moe/{group}/by_layer/gate": s.gate.sum(axis=-1) / choices,
            f"moe/{group}/by_layer/load": s.load / choices[..., None],
        }
    return metrics
