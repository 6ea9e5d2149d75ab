"""Our encoders beside those of others with the same weights: 1e-4 of the largest value, at every stage.

Outputs of the others lie in `golden`; where PyTorch and timm are installed, timm runs as well (`make test-peers`).
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from ringmoe_jax import models, sensors
from ringmoe_jax.interop import SOURCES, convert
from tests.helpers import peers

SIZES = {"swin_small": dict(window=4, image_size=32), "swin_deep": dict(window=4, image_size=64)}


def difference(ours, theirs):
    """The largest one, as a share of the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def imported(source, tensors, path=None, statistics=None, **changes):
    """A model that a state dict fills, compiled, and its parameters."""
    model = source.model(tensors, path) | changes
    built = models.build(model, statistics=statistics)
    params = source.map(model).to_params(source.prepare(tensors, model), built.shapes())
    return jax.jit(built.apply), params


def entry(name, pixels, **further):
    """An entry of a sensor whose standardised pixels are the given ones."""
    known = sensors.get(name).statistics
    physical = (pixels * np.float32(known.std) + np.float32(known.mean)).astype(np.float32)
    return {"pixels": physical, "valid": np.ones(pixels.shape[:-1], bool), **further}


def check_timm(name, shapes, theirs):
    source, shape = SOURCES.build({"name": "timm"}, "source"), peers.TIMM[name][2]
    apply, params = imported(source, peers.weights(shapes), **SIZES.get(name, {}))
    image = np.moveaxis(peers.images(shape), 1, -1)[:, None]
    outputs = apply(params, {"sensors": {"rgb": entry("rgb", image)}})
    stages = outputs["stages"]["rgb"]
    assert difference(stages[-1][:, 0], theirs["last"]) < 1e-4
    for i in range(len(theirs) - 2):  # our last one is after the norm
        assert difference(stages[i][:, 0], theirs[f"stage{i}"]) < 1e-4


@pytest.mark.parametrize("name", peers.TIMM)
def test_timm_as_stored(name):
    check_timm(name, *peers.golden(name))


@pytest.mark.parametrize("name", peers.TIMM)
def test_timm_as_installed(name):
    pytest.importorskip("torch", reason="PyTorch is not installed: make test-peers installs it")
    pytest.importorskip("timm", reason="timm is not installed: make test-peers installs it")
    check_timm(name, *peers.timm_outputs(name))


def test_skysense_as_released():
    """Encoders, up-projections, dates and fusion, of images that neither windows nor positions are made for."""
    shapes, theirs = peers.golden("skysense")
    source, tensors = SOURCES.build({"name": "skysense"}, "source"), peers.weights(shapes)
    apply, params = imported(source, tensors, window=6, image_size=96)
    shown, days, _ = peers.skysense_images()
    dates = dict(time=(days + 17897).astype(np.int32))  # of 2019
    entries = {name: entry(name, x, **(dates if name == "s2_10" else {})) for name, x in shown.items()}
    outputs = apply(params, {"sensors": entries})
    for name in shown:
        assert difference(outputs["tokens"][name], theirs[name]) < 1e-4
    assert difference(outputs["fused"], theirs["fused"]) < 1e-4


def test_one_encoder_of_skysense_by_itself():
    """The file of the high-resolution encoder, on an image that is as high as one window, where none shift."""
    shapes, theirs = peers.golden("skysense")
    start = "backbone_gep."
    tensors = {k.removeprefix(start): v for k, v in peers.weights(shapes).items() if k.startswith(start)}
    apply, params = imported(SOURCES.build({"name": "skysense"}, "source"), tensors, window=6, image_size=96)
    _, _, thin = peers.skysense_images()
    outputs = apply(params, {"sensors": {"rgb": entry("rgb", thin)}})
    assert difference(outputs["tokens"]["rgb"], theirs["thin"]) < 1e-4


RGB = sensors.register(dataclasses.replace(sensors.get("s2_10").select(("B02", "B03", "B04")), name="s2_visible"))
GALILEO = Path(__file__).resolve().parents[3] / "shared" / "data" / "weights" / "galileo_nano" / "encoder.pt"


@pytest.mark.skipif(not GALILEO.exists(), reason="the published weights are not there")
@pytest.mark.parametrize("name", peers.GALILEO)
def test_galileo_with_its_published_weights(name):
    """Every group of channels: its mean token of a patch, over the groups of a sensor."""
    _, theirs = peers.golden("galileo")
    groups, patch, place = peers.GALILEO[name]
    shown = peers.galileo_images()
    feeds = {"s2_10": [g for g in groups if g != "S1"], "s1_grd": [g for g in groups if g == "S1"]}
    used = tuple(sensor for sensor, fed in feeds.items() if fed)
    if groups == ("S2_RGB",):
        used, feeds = (RGB.name,), {RGB.name: list(groups)}
        shown[RGB.name] = shown["s2_10"][..., :3]
    source = SOURCES.build({"name": "galileo", "sensors": used}, "source")
    run = convert(source, GALILEO, changes=dict(patch=patch, location=place), image_size=8)
    common = dict(time=shown["days"], location=shown["location"])
    entries = {s: dict(pixels=shown[s], valid=np.ones(shown[s].shape[:-1], bool), **common) for s in used}
    outputs = jax.jit(run.model.apply)(run.params, {"sensors": entries})
    for sensor in used:
        expected = theirs[name][..., [groups.index(group) for group in feeds[sensor]], :].mean(axis=-2)
        assert difference(outputs["tokens"][sensor], np.moveaxis(expected, 3, 1)) < 1e-4
    assert difference(outputs["fused"], theirs[name].mean(axis=(3, 4))) < 1e-4


@pytest.mark.parametrize("name", peers.PRESTO)
def test_presto_as_published(name):
    """The series of every pixel with random weights; what no image feeds is not there."""
    shapes, theirs = peers.golden("presto")
    used = ("s2_10", "s1_grd")[: 1 + (name == "both")]
    source = SOURCES.build({"name": "presto", "sensors": used}, "source")
    drawn = {f"encoder.{key}": value for key, value in peers.weights(shapes).items()}
    known = {sensor: source.statistics(sensors.get(sensor), None) for sensor in used}
    drawn["encoder.pos_embed"] = np.zeros((1, 24, 64))
    apply, params = imported(source, drawn, statistics=known, location=True)
    shown = peers.presto_images()
    common = dict(time=shown["days"], location=shown["location"])
    entries = {s: dict(pixels=shown[s], valid=np.ones(shown[s].shape[:-1], bool), **common) for s in used}
    assert difference(apply(params, {"sensors": entries})["fused"], theirs[name]) < 1e-4
