"""`import ringmoe_jax as rm`: the surface, and features of arrays."""

import subprocess
import sys
import types
from importlib.util import find_spec

import jax
import numpy as np
import pytest

import ringmoe_jax as rm
from ringmoe_jax.contracts import FUSED
from ringmoe_jax.errors import ConfigError, DataError
from tests.helpers import tiny
from tests.helpers.parameters import stirred

ROWS, SIDE = 3, 16


@pytest.fixture(scope="module")
def network():
    model = rm.build(tiny.RINGMOE)
    return model, stirred(model.shapes())


@pytest.fixture(scope="module")
def skysense():
    model = rm.build(tiny.SKYSENSE)
    return model, stirred(model.shapes())


def arrays(names=("rgb", "s1_grd"), rows=ROWS, side=SIDE, dates=None, seed=0):
    """Pixels that the sensors can have measured."""
    random, lead = np.random.default_rng(seed), (rows,) if dates is None else (rows, dates)
    images = {}
    for name in names:
        sensor = rm.sensors.get(name)
        mean, std = np.asarray(sensor.statistics.mean), np.asarray(sensor.statistics.std)
        noise = random.standard_normal((*lead, side, side, sensor.channels))
        images[name] = np.clip(mean + 0.5 * std * noise, *sensor.valid_range)
    return images


# ---- The surface ----------------------------------------------------------------------------------


def test_importing_the_front_door_imports_nothing_heavy():
    program = "import sys, ringmoe_jax; print(*[m for m in ('jax', 'flax', 'numpy', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", rm.__all__)
def test_every_name_is_there_and_documented(name):
    assert name in dir(rm)
    assert getattr(rm, name).__doc__
    assert getattr(rm, name) is getattr(rm, name)


def test_importing_a_module_first_does_not_hide_a_name():
    """A module that was imported is an attribute of its package, and would be found before a name that lives in one."""
    assert not [name for name in rm._HOMES if find_spec(f"ringmoe_jax.{name}")]


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'encoder'"):
        _ = rm.encoder


# ---- Building --------------------------------------------------------------------------------------


def test_build_by_name_takes_sensors_of_ones_own():
    thermal = rm.Sensor(
        name="my_thermal",
        modality="thermal",
        unit="K",
        dtype="float32",
        valid_range=(150.0, 400.0),
        source="test",
        bands=(rm.Band("T", 290.0, 10.0, gsd=30.0),),
    )
    fields = {k: v for k, v in tiny.RINGMOE.items() if k not in ("name", "sensors")}
    model = rm.build("ringmoe", sensors=["rgb", thermal], **fields)
    assert set(model.streams) == {"rgb", "my_thermal"}
    sensors = {"rgb": rm.sensors.get("rgb"), "my_thermal": thermal}
    network = (model, stirred(model.shapes()), sensors)
    kelvin = np.full((1, SIDE, SIDE, 1), 290.0)
    assert rm.encode(network, {"my_thermal": kelvin}).pooled["my_thermal"].shape == (1, 16)
    with pytest.raises(DataError, match=r'images\["my_thermal"\] runs from 17 to 17, wanted K, 150 to 400'):
        rm.encode(network, {"my_thermal": kelvin - 273})


def test_fields_win_over_a_configuration():
    assert rm.build(tiny.RINGMOE, width=16).streams == {"rgb": 32, "s1_grd": 32}


def test_build_names_the_nearest():
    with pytest.raises(ConfigError, match='did you mean "ringmoe"'):
        rm.build("ringmo", sensors=["rgb"])
    with pytest.raises(ConfigError, match=r'sensors = "rgb" is a string: wanted a list, such as \["rgb"\]'):
        rm.build("ringmoe", sensors="rgb")


# ---- Features --------------------------------------------------------------------------------------


def test_features_are_those_of_the_model(network):
    """The same as the model applied to a batch that is written down by hand."""
    model, params = network
    images = arrays()
    features = rm.encode(network, images)
    entries = {
        name: {"pixels": x[:, None].astype(np.float32), "valid": np.ones((ROWS, 1, SIDE, SIDE), bool)}
        for name, x in images.items()
    }
    outputs = jax.jit(model.apply)(params, {"sensors": entries})
    for name in images:
        np.testing.assert_allclose(features.tokens[name], outputs["tokens"][name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(features.pooled[name], outputs["pooled"][name], rtol=1e-5, atol=1e-5)
        assert [stage.shape for stage in features.stages[name]] == [(ROWS, 1, 4, 4, 8), (ROWS, 1, 2, 2, 16)]
    assert features.fused is None


def test_blocks_give_what_one_batch_gives(network):
    images = arrays()
    whole, blocks = rm.encode(network, images), rm.encode(network, images, batch_size=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), vars(whole), vars(blocks))


def test_one_program_a_shape(network):
    from ringmoe_jax import encoding

    rm.encode(network, arrays(), batch_size=2)
    before = encoding._features._cache_size()
    rm.encode(network, arrays(rows=5, seed=1), batch_size=2)  # three blocks of the same shape
    assert encoding._features._cache_size() == before


def test_a_run_is_a_model_with_parameters_and_sensors(network):
    model, params = network
    run = types.SimpleNamespace(model=model, params=params, sensors={"rgb": rm.sensors.get("rgb")})
    images = arrays(("rgb",))
    np.testing.assert_array_equal(rm.encode(run, images).pooled["rgb"], rm.encode(network, images).pooled["rgb"])
    with pytest.raises(DataError, match=r'images has "s1_grd", which the model does not take: .*known: rgb'):
        rm.encode(run, arrays())


def test_an_opened_run(network):
    """Pixels are normalised by the statistics of the run, which lie in its record."""
    mean, std = (0.9, 0.1, 0.5), (0.3, 0.2, 0.1)
    config = dict(
        model=tiny.RINGMOE,
        objectives={"rgb": {"name": "masked_l1", "sensor": "rgb"}},
        data=dict(
            streams={"all": dict(directory="nowhere", sensors=("rgb", "s1_grd"))},
            image_size=16,
            mask_unit=8,
            batch_size=2,
        ),
    )
    statistics = {"rgb": dict(mean=mean, std=std, source="test")}
    record = dict(config=config, statistics=statistics, step=7)
    decoders = stirred(rm.Run(record, {}).model.shapes()["decoders"])
    run = rm.Run(record, network[1] | {"decoders": decoders})
    model = rm.build(tiny.RINGMOE, statistics={"rgb": rm.Statistics(mean, std, "test")})
    images = arrays(("rgb",))
    expected = rm.encode((model, network[1]), images).tokens["rgb"]
    np.testing.assert_array_equal(rm.encode(run, images).tokens["rgb"], expected)
    assert not np.allclose(rm.encode(network, images).tokens["rgb"], expected)


def test_features_of_a_run_hang_on_no_other_image():
    """Its experts have rows for half of the tokens: with the run's own engine, who comes first is served."""
    model = tiny.RINGMOE | dict(moe=dict(specialised=0, collaborative=2, eval_capacity_factor=0.5))
    stream = dict(directory="nowhere", sensors=("rgb", "s1_grd"))
    terms = {"rgb": {"name": "masked_l1", "sensor": "rgb"}}
    config = dict(
        model=model, objectives=terms, data=dict(streams={"all": stream}, image_size=16, mask_unit=8, batch_size=2)
    )
    record = dict(config=config, statistics={}, step=7)
    run = rm.Run(record, stirred(rm.Run(record, {}).model.shapes()))
    images = arrays(("rgb",))
    first = {"rgb": images["rgb"][:1]}

    def differ(network):
        alone, among = (rm.encode(network, shown, batch_size=3).pooled["rgb"][0] for shown in (first, images))
        return np.abs(alone - among).max()

    assert differ(run) < 1e-5 < 1e-3 < differ((run.model, run.params))


def test_what_is_not_finite_was_not_observed(network):
    """NaN, and what `valid` hides, leave no trace: any value may stand there."""
    images = arrays(("rgb",))
    hidden = np.zeros((ROWS, SIDE, SIDE), bool)
    hidden[:, :4, :8] = True
    holed = {"rgb": np.where(hidden[..., None], np.nan, images["rgb"])}
    absurd = {"rgb": np.where(hidden[..., None], 7e7, images["rgb"])}
    by_nan, by_mask = rm.encode(network, holed), rm.encode(network, absurd, valid={"rgb": ~hidden})
    assert np.isfinite(by_nan.pooled["rgb"]).all()
    np.testing.assert_array_equal(by_nan.tokens["rgb"], by_mask.tokens["rgb"])
    assert not np.allclose(by_nan.tokens["rgb"], rm.encode(network, images).tokens["rgb"])


def test_moments_are_means_and_deviations_of_what_was_observed(network):
    images = arrays(("rgb",))
    valid = np.ones((ROWS, SIDE, SIDE), bool)
    valid[:, : SIDE // 2] = False
    found = rm.encode(network, images, valid={"rgb": valid})
    halves = [stage[:, :, stage.shape[2] // 2 :] for stage in found.stages["rgb"]]  # rows of cells that show anything
    means, spreads = ([f(half, axis=(1, 2, 3)) for half in halves] for f in (np.mean, np.std))
    wanted = np.concatenate([*means, *spreads], axis=1)
    np.testing.assert_allclose(found.moments["rgb"], wanted, rtol=1e-4, atol=1e-5)


def test_dates_and_the_fused_stream(skysense):
    images = arrays(("s2_10", "s1_grd"), side=8, dates=2)
    undated = rm.encode(skysense, images)
    assert undated.fused.shape == (ROWS, 8, 8, 16)
    assert undated.pooled[FUSED].shape == (ROWS, 16)
    assert undated.tokens["s2_10"].shape == (ROWS, 2, 8, 8, 16)
    # A date table that is not all zeros makes dates matter; a day is a day in either notation.
    model, params = skysense
    params = params | {"dates": jax.random.normal(jax.random.key(1), params["dates"].shape)}
    numbers = np.tile(np.array([[17_000, 17_100]]), (ROWS, 1))
    days = {"s2_10": numbers.astype("datetime64[D]"), "s1_grd": numbers}
    dated = rm.encode((model, params), images, days=days).fused
    np.testing.assert_array_equal(dated, rm.encode((model, params), images, days=days | {"s2_10": numbers}).fused)
    assert not np.allclose(dated, rm.encode((model, params), images).fused)


def test_location_reaches_the_prototypes():
    model = rm.build(tiny.SKYSENSE, geo_context=dict(regions=16, prototypes=4, grid="mercator", zoom=4))
    network = (model, stirred(model.shapes()))  # prototypes start from zero
    images = arrays(("s1_grd",), side=8)
    here = np.tile([[48.0, 13.7]], (ROWS, 1))
    fused = [rm.encode(network, images, location=where).fused for where in (here, -here)]
    assert fused[0].shape == (ROWS, 8, 8, 32)
    assert not np.allclose(*fused)


# ---- Bad input: one line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[..., :2], r"so 2 bands; wanted the 3 bands red, green, blue"),
        (lambda x: np.moveaxis(x, -1, -3), r"wanted the bands last: give numpy.moveaxis\(pixels, -3, -1\)"),
        (lambda x: x[0], r"one image is pixels\[None\]"),
        (lambda x: x[:0], r"with at least one pixel"),
        (lambda x: x.astype(str), r"wanted real numbers in relative radiance"),
        (lambda x: (255 * x).astype(np.uint8), r"wanted relative radiance.*0 to 1: .*give 0.00392157 \* pixels"),
        (lambda x: x[:, :12], r"images are 12 x 16 pixels, the model takes 8 x 8 or 16 x 16"),
    ],
)
def test_wrong_pixels(network, change, message):
    with pytest.raises(DataError, match=message) as error:
        rm.encode(network, {"rgb": change(arrays(("rgb",))["rgb"])})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "advice"),
    [
        ("s2_12", lambda x: (x * 10_000).astype(np.uint16), r"give 0.0001 \* pixels"),
        ("s2_12", lambda x: x * 100, "give pixels / 100"),
        ("s1_grd", lambda x: 10 ** (x / 10), r"give 10 \* numpy.log10\(pixels\)"),
        ("s1_grd", lambda x: 10 ** (x / 20), r"give 20 \* numpy.log10\(pixels\)"),
        ("sar_amplitude", lambda x: 20 * np.log10(np.maximum(x, 1e-3)), r"give 10 \*\* \(pixels / 20\)"),
        ("ndsm", lambda x: np.where(np.arange(SIDE) < 4, -9999.0, x[..., 0])[..., None], "-9999 means not observed"),
        ("dem", lambda x: x * 1e6, "another unit: convert them"),
    ],
)
def test_another_unit_is_named(name, change, advice):
    fields = {k: v for k, v in tiny.RINGMOE.items() if k not in ("name", "sensors")}
    model = rm.build("ringmoe", sensors=[name], **fields)
    images = arrays((name,))
    params = stirred(model.shapes())
    with pytest.raises(DataError, match=advice):
        rm.encode((model, params), {name: change(images[name])})


def test_the_check_of_units_knows_outliers_and_can_be_left_out(network):
    images = arrays(("rgb",))
    images["rgb"][0, 0, 0] = 40.0  # 1 of 256 pixels of one image
    rm.encode(network, images)
    with pytest.raises(DataError, match="check_units=False"):
        rm.encode(network, {"rgb": images["rgb"] * 255})
    assert np.isfinite(rm.encode(network, {"rgb": images["rgb"] * 255}, check_units=False).pooled["rgb"]).all()


def test_arguments_that_do_not_belong_together(network):
    images = arrays()
    for arguments, message in [
        (dict(images={}), "images is empty: wanted pixels of at least one of rgb, s1_grd"),
        (dict(images=arrays() | arrays(("rgb",), rows=2)), "rgb 2, s1_grd 3: row i of all shows place i"),
        (dict(images={"rbg": images["rgb"]}), 'did you mean "rgb"'),
        (dict(images=arrays(("rgb",)), days={"s1_grd": [1, 2, 3]}), 'days has "s1_grd", images has rgb'),
        (dict(images=images, days={"rgb": [1.5] * 3}), r"wanted datetime64, or whole days since 1970-01-01, of shape"),
        (dict(images=images, valid={"rgb": np.ones((2, 16, 16), bool)}), r"valid\[\"rgb\"\] is bool\[2, 1, 16, 16\]"),
        (dict(images=images, location=np.zeros((3, 3))), r"location has shape \[3, 3\], wanted \[3, 2\]"),
        (dict(images=images, location=[[100.0, 10.0]] * 3), r"latitude 100 .*latitude \(-90 to 90\) first"),
        (dict(images=images, batch_size=0), "batch_size = 0: wanted at least 1"),
    ]:
        arguments = dict(arguments)
        with pytest.raises(DataError, match=message):
            rm.encode(network, arguments.pop("images"), **arguments)
    with pytest.raises(DataError, match="network is a Model: wanted a Run, or"):
        rm.encode(network[0], images)
