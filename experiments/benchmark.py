"""Times the project against the ideal and against peers, as ratios within one run.

    python -m experiments.benchmark --suite moe                      # the layer, 48 points: about an hour on 2 cores
    python -m experiments.benchmark --suite moe --widths 256 --dtypes float32
    python -m experiments.benchmark --suite train --config configs/ringmoe_micro.py
    python -m experiments.benchmark --suite input --config configs/ringmoe_micro.py
    python -m experiments.benchmark --suite gpu --minutes 4           # on one accelerator; small sizes elsewhere
    python -m experiments.benchmark --suite reference --minutes 10    # what the reference recipe is worth by then
    python -m experiments.benchmark --suite balance                   # loads of experts, by what balances them
    python -m experiments.benchmark --suite scene --checkpoint runs/seg   # a drawn scene through a model
    python -m experiments.benchmark --suite probe                     # linear probes of drawn features
    python -m experiments.benchmark --suite stem                      # one for any bands over one for those it knows

PyTorch's figures appear beside ours where PyTorch is installed. With `--before FOLDER`, a checkout of another version
(`git worktree add FOLDER COMMIT`), that version's take turns with ours, in suites moe, train and stem. `--json` prints
one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks import before, moe
from experiments.run import cli
from ringmoe_jax import clock
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.training.loop import count_images

# What suites measure where --config does not say.
MICRO, REFERENCE = "configs/ringmoe_micro.py", "configs/reference.py"


def suite_moe(arguments: argparse.Namespace) -> dict:
    """The mixture-of-experts layer over a dense layer of equal active FLOPs."""
    torch = installed("torch")
    results = []
    points = moe.grid(
        arguments.widths, arguments.experts, arguments.top_k, arguments.dtypes, arguments.routing, arguments.tokens
    )
    print("time over a dense layer of the same active FLOPs, forward and backward; ms of the dense layer in brackets")
    for point in points:
        earlier = arguments.version.jobs("moe", dataclasses.asdict(point)) if arguments.version else {}
        results.append(moe.measure(point, arguments.repeats, torch=torch, others=earlier))
        ratio, seconds = results[-1]["ratio"], results[-1]["seconds"]
        line = [f"{name} {value:.2f}" for name, value in ratio.items()]
        dense = [f"{1e3 * seconds[name]:.0f}" for name in seconds if name.endswith("dense layer")]
        print(f"{point!s:<34} {'   '.join(line)}   [{' / '.join(dense)}]", flush=True)
    means = {}
    for key in dict.fromkeys((r["point"]["dtype"], r["point"]["popularity"]) for r in results):
        chosen = [r["ratio"] for r in results if (r["point"]["dtype"], r["point"]["popularity"]) == key]
        means[" ".join(key)] = {name: clock.geometric_mean([r[name] for r in chosen]) for name in chosen[0]}
        line = [f"{name} {value:.2f}" for name, value in means[" ".join(key)].items()]
        print(f"{'geometric mean, ' + ' '.join(key):<34} {'   '.join(line)}")
    return {"points": results, "geometric_mean": means}


def suite_train(arguments: argparse.Namespace) -> dict:
    """The train step over the same backbone with a dense layer of equal active FLOPs, and over a PyTorch twin."""
    from experiments.benchmarks import train

    checked = PretrainConfig.of(cli.read_config(arguments.config, arguments.overrides))
    jobs = train.measured(checked.complete(), moe.ENGINES)
    batch = train.random_batch(checked, 0)
    if installed("torch"):
        jobs |= train.torch_jobs(checked, batch, compiled=arguments.compile_peer)
    if arguments.version:
        jobs |= arguments.version.jobs("train", {"config": arguments.config, "overrides": arguments.overrides})
    print(
        f"one train step of {arguments.config}, {count_images(batch)} images, {len(jobs)} programs; first they compile"
    )
    seconds = clock.interleaved(jobs, arguments.repeats)
    for name, value in seconds.items():
        print(
            f"{name:<22} {1e3 * value:7.1f} ms   {count_images(batch) / value:7.1f} images/s   "
            f"{value / seconds[train.DENSE]:.2f} of the dense backbone"
        )
    return {"seconds": seconds, "images": count_images(batch)}


def suite_input(arguments: argparse.Namespace) -> dict:
    """What both readers give a second and a core, what a host needs, and what a step waits where a store is slow."""
    from experiments.benchmarks import reading

    data = PretrainConfig.of(cli.read_config(arguments.config, arguments.overrides)).data
    result, step = {}, arguments.step / 1000
    if arguments.hosts:
        count, size = reading.needs(data, arguments.hosts, step)
        result["a host needs"] = {"records": count, "megabytes": size}
        need = f"{count:,.0f} records/s, {size:,.1f} MB/s"
        print(f"each of {arguments.hosts} hosts needs {need} at {arguments.step:g} ms a step")
    if arguments.needs:
        return result
    rates = reading.measure(data, batches=10 * arguments.repeats)
    for name, rate in rates.items():
        print(f"{name:<16}{rate}")
    result |= {name: dataclasses.asdict(rate) for name, rate in rates.items()}
    if "tf" in rates:
        waits = reading.stalls(data, step, arguments.delay / 1000, 10 * arguments.repeats)
        for name, seconds in waits.items():
            print(
                f"{name:<16}steps of {arguments.step:g} ms wait {1e3 * seconds:.1f} ms where a request takes "
                f"{arguments.delay:g} ms"
            )
        result["waits"] = waits
    return result


def suite_gpu(arguments: argparse.Namespace) -> dict:
    """What one accelerator measures at best, and what experts, train steps and an exported program reach and give."""
    from experiments.benchmarks import gpu

    setting = gpu.TINY if arguments.tiny or jax.default_backend() == "cpu" else gpu.Setting()
    changed = {name: getattr(arguments, name) for name in ("minutes", "repeats", "threads")}
    return gpu.measure(dataclasses.replace(setting, **changed), arguments.parts)


def suite_reference(arguments: argparse.Namespace) -> dict:
    """What the reference recipe, or another one, is worth after some minutes of training on this machine."""
    from experiments.benchmarks import gpu, reference

    cli.start(alone=True)
    values = cli.read_config(arguments.config, arguments.overrides)
    setting = gpu.TINY if arguments.tiny else gpu.Setting(side=2048 if jax.default_backend() == "cpu" else 8192)
    with tempfile.TemporaryDirectory() as folder:
        return reference.measure(values, arguments.minutes, folder, setting)


def suite_balance(arguments: argparse.Namespace) -> dict:
    """How evenly a layer that learns uses its experts: without help, by the balance loss, by biases."""
    from experiments.benchmarks import balance

    found = balance.measure(arguments.steps, arguments.seeds)
    tenths = [part for part in np.array_split(np.arange(arguments.steps), 10) if part.size]
    result = {}
    print(
        f"load of the busiest of {balance.EXPERTS} experts over the mean, by tenths of {arguments.steps} steps; error"
    )
    for setting, arms in found.items():
        print(setting)
        result[setting] = {}
        for name, curves in arms.items():
            by_tenth = {curve: [values[:, part].mean(axis=1) for part in tenths] for curve, values in curves.items()}
            loads = " ".join(f"{seeds.mean():.2f}" for seeds in by_tenth["max_load"])
            last = by_tenth["error"][-1]
            print(f"{name:<16}{loads}   {last.mean():.3f} ({last.min():.3f} to {last.max():.3f})", flush=True)
            result[setting][name] = {curve: np.asarray(values).tolist() for curve, values in by_tenth.items()}
    return {"settings": result}


def suite_scene(arguments: argparse.Namespace) -> dict:
    """A prediction of a whole scene over its computing alone, and what its time goes into."""
    from experiments.benchmarks import scene

    values = None if arguments.checkpoint else cli.read_config(arguments.config, arguments.overrides)
    with tempfile.TemporaryDirectory() as folder:
        shown = scene.model(values, arguments.checkpoint)
        found = scene.measure(shown, arguments.megapixels, arguments.repeats, arguments.batch, Path(folder))
    windows = f"{found['windows']} windows of {shown.size} px, {found['batch']} at a time"
    print(f"{found['megapixels']:.3g} megapixels, {windows}")
    for name, seconds in found["seconds_a_megapixel"].items():
        print(f"{name:<16}{seconds:8.3f} s a megapixel{found['seconds'][name]:10.2f} s")
    print(f"ratio           {found['ratio']:8.2f}")
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found["shares"].items())
    print(f"of a prediction's time: {shares}; all but waiting go on at the same time")
    return found


def suite_probe(arguments: argparse.Namespace) -> dict:
    """Linear probes over their products alone and over scikit-learn's solver, and several at the same time."""
    from experiments.benchmarks import probing

    found = probing.measure(arguments.tiles, arguments.features, arguments.classes, arguments.repeats)
    print(f"{found['tiles']:,} tiles, {found['width']} features, {found['classes']} classes")
    for name, seconds in found["seconds"].items():
        print(f"{name:<18}{seconds:8.3f} s")
    ratio = found["ratio"]
    peer, alone, together = (ratio[name] for name in (probing.PEER, probing.PRODUCTS, probing.TOGETHER))
    print(f"the path takes {1 / peer:.2f} of scikit-learn's time and {alone:.2f} of its products'")
    print(f"probes side by side are {together:.2f} times as fast as in turn")
    return found


def suite_stem(arguments: argparse.Namespace) -> dict:
    """A stem that is made from what bands are over a patch embedding for the same ones, forward and backward."""
    from experiments.benchmarks import stem

    print(f"stems of the bands of {stem.SENSOR}: made from what bands are, over fixed ones")
    points = []
    for point in stem.POINTS[: 1 if arguments.tiny else None]:
        earlier = arguments.version.jobs("stem", dataclasses.asdict(point)) if arguments.version else {}
        points.append(stem.measure(point, arguments.repeats, earlier))
        seconds, ratio = points[-1]["seconds"], points[-1]["ratio"]
        both = " over ".join(f"{1e3 * seconds[name]:.2f}" for name in (stem.PHYSICS, stem.FIXED))
        old = "".join(f", {name} {1e3 * seconds[name]:.2f}" for name in earlier)
        print(f"{point!s:<68} {ratio:.2f}   [{both} ms{old}]", flush=True)
    mean = clock.geometric_mean([point["ratio"] for point in points])
    print(f"geometric mean {mean:.2f}")
    return {"points": points, "geometric_mean": mean}


SUITES: dict[str, Callable[[argparse.Namespace], dict]] = {
    "moe": suite_moe,
    "train": suite_train,
    "input": suite_input,
    "gpu": suite_gpu,
    "reference": suite_reference,
    "balance": suite_balance,
    "scene": suite_scene,
    "probe": suite_probe,
    "stem": suite_stem,
}


def installed(name: str) -> bool:
    """Whether a peer can be timed; says so where it cannot."""
    found = importlib.util.find_spec(name) is not None
    if not found:
        print(f"{name} is not installed: no peer beside our figures")
    return found


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    device = jax.devices()[0]
    return {
        "commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} x {device.device_kind}",
    }


def listed(kind: type, known: Sequence[str] = ()) -> Callable[[str], list]:
    """A type for argparse: comma-separated values of a kind, each one of `known` where given."""

    def values(text: str) -> list:
        try:
            found = [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f'"{text}": wanted whole numbers, separated by commas') from error
        if wrong := [value for value in found if (known and value not in known) or (kind is int and value < 1)]:
            raise argparse.ArgumentTypeError(f'"{wrong[0]}": wanted {" or ".join(known) or "numbers of at least 1"}')
        return found

    return values


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--suite", required=True, help=", ".join(SUITES))
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of every job; medians are shown")
    parser.add_argument("--before", default="", help="a checkout whose jobs take turns with ours (moe, train, stem)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    layer = parser.add_argument_group("suite moe, comma-separated")
    layer.add_argument("--tokens", type=int, default=4096)
    layer.add_argument("--widths", type=listed(int), default="256,512")
    layer.add_argument("--experts", type=listed(int), default="8,16,64")
    layer.add_argument("--top-k", type=listed(int), default="1,2")
    layer.add_argument("--dtypes", type=listed(str, moe.DTYPES), default="float32,bfloat16")
    layer.add_argument("--routing", type=listed(str, tuple(moe.POPULARITY)), default="even,zipf")
    parser.add_argument(
        "--config", default="", help=f"of reference (default {REFERENCE}), train, input and scene (default {MICRO})"
    )
    parser.add_argument("--compile-peer", action="store_true", help="suite train: PyTorch's loop by torch.compile, too")
    host = parser.add_argument_group("suite input")
    host.add_argument("--step", type=float, default=200.0, help="milliseconds of a train step (%(default)s)")
    host.add_argument("--hosts", type=int, default=0, help="that share a batch: what each of them needs")
    host.add_argument("--needs", action="store_true", help="no more than that; the data need not be there")
    host.add_argument("--delay", type=float, default=50.0, help="milliseconds of a request to a slow store")
    card = parser.add_argument_group("suites gpu and reference")
    card.add_argument("--minutes", type=float, default=4.0, help="gpu: no part begins later; reference: of training")
    card.add_argument("--parts", type=listed(str), default=(), help="some parts, comma-separated; default: all")
    card.add_argument("--threads", type=int, default=8, help="that compile")
    card.add_argument("--tiny", action="store_true", help="small sizes, as on a CPU; of stem the first alone")
    even = parser.add_argument_group("suite balance")
    even.add_argument("--steps", type=int, default=400, help="of every arm (%(default)s)")
    even.add_argument("--seeds", type=int, default=3, help="of every arm (%(default)s)")
    scene = parser.add_argument_group("suite scene")
    scene.add_argument("--checkpoint", default="", help="a run instead of a new model of --config")
    scene.add_argument("--megapixels", type=float, default=4.0, help="of the drawn scene (%(default)s)")
    scene.add_argument("--batch", type=int, help="windows at a time (default: as experiments.predict chooses)")
    drawn = parser.add_argument_group("suite probe")
    drawn.add_argument("--tiles", type=int, default=4000, help="that are fitted (%(default)s)")
    drawn.add_argument("--features", type=int, default=512, help="of a tile (%(default)s)")
    drawn.add_argument("--classes", type=int, default=10, help="(%(default)s)")
    parsed, parsed.overrides = parser.parse_known_args(arguments)
    parsed.config = parsed.config or (REFERENCE if parsed.suite == "reference" else MICRO)
    return parsed


@cli.entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one suite; exit status 1 where a part of it failed."""
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    if parsed.suite not in SUITES:
        raise ConfigError(f'--suite "{parsed.suite}" does not exist: wanted one of {", ".join(SUITES)}')
    if (parsed.suite in ("moe", "gpu", "balance", "probe", "stem") or parsed.checkpoint) and parsed.overrides:
        raise ConfigError(f'unknown argument "{parsed.overrides[0]}": --help names those of --suite {parsed.suite}')
    if parsed.before and parsed.suite not in before.SUITES:
        raise ConfigError(f"--before is for the suites {', '.join(before.SUITES)}, not for {parsed.suite}")
    found = machine()
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    with before.Version(parsed.before) if parsed.before else contextlib.nullcontext() as parsed.version:
        result = SUITES[parsed.suite](parsed)
    if parsed.json:
        print(json.dumps({"suite": parsed.suite, "machine": found} | result))
    return 1 if result.get("failures") else 0


if __name__ == "__main__":
    main()
