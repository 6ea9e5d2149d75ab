"""A checkpoint of somebody else runs no code that nobody asked for."""

import argparse
import json

import numpy as np
import pytest

from experiments.run import cli
from ringmoe_jax import config as configuration
from ringmoe_jax import interop
from ringmoe_jax.config import check_modules, named_modules
from ringmoe_jax.errors import DataError
from ringmoe_jax.files import write_safetensors
from ringmoe_jax.run import Run, read_record
from ringmoe_jax.training.checkpoint import Checkpointer
from tests.helpers.tiny_checkpoints import save


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module on the path that leaves a trace when it is imported."""
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(configuration, "_allowed", set())
    return tmp_path


RECORDS = {
    "modules": {"config": {"modules": ["stranger"]}},
    "an objective": {"config": {"objectives": {"rgb": {"name": "stranger:Loss"}}}},
    "a sensor": {"config": {"model": {"sensors": ["rgb", "stranger:LST"]}}},
    "an encoder of a task": {"config": {}, "encoder": {"model": {"name": "stranger.deep:Model"}}},
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_it_is_refused_unless_it_is_named(stranger, record):
    (module,) = named_modules(record)
    with pytest.raises(DataError, match=f"a run names modules whose code would be run: {module}; if you trust"):
        check_modules(record, "a run")
    assert not (stranger / "ran").exists()
    parser = argparse.ArgumentParser()
    cli.add_modules(parser)
    assert vars(parser.parse_args(["--modules", module])) == {}
    check_modules(record, "a run")


def test_what_cannot_be_imported_or_is_ours_runs_nothing(stranger):
    check_modules({"classes": ["road:paved", "nothing_of_that_name:x"], "name": "ringmoe_jax.sensors:Sensor"}, "a run")
    check_modules({"name": "json:JSONDecoder"}, "a run")  # imported already


def test_a_configuration_of_the_user_names_what_it_likes(stranger):
    (stranger / "own.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({json.dumps(RECORDS['an objective']['config'])})\n"
    )
    cli.read_config(str(stranger / "own.py"))
    check_modules(RECORDS["an objective"], "a run")


def test_runs_are_looked_at_before_anything_is_built(stranger):
    save(stranger / "run", 1, record=RECORDS["modules"])
    for opened in (
        Run.open,
        read_record,
        lambda folder: Checkpointer(folder).record(),
    ):  # the last as a run that resumes
        with pytest.raises(DataError, match="whose code would be run: stranger"):
            opened(stranger / "run")
    assert not (stranger / "ran").exists()


def test_files_of_weights_are_looked_at_too(stranger):
    said = {"model": {"name": "stranger:Model", "sensors": ["rgb"]}, "bands": {}, "statistics": {}, "about": {}}
    path = stranger / "it.safetensors"
    write_safetensors(path, {"a": np.zeros(3, np.float32)}, {interop.OWN: json.dumps(said)})
    with pytest.raises(DataError, match=r"it.safetensors names modules whose code would be run: stranger"):
        interop.convert(interop.SOURCES.build({"name": interop.OWN}, "source"), path)
    assert not (stranger / "ran").exists()
