"""Every verb is killed at random moments, and started again: what it gives then is what it gives when nobody kills it.

`make test-all` kills every verb once; `python -m tests.reliability.test_kills 20 5` kills pretrain 20 times and the
others 5 times, and prints the table of docs/reliability.md. `--processes 2 --verbs pretrain evaluate` kills one of two
processes, which the other has to name before it ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from input_pipeline.dataset import open_dataset
from ringmoe_jax import files, sensors
from ringmoe_jax.errors import UserError
from ringmoe_jax.run import Run
from tests.helpers import jobs, tiny_data
from tests.helpers.jobs import Job

ROOT = Path(__file__).parent.parent.parent
MODEL = dict(name="ringmoe", sensors=("s1_grd",), width=8, depths=(1,), image_size=8, patch=2, window=2, head_width=4)
LIMIT = 600  # seconds of one command
NAMED = 60  # seconds after which the other processes have named one that was killed
TOLD = f" named by the other within {NAMED} s | slowest, s |"


def configuration(folder: Path, **values) -> Path:
    """A file of a configuration of the folder's data set."""
    stream = dict(directory=str(folder / "data"), sensors=("s1_grd",), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    values |= dict(
        data=dict(streams=dict(all=stream), image_size=8, batch_size=4, mask_unit=2 if "model" in values else 0),
        optimizer=dict(learning_rate=1e-2, warmup_steps=0),
        train=dict(steps=30, log_every=1, checkpoint_every=5, evaluate_every=15),
    )
    path = folder / f"{'pretrain' if 'model' in values else 'finetune'}.py"
    path.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({values!r})\n"
    )
    return path


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


def dataset(out: Path) -> tuple:
    """Sizes and statistics of all pixels; the order of fields in a record differs between processes."""
    opened = open_dataset(str(out), ["s1_grd"])  # compares checksums
    return (*(opened.size(split) for split in ("train", "validation")), opened.statistics("s1_grd"))


def export(out: Path) -> list[bytes]:
    files.read_manifest(out)
    return [(out / name).read_bytes() for name in ("model.safetensors", "model.stablehlo")]


def page(out: Path) -> str:
    """Without its date, and its folder's name."""
    return re.sub(r"Written [^.]* UTC", "", (out / "report.html").read_text()).replace(out.name, "")


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb as it is killed.

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
}


# ---- Killing ------------------------------------------------------------------------------------------


def start(verb: str, base: Path, out: Path, count: int) -> Job:
    """A verb by so many processes."""
    arguments = map(str, VERBS[verb].arguments(base, out))
    return jobs.start(base / f"output-{verb}", ["-m", f"experiments.{verb}", *arguments], count)


def finish(verb: str, base: Path, out: Path, count: int = 1) -> None:
    """Runs a verb to its end."""
    job = start(verb, base, out, count)
    assert job.finish(LIMIT) == [0] * count, f"{verb}: {job.said()[-2000:]}"


def folder_for(verb: str, base: Path, number: int) -> Path:
    """What an attempt writes to."""
    out = base / f"{verb}-{number}"
    if VERBS[verb].copies:
        shutil.copytree(base / VERBS[verb].copies, out)
    return out


def inputs(base: Path, verbs: Collection[str] = tuple(VERBS)) -> None:
    """Everything that some of these verbs read."""
    tiny_data.write(base / "data", "s1_grd", train=16, validation=6)
    terms = dict(s1=dict(name="masked_l1", sensor="s1_grd"), balance=dict(name="balance"))
    configuration(base, model=MODEL, objectives=terms)
    configuration(base, init_from=str(base / "pretrain"), task=dict(name="segmentation", target="map"))
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


class Kill(NamedTuple):
    """A verb that was killed, and started again.

    Attributes:
        share: of its time, after which it was killed.
        ended: whether it had ended before.
        named: whether all other processes ended with a line of theirs.
        seconds: until they had ended; 0 of a process by itself.
        same: whether it gave the same at last.
    """

    share: float
    ended: bool
    named: bool
    seconds: float
    same: bool


def killed(verb: str, base: Path, count: int, processes: int = 1) -> Iterator[Kill]:
    """Kills a verb, or one of its processes, `count` times, each time anew, and starts it again."""
    out = folder_for(verb, base, 0)
    started = time.monotonic()
    finish(verb, base, out, processes)
    seconds, wanted = time.monotonic() - started, VERBS[verb].gives(out)
    for number in range(1, count + 1):
        chance = random.Random(f"{verb} {number}")
        share, victim = chance.uniform(0.3, 1.0), chance.randrange(processes)  # before that it imports
        out = folder_for(verb, base, number)
        job = start(verb, base, out, processes)
        time.sleep(share * seconds)
        ended = any(process.poll() is not None for process in job.processes)
        job.processes[victim].kill()
        began = time.monotonic()
        statuses = job.finish(LIMIT)
        seconds_after = time.monotonic() - began if processes > 1 else 0.0
        others = [number for number in range(processes) if number != victim]
        named = all(statuses[other] == 1 and f"error: process {victim} of" in job.said(other) for other in others)
        if not is_whole(verb, out, wanted):  # else it may refuse to write there again
            finish(verb, base, out, processes)
        yield Kill(share, ended, named, seconds_after, is_whole(verb, out, wanted))


def is_whole(verb: str, out: Path, wanted: object) -> bool:
    """Whether what a verb left is what it gives when nobody kills it; what is missing or refused is not."""
    try:
        return VERBS[verb].gives(out) == wanted
    except (OSError, UserError):
        return False


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("kills")
    inputs(base)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_gives_the_same_in_the_end(base, verb):
    (kill,) = killed(verb, base, 1)
    assert kill.same


@pytest.mark.slow
def test_one_of_two_processes_is_killed(base):
    (kill,) = killed("pretrain", base, 1, processes=2)
    assert kill.same
    assert kill.ended or (kill.named and kill.seconds < NAMED)


def rows(kills: int, others: int, processes: int, verbs: Sequence[str]) -> Iterator[str]:
    """The tables of docs/reliability.md."""
    several = processes > 1
    yield "| verb | kills | of them after its end |" + several * TOLD + " the same in the end |"
    yield "|---|---|---|" + several * "---|---|" + "---|"
    with tempfile.TemporaryDirectory() as folder:
        inputs(Path(folder), verbs)
        for name in verbs:
            found = []
            for kill in killed(name, Path(folder), kills if name == "pretrain" else others, processes):
                found.append(kill)
                print(name, kill, file=sys.stderr, flush=True)
            going = [kill for kill in found if not kill.ended]
            told = f" {sum(kill.named and kill.seconds < NAMED for kill in going)} of {len(going)} |"
            told += f" {max((kill.seconds for kill in going), default=0):.0f} |"
            same = sum(kill.same for kill in found)
            yield f"| {name} | {len(found)} | {len(found) - len(going)} |" + several * told + f" {same} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, help="of pretrain")
    parser.add_argument("others", type=int, help="kills of each of the other verbs")
    parser.add_argument("--processes", type=int, default=1, help="of a job; one of them is killed")
    parser.add_argument("--verbs", nargs="+", default=[*VERBS], choices=VERBS)
    for row in rows(*vars(parser.parse_args()).values()):
        print(row, flush=True)
