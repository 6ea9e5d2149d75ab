"""Encoders of ours as one file: what comes back is what went in, says where it is from, and opens like any run."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ringmoe_jax as rm
from experiments import convert
from ringmoe_jax import files, interop, weights
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.interop.own import described
from ringmoe_jax.run import IMPORTED, PretrainConfig, Run
from ringmoe_jax.sensors import Statistics

OWN = interop.SOURCES.build({"name": interop.OWN}, "source")
MODEL = dict(name="ringmoe", sensors=("rgb",), width=8, depths=(1, 1), image_size=16, window=2, head_width=4)
STATISTICS = Statistics((0.3, 0.4, 0.5), (0.1, 0.2, 0.3), "a test")


@pytest.fixture(scope="module")
def run():
    """In memory, with a decoder that an objective asked for."""
    stream = dict(directory="data/none", sensors=("rgb",))
    data = dict(streams=dict(rgb=stream), image_size=16, batch_size=2, mask_unit=4)
    values = dict(model=MODEL, objectives=dict(rgb=dict(name="masked_l1", sensor="rgb")), data=data)
    config = PretrainConfig.of(values).complete()
    record = {"config": config, "statistics": {"rgb": STATISTICS.to_json()}, "step": 7}
    bare = Run(record, {})
    return Run(record, bare.model.init(jax.random.key(0)))


def features(run):
    pixels = np.random.default_rng(0).uniform(0, 1, (2, 16, 16, 3)).astype(np.float32)
    return rm.encode(run, {"rgb": pixels}).pooled["rgb"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("bfloat16", 0.05), ("float16", 0.01)])
def test_it_comes_back(run, tmp_path, dtype, tolerance):
    path = tmp_path / "it.safetensors"
    interop.write_run(run, path, dtype=dtype, about={"source": "a test", "licence": "CC0-1.0"})
    back = interop.convert(OWN, path)
    assert back.statistics["rgb"] == STATISTICS
    assert back.origin["licence"] == "CC0-1.0"
    assert back.origin["source"] == "a test"
    assert described(path)["step"] == 7
    assert "heads" not in back.params
    check = assert_array_equal if not tolerance else lambda x, y: assert_allclose(x, y, atol=tolerance)
    check(features(back), features(run))


def test_a_file_of_a_run_is_converted_to_one_and_back(run, tmp_path, capsys):
    first, folder, second = tmp_path / "a.safetensors", tmp_path / "run", tmp_path / "b.safetensors"
    interop.write_run(run, first, about={"licence": "MIT", "citation": "nobody"})
    assert convert.main.__wrapped__([str(first), "--out", str(folder)]) == 0
    assert "licence     MIT" in capsys.readouterr().out
    assert Run.open(folder).kind == IMPORTED
    assert convert.main.__wrapped__([str(folder), "--out", str(second), "--title", "of a test"]) == 0
    assert described(second)["about"] == {"source": "of a test", "licence": "MIT", "citation": "nobody"}
    assert_array_equal(features(interop.convert(OWN, second)), features(run))


def test_what_is_refused(run, tmp_path):
    path = tmp_path / "it.safetensors"
    with pytest.raises(ConfigError, match="--dtype int8: choose from float32, bfloat16, float16"):
        interop.write_run(run, path, dtype="int8")
    files.write_safetensors(path, {"a": np.zeros(3, np.float32)})
    assert not interop.is_own(path)
    with pytest.raises(DataError, match=r"was not written by experiments[.]convert: say whose it is, --source timm"):
        interop.convert(OWN, path)
    for said in ("[]", "{}", '{"model": {}, "bands": {}, "statistics": {}, "about": {}}'):
        files.write_safetensors(path, {"a": np.zeros(3, np.float32)}, {interop.OWN: said})
        with pytest.raises(DataError, match="do not hold model, bands, statistics, about: convert the run to it again"):
            interop.convert(OWN, path)
    interop.write_run(run, path)
    other = interop.SOURCES.build({"name": interop.OWN, "sensors": ("s2_10",)}, "source")
    with pytest.raises(ConfigError, match="is for rgb: leave --sensors out"):
        interop.convert(other, path)
    with pytest.raises(ConfigError, match=r'no weights "nothing" come with ringmoe_jax: choose from'):
        weights.path("nothing")
