"""Errors by band of runs that are told what is missing, and of runs that are not."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import bands as verb
from experiments.run import bands
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.run import Run
from tests.helpers import tiny, tiny_data, tiny_runs, verbs

KNOWN = ("B02", "B03", "B04", "B08")
MODEL = tiny.RINGMOE | dict(sensors=("s2_10",), depths=(1,), window=4)  # hidden cells see the others


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny"
    tiny_data.write(folder, "s2_10", train=8, validation=6)
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """One told by physics and one with a stem of its own, both of four bands."""
    made = {}
    for stem in ("physics", "linear"):
        folder = tmp_path_factory.mktemp("runs") / stem
        model = MODEL | dict(stem=stem)
        made[stem] = tiny_runs.pretraining(folder, model, directory=data, bands={"s2_10": KNOWN}, mask_unit=8)
    return made


def test_bands_that_were_never_seen(runs, capsys):
    arguments = ["--checkpoint", runs["physics"], "--beside", runs["linear"], "--show", *KNOWN, "--score", "B05", "B11"]
    assert verbs.run(verb, *arguments) == 0
    printed = capsys.readouterr().out
    assert "6 tiles of validation, s2_10" in printed
    assert "B05 B11 interpolated" in printed
    found = json.loads(Path(f"{runs['physics']}/report/bands/bands.json").read_text())
    rows = {row["encoder"]: row for row in found["rows"]}
    assert (rows[runs["physics"]]["missing"], rows[runs["physics"]]["interpolated"]) == ("told", [])
    assert (rows[runs["linear"]]["missing"], rows[runs["linear"]]["interpolated"]) == ("", ["B05", "B11"])
    assert set(rows) == {runs["physics"], runs["linear"], bands.RANDOM, bands.MEAN}
    for row in rows.values():
        assert row["error"]["value"] == pytest.approx(np.mean(list(row["by_band"].values())))
        assert np.isfinite([row["nats"][key] for key in ("low", "value", "high")]).all()
    assert rows[runs["physics"]]["difference"]["value"] == 0
    probed = {(row["encoder"], row["protocol"]) for row in found["probes"]}
    assert probed == {(name, p) for name in {*rows, bands.STATISTICS} - {bands.MEAN} for p in ("knn5", "linear")}
    assert "what mean tokens say of labels where these bands are shown" in printed


@pytest.mark.slow
def test_the_mean_is_scored_as_by_hand(runs, data):
    """The predictor that says the training mean everywhere, from the tiles themselves."""
    found = bands.score(runs["linear"], show=("B02", "B08"), scored=("B03",), out=f"{runs['linear']}/by_hand")
    run = Run.open(runs["linear"])
    opened = bands._open(run, data, "s2_10")
    sized = dict(split="validation", batch_size=6, image_size=16, mask_unit=8, seed=0, bands={"s2_10": ("B03",)})
    (batch,) = bands.EvalBatches(data, ["s2_10"], **sized)
    entry, statistics = batch["sensors"]["s2_10"], opened.statistics("s2_10")
    hidden = np.repeat(np.repeat(entry["mask"], 8, 1), 8, 2)[:, None] & entry["valid"]
    away = np.abs(entry["pixels"][..., 0] - statistics.mean[1])
    rows = {row.encoder: row for row in found.rows}
    assert rows[bands.MEAN].error.value == pytest.approx(away[hidden].mean() / statistics.std[1], rel=1e-4)
    (batch,) = bands.EvalBatches(data, ["s2_10"], **sized | dict(split="train", batch_size=8))
    entry = batch["sensors"]["s2_10"]
    known = np.repeat(np.repeat(entry["mask"], 8, 1), 8, 2)[:, None] & entry["valid"]
    scale = np.abs(entry["pixels"][..., 0] - statistics.mean[1])[known].mean()
    laplace = stats.laplace(scale=scale)
    assert rows[bands.MEAN].nats.value == pytest.approx(-laplace.logpdf(away[hidden]).mean(), rel=1e-4)
    assert rows[runs["linear"]].missing == "filled with the mean"


def test_what_is_missing_is_told_or_filled(runs):
    """With all bands shown neither happens, and a told run is not the same as one whose bands are filled."""
    whole = bands.score(runs["physics"], show=KNOWN, out=f"{runs['physics']}/whole").rows[0]
    few = bands.score(runs["physics"], show=KNOWN[:2], scored=KNOWN, out=f"{runs['physics']}/few").rows[0]
    assert (whole.missing, few.missing) == ("", "told")
    assert whole.error.value != few.error.value


def test_a_model_without_a_decoder_is_probed_alone(data, tmp_path, monkeypatch, capsys):
    model = tiny.SKYSENSE | dict(depths=(1,), frame=tiny.BLOCK, fusion=tiny.BLOCK, stem="physics")
    alike = dict(alike=dict(name="alignment", sensors=model["sensors"]))
    run = tiny_runs.pretraining(tmp_path / "run", model, directory=data, objectives=alike, mask_unit=0, size=8)
    found = bands.score(run, sensor="s2_10", show=KNOWN)
    assert found.rows == ()
    assert {row.encoder for row in found.probes} == {run, bands.RANDOM, bands.STATISTICS}
    assert 'has no decoder of the pixels of "s2_10": no errors at hidden pixels' in capsys.readouterr().out
    monkeypatch.setattr(bands.probe, "labels_of", lambda dataset: {})
    with pytest.raises(ConfigError, match='has no decoder of the pixels of "s2_10"'):
        bands.score(run, sensor="s2_10", show=KNOWN)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(sensor="s1_grd"), ConfigError, 'has no sensor "s1_grd"'),
        (dict(show=("B99",)), DataError, 'sensor "s2_10" has no band "B99"'),
        (dict(split="tset"), DataError, 'no split "tset"'),
    ],
)
def test_what_is_refused(runs, options, error, message):
    with pytest.raises(error, match=message):
        bands.score(runs["physics"], **options)
