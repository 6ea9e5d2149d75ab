"""Weights of others as a run: a file in, a checkpoint out that evaluate, finetune, predict and export open like any.

    python -m experiments.convert encoder.pt --source galileo --out runs/galileo_nano --sensors s2_10
    python -m experiments.convert swinv2.safetensors --source timm --out runs/swin --model window=16 --licence MIT
    python -m experiments.convert skysense_model_backbone_s2.pth --source skysense --out runs/skysense_s2
    python -m experiments.convert runs/galileo_nano --out encoder.safetensors    # out again, under the source's names
    python -m experiments.convert runs/reference --out mine.safetensors          # one file of a run of ours, and back:
    python -m experiments.convert mine.safetensors --out runs/mine               # or "reference", which comes with us

No file's code is run, and PyTorch is not needed. Licence, source, hash and normalisation stay with the run, and with
what is trained on it. `--model a.b=value` sets fields of the model that tensors do not tell.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.run import cli
from ringmoe_jax.errors import ConfigError

FLOAT32 = "float32"
IMAGE_SIZE = 64  # pixels that a model without a size of its own is shown


def fields(assignments: Sequence[str]) -> dict[str, Any]:
    """Nested fields of "a.b=value": Python's literals, and texts.

    Raises:
        ConfigError: no "=".
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f'--model "{assignment}": wanted FIELD=VALUE, such as window=16')
        *parts, last = name.split(".")
        inner = values
        for part in parts:
            inner = inner.setdefault(part, {})
        try:
            inner[last] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            inner[last] = text
    return values


def bring_in(options: argparse.Namespace) -> None:
    """Converts a file to a run and prints what it is.

    Raises:
        UserError: see `ringmoe_jax.interop.convert`; or the folder holds something else.
    """
    from ringmoe_jax import interop, weights
    from ringmoe_jax.models import count, image_sizes
    from ringmoe_jax.run import IMPORTED

    out = Path(options.out)
    if any(path.name.isdigit() for path in out.glob("checkpoints/*")):  # what is unfinished is begun anew
        raise ConfigError(f"{out} holds a run: choose another folder, or delete it")
    chosen = {"sensors": tuple(options.sensors)} if options.sensors else {}
    file = weights.path(options.file) if options.file in weights.names() else Path(options.file)
    name = options.source or (interop.OWN if interop.is_own(file) else "")
    source = interop.SOURCES.build({"name": name, **chosen}, "--source")
    run = interop.convert(
        source,
        file,
        changes=fields(options.model),
        image_size=options.image_size,
        directory=options.dataset,
        statistics=measured(options.dataset, source.sensors),
        licence=options.licence,
    )
    run = run.save(out, run.origin, IMPORTED)
    model = run.record["config"]["model"]
    sizes = {name: f" at {size} px" for name, size in image_sizes(model).items()}
    shown = ", ".join(f"{name}{sizes.get(name, '')}" for name in run.statistics)
    print(f"model       {model['name']}: {count(run.params):,} parameters, {shown}")
    for name in ("source", "citation", "licence", "file", "sha256"):
        print(f"{name:<11} {run.origin[name]}")
    for name, statistics in run.statistics.items():
        print(f"normalised  {name}: {statistics.source}")
    print(f"checkpoint  {out}; next: python -m experiments.evaluate --checkpoint {out} --dataset data/mine")


def measured(directory: str, sensors: Sequence[str]) -> Mapping[str, Any]:
    """Statistics of a data set's training tiles by sensor; {} without one."""
    if not directory:
        return {}
    from input_pipeline.dataset import open_dataset

    stored = open_dataset(directory, ()).metadata.sensors
    shown = tuple(name for name in sensors if name in stored)
    dataset = open_dataset(directory, shown)
    return {name: dataset.statistics(name) for name in shown}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="safetensors, or what torch.save wrote; the folder of a run; or weights that come "
                        "with the library: reference")  # fmt: skip
    parser.add_argument(
        "--out", type=cli.local, required=True, help="folder of the run; of a run, the safetensors file"
    )
    parser.add_argument(
        "--source", default="", help="skysense, timm, galileo, presto; a run's and a file's own by default"
    )
    parser.add_argument("--sensors", nargs="+", default=(), help="that the model takes; default: the source's")
    parser.add_argument("--model", nargs="+", default=(), metavar="FIELD=VALUE", help="of the model, over the file's")
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="of models that take any (%(default)s px)")
    parser.add_argument("--dataset", default="", help="data set that verbs read, and whose normalisation sensors get "
                        "of which the source says nothing")  # fmt: skip
    parser.add_argument("--licence", default="", help="of this file, where the source does not know it")
    parser.add_argument("--title", default="", help="of a file of our own: what its weights are and were trained on")
    parser.add_argument("--citation", default="", help="of a file of our own: how to cite it")
    parser.add_argument("--dtype", default=FLOAT32, help="of a file of our own: float32, bfloat16 or float16")
    cli.add_modules(parser)
    options = parser.parse_args(arguments)
    if Path(options.file).is_dir() and (options.sensors or options.model or options.dataset):
        parser.error("--sensors, --model and --dataset are for bringing weights in, not for a run")
    if not Path(options.file).is_dir() and _describes(options):
        parser.error("--title, --citation and --dtype are for writing a run, not for bringing weights in")
    return options


def _describes(options: argparse.Namespace) -> bool:
    """Whether anything is said that only a file of our own holds."""
    return bool(options.title or options.citation or options.dtype != FLOAT32)


@cli.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = parse(arguments)
    if not Path(options.file).is_dir():
        bring_in(options)
        return 0
    from ringmoe_jax import interop
    from ringmoe_jax.run import FEATURES, Run

    run = Run.open(options.file, kinds=FEATURES)
    if (options.source or run.origin.get("map", interop.OWN)) == interop.OWN:
        about = {"source": options.title, "licence": options.licence, "citation": options.citation}
        about = {name: text for name, text in about.items() if text}
        interop.write_run(run, options.out, dtype=options.dtype, about=about)
        print(
            f"{options.out}: the encoder of {options.file}; back again: experiments.convert {options.out} --out FOLDER"
        )
        return 0
    if _describes(options):
        raise ConfigError("--title, --citation and --dtype are for files of our own, which have no --source")
    source = interop.write_tensors(run, options.out, options.source)
    print(f"{options.out}: the weights of {options.file} under the names of {source.title}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
