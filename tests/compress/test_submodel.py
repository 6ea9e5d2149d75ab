"""A sub-model computes what the full model does, bit by bit, from fewer parameters."""

from pathlib import Path

import numpy as np
import pytest

from ringmoe_jax import sensors
from ringmoe_jax.compress import prune, submodel, submodel_config
from ringmoe_jax.errors import ConfigError
from tests.helpers.tiny import SKYSENSE, batch
from tests.helpers.tiny_networks import (
    HEADS,
    MODEL,
    SENSORS,
    assert_equal,
    built,
    network,
    only,
    outputs,
    shapes,
    with_moe,
)

REAL = Path(__file__).resolve().parents[3] / "shared/data"
QUAD = MODEL | {"sensors": ("slc_quad", "s1_grd", "rgb"), "depths": (1,)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "engine"),
    [
        (("rgb", "rgbn"), "dropless"),
        (("s1_grd",), "dense"),
        (("slc_dual", "rgb"), "capacity"),  # with room for all tokens
    ],
)
def test_bits_of_a_submodel(kept, engine):
    whole = network(with_moe(MODEL, engine=engine, groups=1, eval_capacity_factor=4.0), HEADS)
    part = submodel(whole, kept)
    data = only(batch(MODEL, rows=4), kept)
    assert_equal(outputs(part, data, HEADS), outputs(whole, data, HEADS))


def test_a_submodel_is_as_large_as_a_new_one():
    part = submodel(network(MODEL, HEADS), ("slc_dual", "rgbn"))
    assert part.model["sensors"] == ("rgbn", "slc_dual")  # in the order of the model
    assert shapes(part.params) == shapes(built(part.model, HEADS)[1])


def test_biases_go_with_their_experts():
    """Of 2 x 3 specialised experts those of the second and third modality; pruned ones keep theirs, unused."""
    whole = network(with_moe(MODEL, bias_rate=0.01))
    part = submodel(prune(whole, ({"collaborative": ("101",) * 3}, {}, {}, {})), ("s1_grd", "slc_dual"))
    assert shapes(part.params) == shapes(built(part.model)[1])
    before, after = (n.params["backbone"]["stages"]["stage0"]["blocks"] for n in (whole, part))
    own, first, second = before["run0"]["ffn"], after["run0"]["ffn"], after["run1"]["ffn"]
    np.testing.assert_array_equal(first["specialised"]["bias"], own["specialised"]["bias"][:1, [1, 2, 4, 5]])
    np.testing.assert_array_equal(first["collaborative"]["bias"], own["collaborative"]["bias"][:1])
    np.testing.assert_array_equal(second["collaborative"]["bias"], own["collaborative"]["bias"][1:])


def test_of_all_sensors_it_is_the_model_itself():
    whole = network(MODEL, HEADS)
    assert_equal(submodel(whole, SENSORS).params, whole.params)


def test_other_entries_pass_through():
    whole = network()
    extra = {"head": np.ones(3, np.float32)}
    part = submodel(whole._replace(params={**whole.params, "projections": extra}), ("rgb",))
    assert part.params["projections"] is extra


@pytest.mark.slow
def test_a_pruned_model_has_submodels():
    """Experts that only other modalities kept go; order: optical, sar_l2, sar_l1."""
    own = {"collaborative": ("110", "011", "001"), "specialised": ("100100", "010000", "001000")}
    gone = {"collaborative": ("000",) * 3}
    pruned = prune(network(MODEL, HEADS), (own, {}, gone, own))
    part = submodel(pruned, ("s1_grd", "slc_dual"))
    ours = {"collaborative": ("011", "001"), "specialised": ("1000", "0100")}
    assert part.model["moe"]["allowed"] == (ours, {}, {"collaborative": ("000",) * 2}, ours)
    block = part.params["backbone"]["stages"]["stage0"]["blocks"]["run0"]["ffn"]
    assert block["collaborative"]["wi"].shape[1] == 2
    assert block["specialised"]["router"].shape[-1] == 2
    data = only(batch(MODEL), ("s1_grd", "slc_dual"))
    assert_equal(outputs(part, data, HEADS), outputs(pruned, data, HEADS))


def real_tiles():
    """Quad-pol single-look pixels and aerial RGB of Rotterdam, Sentinel-1 of Austria: two crops of 16 pixels each."""
    rasterio = pytest.importorskip("rasterio")

    def read(path):
        with rasterio.open(path) as file:
            return file.read()[:, 40:72, 40:72]

    slc = [read(REAL / f"slc/spacenet6_rotterdam_quadpol/sar_{p}.tif")[0] for p in ("hh", "hv", "vh", "vv")]
    parts = np.stack([part for z in slc for part in (z.real, z.imag)])
    pixels = {
        "slc_quad": parts / np.abs(parts).std(),
        "s1_grd": np.concatenate(
            [read(p) for p in sorted(REAL.glob("multimodal/bigearthnet_common/*S1*/*33UUP*/*.tif"))]
        ),
        "rgb": read(REAL / "multimodal/spacenet6_rotterdam/rgb_unmasked.tif") / 255,
    }
    pixels["s1_grd"] = pixels["s1_grd"][::-1]  # VH, VV by name; the sensor is VV, VH
    entries = {}
    for name, image in pixels.items():
        image = np.moveaxis(image, 0, -1).astype(np.float32)
        assert image.shape == (32, 32, sensors.get(name).channels)
        crops = np.stack([image[:16, :16], image[16:, 16:]])[:, None]
        entries[name] = {"pixels": crops, "valid": np.ones(crops.shape[:-1], bool)}
    return {"sensors": entries}


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data at hand")
def test_bits_on_real_tiles():
    kept = ("slc_quad", "s1_grd")
    heads = {name: {"pixels": sensors.get(name).channels} for name in QUAD["sensors"]}
    whole, data = network(QUAD, heads), only(real_tiles(), kept)
    found = outputs(submodel(whole, kept), data, heads)
    assert_equal(found, outputs(whole, data, heads))
    assert all(np.ptp(pooled, axis=0).max() > 1e-3 for pooled in found["pooled"].values())  # tiles do differ


@pytest.mark.parametrize(
    ("model", "kept", "message"),
    [
        (MODEL, ("rgg",), r'no sensor "rgg" to keep: did you mean "rgb"\?'),
        (MODEL, (), "sub-model of no sensors: name at least one of rgb, s1_grd"),
        (SKYSENSE, ("s1_grd",), 'model.name = "skysense" cannot be compressed'),
    ],
)
def test_wrong_sensors(model, kept, message):
    with pytest.raises(ConfigError, match=message):
        submodel_config(model, kept)
