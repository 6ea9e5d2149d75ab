"""What the method costs on an accelerator, beside what that measures at best, and whether it is right there.

Parts, each on its own: what fails or finds no time says so in one line, and the others go on.

    peak      a large bfloat16 product and a copy of device memory: what fractions refer to
    values    engines of the experts' layer against the dense reference in float64 on the CPU
    experts   engines against a dense layer of the same active FLOPs
    train     a RingMoE train step by engine, against its dense twin: images/s and model FLOPs utilisation
    export    an exported program against the model, and against itself on the CPU
    skysense  a SkySense train step

Nothing here reads data, and TensorFlow is not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import experts, moe, train
from experiments.run import cli
from ringmoe_jax import clock, deploy, models
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.moe.engines.dropless import choose
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.training.loop import count_images

PROGRAM_LIMIT = 1e-3  # largest error of an exported program in float32, over the largest output


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured; the defaults suit one large accelerator.

    Attributes:
        minutes: no part begins later.
        repeats: timed turns; medians are shown.
        threads: that compile.
        calls: of a short program in each turn.
        side: of the large product.
        copied: float32 numbers of the copy.
        cases: small layers whose values are compared.
        points: layers that are timed.
        config, overrides: of the train step.
        skysense: its configuration file and overrides.
        program: configuration file and overrides of the exported model, which the CPU runs as well.
    """

    minutes: float = 4.0
    repeats: int = 7
    threads: int = 8
    calls: int = 5
    side: int = 8192
    copied: int = 2**28
    cases: tuple[experts.Case, ...] = experts.CASES
    points: tuple[moe.Point, ...] = tuple(
        moe.Point(16_384, 1024, count, 2, "bfloat16", popularity)
        for count, popularity in ((8, "even"), (8, "zipf"), (64, "even"), (64, "zipf"))
    )
    config: tuple[str, ...] = ("configs/ringmoe.py:tiny", "--config.model.remat=none")
    skysense: tuple[str, ...] = ("configs/skysense.py:small", "--config.data.batch_size=32")
    program: tuple[str, ...] = ("configs/ringmoe_micro.py",)


_SMALL = ("--config.model.depths=(1,)", "--config.model.image_size=16", "--config.data.image_size=16")
TINY = Setting(
    calls=1,
    side=256,
    copied=2**16,
    cases=experts.CASES[1:],
    points=(moe.Point(64, 8, 4, 2, "bfloat16", "even"),),
    config=("configs/ringmoe_micro.py", *_SMALL, "--config.model.dtype=bfloat16"),
    skysense=("configs/skysense_micro.py", "--config.data.batch_size=4"),
    program=("configs/ringmoe_micro.py", *_SMALL),
)


def measure(setting: Setting, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the parts in their order.

    Args:
        setting: sizes and limits.
        parts: of `PARTS`; all where empty.

    Returns:
        {part: its figures}, "minutes" that each took, "skipped" and "failures", {what: one line}.

    Raises:
        ConfigError: no such part.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError(f'--parts "{unknown[0]}" does not exist: wanted some of {", ".join(PARTS)}')
    found: dict[str, Any] = {"minutes": {}, "skipped": {}, "failures": {}}
    started = time.perf_counter()
    for name in parts or PARTS:
        begun = time.perf_counter()
        if begun - started > 60 * setting.minutes:
            found["skipped"][name] = f"{(begun - started) / 60:.1f} minutes had passed, --minutes {setting.minutes:g}"
            print(f"skipped: {name}: {found['skipped'][name]}")
            continue
        print(f"\n{name}", flush=True)
        try:
            found[name] = PARTS[name](setting, found)
            failures = found[name].pop("failures", {})
        except Exception as error:
            failures = {"": experts.reason(error)}
        failures = {f"{name}: {what}".rstrip(": "): text for what, text in failures.items()}
        for what, text in failures.items():
            print(f"failed: {what}: {text}", flush=True)
        found["failures"] |= failures
        found["minutes"][name] = (time.perf_counter() - begun) / 60
    return found


# ---- Parts ------------------------------------------------------------------------------------------


def peak(setting: Setting, found: Mapping[str, Any], dtype: str = "bfloat16") -> dict[str, Any]:
    """FLOP/s of a square product and bytes/s of a copy, read and written."""
    del found
    a, b = (jax.random.normal(jax.random.key(i), (setting.side,) * 2, dtype) for i in range(2))
    x = jax.random.normal(jax.random.key(2), (setting.copied,))
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    jobs = {"product": lambda: product(a, b), "copy": lambda: copy(x)}
    seconds = clock.interleaved(jobs, setting.repeats, calls=setting.calls)
    flops, traffic = 2 * setting.side**3 / seconds["product"], 2 * x.nbytes / seconds["copy"]
    print(f"{setting.side}³ {dtype} {flops / 1e12:.4g} TFLOP/s, copy {traffic / 1e9:.4g} GB/s read and written")
    return {"flops": flops, "bandwidth": traffic, "side": setting.side}


def values(setting: Setting, found: Mapping[str, Any]) -> dict[str, Any]:
    """See `experts.values`."""
    del found
    return experts.values(setting.cases, setting.threads)


def layer(setting: Setting, found: Mapping[str, Any]) -> dict[str, Any]:
    """See `experts.speed`."""
    print(f"{'':54}time = over the dense layer (of the measured peak)")
    return experts.speed(setting.points, _peak(found), setting.repeats, setting.calls, setting.threads)


def train_step(setting: Setting, found: Mapping[str, Any]) -> dict[str, Any]:
    """One step of RingMoE on a batch that is on the device, by engine, and of its dense twin.

    Model FLOPs are the products of the dense twin's step without recomputation, for all: those of a token's experts,
    without what an engine adds to them.
    """
    config = _config(setting.config)
    dense = train.dense_backbone(config)
    engines = dict.fromkeys(("capacity", choose(experts.platform()), "blocks"))
    variants = {name: train.with_engine(config, name) for name in engines} | {train.DENSE: dense}
    return _steps(setting, found, variants, dense, setting.config)


def skysense_step(setting: Setting, found: Mapping[str, Any]) -> dict[str, Any]:
    """One step of SkySense, two views, teacher and student, on a batch that is on the device."""
    config = _config(setting.skysense)
    return _steps(setting, found, {"skysense": config}, config, setting.skysense)


def _steps(setting, found, variants: Mapping[str, Mapping], counted: Mapping, source: Sequence[str]) -> dict[str, Any]:
    """Times train steps: "counted" is the configuration whose model FLOPs hold for all variants."""
    best, flops = _peak(found), train.model_flops(counted)
    batch = jax.device_put(train.random_batch(PretrainConfig.of(counted), 0))
    images = count_images(batch)
    jobs, failures = experts.together(
        {name: functools.partial(train.Job, variant, batch) for name, variant in variants.items()}, setting.threads
    )
    losses, failed = experts.together({n: functools.partial(_first_loss, job) for n, job in jobs.items()}, 1)
    seconds = clock.interleaved({name: jobs[name] for name in losses}, setting.repeats)
    mfu = {name: flops / value / best for name, value in seconds.items()}
    for name, value in seconds.items():
        print(
            f"{name:<15} {1e3 * value:8.1f} ms {images / value:8.0f} images/s {100 * mfu[name]:5.1f} % of the peak"
            + (f", {value / seconds[train.DENSE]:.2f} of the dense twin" if train.DENSE in seconds else "")
            + f", first loss {losses[name]:.4g}, temporaries {jobs[name].temporaries / 2**30:.2f} GiB",
            flush=True,
        )
    return {
        "source": source,
        "images": images,
        "model_flops": flops,
        "seconds": seconds,
        "images_per_second": {name: images / value for name, value in seconds.items()},
        "mfu": mfu,
        "first_loss": losses,
        "temporaries": {name: job.temporaries for name, job in jobs.items()},
        "failures": failures | failed,
    }


def _first_loss(job: train.Job) -> float:
    loss = float(job()["loss"])
    if not np.isfinite(loss):
        raise ArithmeticError(f"the loss of the first step is {loss}")
    return loss


def exported(setting: Setting, found: Mapping[str, Any]) -> dict[str, Any]:
    """Features of RingMoE as StableHLO for CPUs, CUDA and TPUs, in float32: this device against model and CPU."""
    del found
    config = PretrainConfig.of(cli.read_config(setting.program[0], setting.program[1:]))
    sensors = config.sensors
    model = models.build(
        models.with_engine(config.model, "dense"),
        sensors=sensors,
        statistics={name: sensor.statistics for name, sensor in sensors.items()},
    )

    def apply(params, inputs):
        batch: dict[str, dict] = {}
        for name, x in inputs.items():
            sensor, _, entry = name.partition("/")
            batch.setdefault(sensor, {})[entry] = x
        return model.apply(params, {"sensors": batch})["pooled"]

    batch = train.random_batch(config, 0)["sensors"]
    inputs = {f"{name}/{key}": batch[name][key] for name in sensors for key in ("pixels", "valid")}
    one = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in inputs.items()}
    with jax.default_matmul_precision("highest"):
        params = model.init(jax.random.key(0))
        used = deploy.trim(apply, params, one)
        program = deploy.lower(*used)
        wanted = jax.jit(used.apply)(used.params, inputs)
    outputs = {}
    for where in dict.fromkeys((jax.devices()[0], jax.devices("cpu")[0])):
        with jax.default_device(where):
            outputs[where.platform] = jax.jit(jax.export.deserialize(program.serialised).call)(program.weights, inputs)
    device, cpu = outputs[jax.devices()[0].platform], outputs["cpu"]
    errors = {"model": experts.largest_error(device, wanted), "cpu": experts.largest_error(device, cpu)}
    for name, error in errors.items():
        print(f"program on {jax.devices()[0].platform} against {name:<6} {error:.1e}   limit {PROGRAM_LIMIT:.0e}")
    wrong = {
        n: f"error {x:.2g}, wanted {PROGRAM_LIMIT:.2g} at most" for n, x in errors.items() if not x <= PROGRAM_LIMIT
    }
    return {
        "platforms": deploy.PLATFORMS,
        "bytes": len(program.serialised),
        "errors": errors,
        "limit": PROGRAM_LIMIT,
        "failures": wrong,
    }


def _config(source: Sequence[str]) -> dict[str, Any]:
    """A configuration file with overrides, with every default filled in."""
    return PretrainConfig.of(cli.read_config(source[0], source[1:])).complete()


def _peak(found: Mapping[str, Any]) -> float:
    """FLOP/s that were measured; without them there is nothing to compare with."""
    with contextlib.suppress(KeyError):
        return found["peak"]["flops"]
    raise ConfigError("the peak was not measured: add peak to --parts, before this one")


PARTS: dict[str, Callable[[Setting, Mapping[str, Any]], dict[str, Any]]] = {
    "peak": peak,
    "values": values,
    "experts": layer,
    "train": train_step,
    "export": exported,
    "skysense": skysense_step,
}
