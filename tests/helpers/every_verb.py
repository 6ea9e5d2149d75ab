"""Every verb on tiny inputs, as a program of its own, and what it gives: to be killed, or to run out of room."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import numpy as np
import rasterio
from rasterio.transform import from_origin

from input_pipeline.dataset import open_dataset
from ringmoe_jax import deploy, sensors
from ringmoe_jax.errors import UserError
from ringmoe_jax.run import Run
from tests.helpers import jobs, tiny_data
from tests.helpers.jobs import Job

ROOT = Path(__file__).parents[2]
MODEL = dict(name="ringmoe", sensors=("s1_grd",), width=8, depths=(1,), image_size=8, patch=2, window=2, head_width=4)
LIMIT = 900  # seconds of one command, on a busy machine


def configuration(folder: Path, **values) -> dict:
    """Writes a file of a configuration of the folder's data set, and gives what it says."""
    stream = dict(directory=str(folder / "data"), sensors=("s1_grd",), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    values |= dict(
        data=dict(streams=dict(all=stream), image_size=8, batch_size=4, mask_unit=2 if "model" in values else 0),
        optimizer=dict(learning_rate=1e-2, warmup_steps=0),
        train=dict(steps=30, log_every=1, checkpoint_every=5, evaluate_every=15),
    )
    return written(folder / f"{'pretrain' if 'model' in values else 'finetune'}.py", values)


def written(path: Path, values: dict) -> dict:
    """Writes a configuration file that says `values`, and gives them."""
    path.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({values!r})\n"
    )
    return values


# ---- What a verb gives --------------------------------------------------------------------------------


def logged(out: Path) -> list[dict]:
    """Metrics without times."""
    lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def parameters(out: Path) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(Run.open(out).params)]


def scores(out: Path) -> dict:
    result = json.loads((out / "report" / "evaluation.json").read_text())
    return {name: result[name] for name in ("step", "probes", "ranks", "reconstruction", "routing", "specialisation")}


def saved(*names: str) -> Callable[[Path], list]:
    """What JSON files of a folder hold; of an object with versions and a date its results."""
    read = lambda path: json.loads(path.read_text())  # noqa: E731
    return lambda out: [found.get("results", found.get("rows", found)) for found in map(read, map(out.joinpath, names))]


def dataset(out: Path) -> tuple:
    """Sizes and statistics of all pixels; the order of fields in a record differs between processes."""
    opened = open_dataset(str(out), ["s1_grd"])  # compares checksums
    return (*(opened.size(split) for split in ("train", "validation")), opened.statistics("s1_grd"))


def export(out: Path) -> tuple:
    """Weights, and what the program takes and gives; checksums of all files are compared."""
    facts = deploy.load(out)[1]["properties"]
    return (out / "model.safetensors").read_bytes(), facts["mlm:input"], facts["mlm:output"]


def page(out: Path) -> str:
    """Without its date, and its folder's path and name."""
    text = re.sub(r"Written [^.]* UTC", "", (out / "report.html").read_text())
    return text.replace(str(out), "").replace(out.name, "")


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb as these tests run it.

    Attributes:
        arguments: of the folder of inputs, and of what it writes.
        gives: what can be compared of what it wrote.
        copies: the folder of inputs that it writes into, of which every attempt gets a copy.
    """

    arguments: Callable[[Path, Path], list]
    gives: Callable[[Path], object]
    copies: str = ""


VERBS = {
    "prepare": Verb(
        lambda base, out: ["--simulate", 12, "--sensors", "s1_grd", "--size", 64, "--overwrite", "--out", out], dataset
    ),
    "pretrain": Verb(lambda base, out: ["--config", base / "pretrain.py", "--workdir", out], logged),
    "finetune": Verb(lambda base, out: ["--config", base / "finetune.py", "--workdir", out], logged),
    "evaluate": Verb(lambda base, out: ["--checkpoint", out], scores, copies="pretrain"),
    "compress": Verb(
        lambda base, out: [
            *["--checkpoint", base / "pretrain", "--modality", "s1_grd", "--method", "mean", "--distil", 6],
            *["--out", out],
        ],
        parameters,
    ),
    "export": Verb(lambda base, out: ["--checkpoint", base / "pretrain", "--out", out], export),
    "convert": Verb(lambda base, out: [base / "pretrain.safetensors", "--out", out], parameters),
    "predict": Verb(
        lambda base, out: [base / "scene.tif", "--checkpoint", base / "finetune", "--out", f"{out}.tif"],
        lambda out: out.with_name(f"{out.name}.tif").read_bytes(),
    ),
    "report": Verb(lambda base, out: ["--workdir", out], page, copies="evaluated"),
    "bands": Verb(lambda base, out: ["--checkpoint", base / "pretrain", "--out", out], saved("bands.json")),
    "ablate": Verb(lambda base, out: ["--config", base / "ablate.py", "--out", out], saved("ablation.json")),
    "few_labels": Verb(
        lambda base, out: [
            *["--config", base / "finetune.py", "--fractions", 1, "--seeds", 0],
            *["--config.train.steps=10", "--out", out],
        ],
        saved("few_labels.json"),
    ),
}


# ---- Running ------------------------------------------------------------------------------------------


def start(verb: str, base: Path, out: Path, count: int) -> Job:
    """A verb by so many processes."""
    arguments = map(str, VERBS[verb].arguments(base, out))
    return jobs.start(base / f"output-{verb}", ["-m", f"experiments.{verb}", *arguments], count)


def finish(verb: str, base: Path, out: Path, count: int = 1) -> None:
    """Runs a verb to its end."""
    job = start(verb, base, out, count)
    assert job.finish(LIMIT) == [0] * count, f"{verb}: {job.said()[-2000:]}"


def folder_for(verb: str, base: Path, out: Path) -> Path:
    """What an attempt writes to, with what has to lie there."""
    if VERBS[verb].copies:
        shutil.copytree(base / VERBS[verb].copies, out)
    return out


def inputs(base: Path, verbs: Collection[str] = tuple(VERBS)) -> None:
    """Everything that some of these verbs read."""
    tiny_data.write(base / "data", "s1_grd", train=16, validation=6)
    terms = dict(s1=dict(name="masked_l1", sensor="s1_grd"), balance=dict(name="balance"))
    config = configuration(base, model=MODEL, objectives=terms)
    arms = dict(plain=dict(), quick=dict(override=dict(optimizer=dict(learning_rate=2e-2))))
    study = dict(config=config | dict(train=config["train"] | dict(steps=10)), baseline="plain", arms=arms)
    written(base / "ablate.py", dict(seeds=(0,), studies=dict(rates=study)))
    configuration(
        base, init_from=str(base / "pretrain"), task=dict(name="segmentation", target="map"), head=dict(name="fcn")
    )
    if {*verbs} <= {"prepare", "pretrain"}:
        return
    finish("pretrain", base, base / "pretrain")
    finish("finetune", base, base / "finetune")
    shutil.copytree(base / "pretrain", base / "evaluated")
    finish("evaluate", base, base / "evaluated")
    command = ["experiments.convert", base / "pretrain", "--out", base / "pretrain.safetensors"]
    subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, check=True, capture_output=True)
    place = dict(crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10))
    size = dict(width=200, height=160, count=2, dtype="float32")
    with rasterio.open(base / "scene.tif", "w", driver="GTiff", **size, **place) as file:
        file.write(np.random.default_rng(0).normal(-12, 3, (2, 160, 200)).astype(np.float32))
        file.descriptions = sensors.get("s1_grd").band_names


def is_whole(verb: str, out: Path, wanted: object) -> bool:
    """Whether what a verb left is what it gives when nobody kills it; what is missing or refused is not."""
    try:
        return VERBS[verb].gives(out) == wanted
    except (OSError, UserError):
        return False
