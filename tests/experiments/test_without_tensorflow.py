"""Pre-training, its resumption, evaluation and fine-tuning from prepared records, where TensorFlow is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import quick, tiny_data

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None  # importing either raises ImportError
import shutil
from experiments.run import cli, evaluate, finetune, pretrain
from tests.helpers.tiny import RINGMOE

directory, out, cache = sys.argv[1:]
cli.start(cache)
stream = dict(directory=directory, sensors=("rgb",), split="train")
views = dict(local=2, local_sensor="rgb", local_size=8, photometric=dict(rgb=dict(gain=0.2, drop_band=0.2)))
data = dict(streams=dict(rgb=stream), image_size=16, batch_size=8, mask_unit=4, reader="device")
values = dict(
    model=RINGMOE | dict(sensors=("rgb",), depths=(1,)),
    objectives=dict(rgb=dict(name="masked_l1", sensor="rgb")),
    data=data | dict(views=views),
    optimizer=dict(learning_rate=1e-2, warmup_steps=2),
    train=dict(steps=6, log_every=1, checkpoint_every=3, evaluate_every=3),
)
state = pretrain.pretrain(values, f"{out}/whole")
assert int(state.step) == 6
shutil.copytree(f"{out}/whole", f"{out}/resumed")
shutil.rmtree(f"{out}/resumed/checkpoints/6")  # as if it had been stopped at step 3
pretrain.pretrain(values, f"{out}/resumed")
scored = evaluate.evaluate(f"{out}/whole", brief=True)
assert scored.reconstruction and scored.step == 6
task = dict(
    init_from=f"{out}/whole",
    task=dict(name="classification", target="kind"),
    data=data | dict(mask_unit=0),
    train=dict(steps=3, log_every=1, checkpoint_every=3),
)
assert finetune.finetune(task, f"{out}/task").samples == 3
"""


def records(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


@pytest.mark.slow
def test_pretrain_resume_evaluate_and_finetune(tmp_path):
    tiny_data.write(tmp_path / "data", "rgb", train=24)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "data"), str(tmp_path), str(quick.CACHE)]
    one_device = os.environ | {"XLA_FLAGS": quick.FLAGS}
    done = subprocess.run(command, cwd=ROOT, env=one_device, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming {tmp_path}/resumed at step 3" in done.stdout
    whole, resumed = records(tmp_path / "whole"), records(tmp_path / "resumed")
    assert [record["step"] for record in whole if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert resumed == whole  # bit for bit, validation too
