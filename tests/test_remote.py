"""Runs in a bucket: taken up on a machine that never saw them, evaluated, compressed; who may write; and refusals."""

import json
import re
import shutil
import threading
from pathlib import Path

import jax
import pytest
from numpy.testing import assert_array_equal

from experiments import compress, evaluate, predict, report
from experiments.run import cli
from experiments.run.pretrain import pretrain
from ringmoe_jax import remote
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.parallel import lock as locks
from ringmoe_jax.run import Run
from ringmoe_jax.training import metrics
from tests.helpers import bucket, jobs, quick, tiny_data, verbs

CONFIG = """
from ml_collections import ConfigDict
from configs import common

def get_config():
    config = common.ringmoe(width=8, depths=(1,), head_width=4)
    config.model.update(sensors=("rgb",), image_size=16, window=2, dtype="float32", remat="none")
    config.model.moe.update(specialised=1, collaborative=2, engine="dense")
    config.objectives = ConfigDict(dict(rgb=dict(name="masked_l1", sensor="rgb")))
    stream = dict(directory="{tiny}", sensors=("rgb",), crop_scale=(0.2, 0.5), weight=1.0)
    config.data.streams = ConfigDict(dict(rgb=stream))
    config.data.update(image_size=16, batch_size=8, mask_unit=4, reader="device")
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.train.update(steps=6, log_every=1, checkpoint_every=3)
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_data.write(folder / "tiny", "rgb", train=40, validation=20)
    path = folder / "config.py"
    path.write_text(CONFIG.replace("{tiny}", str(folder / "tiny")))
    return path


@pytest.fixture(scope="module")
def store():
    with pytest.MonkeyPatch.context() as patch, bucket.served(patch) as address:
        yield address


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine that knows nothing of buckets yet."""
    monkeypatch.setattr(remote, "COPIES", tmp_path / "copies")
    monkeypatch.setattr(remote, "_open", {})
    return tmp_path / "copies"


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.2)
    monkeypatch.setattr(locks, "STALE", 2.0)
    monkeypatch.setattr(locks, "SETTLE", 0.3)


def names(address):
    folder = remote.place(address)
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def losses(workdir):
    return [(record["step"], record["loss"]) for record in metrics.read(workdir) if "loss" in record]


def breaks_at(last, write=metrics.MetricsWriter.write):
    """`MetricsWriter.write` of a machine that breaks down after a step."""

    def broken(self, step, *arguments):
        if step == last:
            raise KeyboardInterrupt
        write(self, step, *arguments)

    return broken


@pytest.fixture(scope="module")
def trained(config, store, tmp_path_factory):
    """A run that two machines trained, of which the first one broke down, data in the bucket; and all of it local."""
    values = cli.read_config(str(config))
    alone = tmp_path_factory.mktemp("alone") / "run"
    pretrain(values, str(alone))
    address, data = f"{store}/runs/a", remote.place(f"{store}/data/tiny")
    for path in (config.parent / "tiny").iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    values["data"]["streams"]["rgb"]["directory"] = str(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "_open", {})
        patch.setattr(locks, "SETTLE", 0.1)
        patch.setattr(remote, "COPIES", tmp_path_factory.mktemp("first"))
        workdir = remote.copied(address)
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(metrics.MetricsWriter, "write", breaks_at(5))
            with pytest.raises(KeyboardInterrupt):
                pretrain(values, workdir)
        patch.setattr(remote, "COPIES", tmp_path_factory.mktemp("second"))
        remote._open.clear()
        workdir = remote.copied(address)
        pretrain(values, workdir)
        remote.send()
    return address, alone, workdir


def test_a_run_goes_on_where_nobody_has_seen_it(trained):
    address, alone, workdir = trained
    assert names(address) >= {"checkpoints", "metrics.jsonl"}
    assert not (Path(workdir) / "checkpoints").exists()
    assert ".lock" not in names(address)
    assert losses(workdir) == losses(alone)
    there, here = Run.open(address), Run.open(alone)
    assert there.step == here.step == 6
    jax.tree.map(assert_array_equal, there.params, here.params)


@pytest.mark.slow
def test_results_lie_beside_the_run(trained, machine, capsys):
    address, _, _ = trained
    assert verbs.run(evaluate, "--checkpoint", address, "--protocol", "knn") == 0
    said = capsys.readouterr().out
    assert f"checkpoint  {address} at step 6" in said
    assert f"python -m experiments.report --workdir {address}" in said
    assert verbs.run(report, "--workdir", address) == 0
    assert f"metrics      {address}/metrics.jsonl" in capsys.readouterr().out
    assert names(address) >= {"report", "report.html"}
    assert names(f"{address}/report") >= {"evaluation.json"}
    page = (remote.place(address) / "report.html").read_text()
    assert str(machine) not in page


@pytest.mark.slow
def test_compressed_into_a_bucket(trained, store, machine):
    out = f"{store}/small"
    asked = ("--checkpoint", trained[0], "--out", out, "--modality", "rgb", "--method", "submodel")
    assert verbs.run(compress, *asked) == 0
    assert Run.open(out).kind == "compressed"


def test_what_is_sent_and_fetched(store, machine, tmp_path):
    address = f"{store}/files"
    here = Path(remote.copied(address))
    (here / "report").mkdir(parents=True)
    (here / "a.json").write_text("1")
    (here / "report" / "b.png").write_bytes(b"2")
    (here / "checkpoints").mkdir()
    (here / "checkpoints" / "3").write_text("never")
    (here / ".draft").write_text("never")
    remote.send(here, every=1000)
    assert names(address) == set()
    remote.send(here)
    assert names(address) == {"a.json", "report"}
    assert names(f"{address}/report") == {"b.png"}
    (here / "report" / "b.png").unlink()
    (remote.place(address) / "c.txt").write_text("by another")
    (remote.place(address) / "a.json").unlink()
    remote.send(here)
    assert names(address) == {"c.txt"}
    shutil.copytree(here, tmp_path / "other")
    remote.copied(address)
    assert {path.name for path in here.rglob("*") if path.is_file()} == {"c.txt", remote.SENT, ".draft", "3"}


def test_one_writer(store, machine, hurried, capsys):
    address = f"{store}/held"
    with locks.lock(address):
        assert names(address) == {".lock"}
        with pytest.raises(ConfigError, match=r"gs://tests/held is being written by process \d+ on .*: wait until"):
            locks.lock(address).__enter__()
    assert names(address) == set()
    assert "was not taken back" in capsys.readouterr().out


def test_the_lock_of_a_killed_job_is_taken(store, machine, hurried):
    path = remote.place(f"{store}/dead") / locks.LOCK
    path.write_text("process 1 on elsewhere since long\n3")
    with locks.lock(f"{store}/dead"):
        assert "elsewhere" not in path.read_text()


def test_two_that_come_together(store, machine, hurried, monkeypatch):
    """Both see no lock; one of them gets it."""
    monkeypatch.setattr(locks, "_self", lambda: f"process {threading.get_ident()}")
    monkeypatch.setattr(locks, "BEAT", 100)
    both, got, refused = threading.Barrier(2), [], []

    def come():
        both.wait()
        try:
            with locks.lock(f"{store}/both"):
                got.append(1)
                both.wait()
        except ConfigError:
            refused.append(1)
            both.wait()

    threads = [threading.Thread(target=come) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert (len(got), len(refused)) == (1, 1)


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        (evaluate, "--checkpoint s3://bucket/run", "wanted a folder of this machine or gs://bucket/folder"),
        (evaluate, "--checkpoint runs/x --out gs://", "wanted a folder of this machine or gs://bucket/folder"),
        (predict, "scene.tif --checkpoint runs/x --out gs://bucket/map.tif", "wanted a local path"),
    ],
)
def test_other_addresses_are_refused(verb, arguments, said):
    with pytest.raises(ConfigError, match=rf"^(gs|s3)://[^:]*: {re.escape(said)}"):
        verb.parse(arguments.split())


def test_a_bucket_without_a_run(store):
    with pytest.raises(DataError, match=f"no checkpoint in {store}/nothing: give the folder of a run"):
        Run.open(f"{store}/nothing")


def test_a_bucket_that_is_not_there(store, machine):
    with pytest.raises(ConfigError, match=r"gs://nobodys/run cannot be reached .*is there such a bucket"):
        locks.lock("gs://nobodys/run").__enter__()


def test_without_the_package(machine, monkeypatch):
    monkeypatch.setattr(remote, "PACKAGES", {"gs": "no_such_package"})
    with pytest.raises(ConfigError, match="no_such_package is not installed: pip install no_such_package"):
        remote.copied("gs://bucket/run")


@pytest.mark.slow
def test_two_processes_one_bucket(config, store, tmp_path):
    """Both write the checkpoint, the first one all else; one process goes on."""
    address = f"{store}/{tmp_path.name}"
    command = ["-m", "experiments.pretrain", "--config", str(config), "--workdir", address]
    command = [*command, f"--compilation-cache={quick.CACHE}"]
    try:
        job = jobs.start(tmp_path / "two", [*command, "--config.train.steps=3"], 2)
        assert set(job.finish()) == {0}, job.said() + job.said(1)
        assert json.loads((remote.place(address) / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3
        job = jobs.start(tmp_path / "one", command)
        assert job.finish() == [0], job.said()
        assert f"resuming {address} at step 3" in job.said()
        assert Run.open(address).step == 6
    finally:
        shutil.rmtree(jobs.ROOT / remote.COPIES / "gs" / bucket.NAME / tmp_path.name, ignore_errors=True)
