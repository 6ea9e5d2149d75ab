"""Training and evaluation batches: exact resume, hosts, mixing, shared geometry, and honest validity."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from input_pipeline.builder import write_dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.reader import train_batches
from input_pipeline.schema import Image, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors
from ringmoe_jax.config import build
from ringmoe_jax.data_config import DataConfig, StreamConfig
from ringmoe_jax.errors import ConfigError, DataError
from tests.helpers.tiny_data import metadata, write


def config(directory, *names, **changes) -> DataConfig:
    values = {"image_size": 8, "batch_size": 4, "mask_unit": 4}
    return DataConfig({"a": StreamConfig(str(directory), names or ("rgb",))}, **(values | changes))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def flat(batch, prefix=""):
    for key, value in batch.items():
        yield from flat(value, f"{prefix}/{key}") if isinstance(value, dict) else [(f"{prefix}/{key}", value)]


def assert_same(first, second):
    first, second = dict(flat(first)), dict(flat(second))
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)


def test_batch_is_as_the_contract_says(pair):
    batch = next(train_batches(config(pair, "s2_12", "slc_dual")))
    shapes = {key: (value.shape, value.dtype.name) for key, value in flat(batch)}
    assert shapes == {
        "/sensors/s2_12/pixels": ((4, 1, 8, 8, 12), "float32"),
        "/sensors/s2_12/valid": ((4, 1, 8, 8), "bool"),
        "/sensors/s2_12/time": ((4, 1), "int32"),
        "/sensors/s2_12/location": ((4, 2), "float32"),
        "/sensors/s2_12/gsd": ((4,), "float32"),
        "/sensors/s2_12/mask": ((4, 2, 2), "bool"),
        "/sensors/slc_dual/pixels": ((4, 1, 8, 8, 4), "float32"),
        "/sensors/slc_dual/valid": ((4, 1, 8, 8), "bool"),
        "/sensors/slc_dual/time": ((4, 1), "int32"),
        "/sensors/slc_dual/location": ((4, 2), "float32"),
        "/sensors/slc_dual/gsd": ((4,), "float32"),
        "/sensors/slc_dual/mask": ((4, 2, 2), "bool"),
        "/labels/kind": ((4,), "int32"),
        "/labels/map": ((4, 8, 8), "int32"),
        "/index": ((4,), "int64"),
    }
    masks = [batch["sensors"][name]["mask"] for name in ("s2_12", "slc_dual")]
    assert (np.stack(masks).sum((-1, -2)) == 3).all()  # ceil(0.6 * 4)


def test_every_epoch_shows_every_sample_once(tiny):
    index = np.concatenate([b["index"] for b in take(train_batches(config(tiny)), 9)]).reshape(3, 12)
    assert (np.sort(index, 1) == np.arange(12)).all()
    assert not np.array_equal(index[0], index[1])


@pytest.fixture(scope="module")
def uninterrupted(tiny):
    """Ten batches of one run, each with the state before it."""
    iterator = train_batches(config(tiny))
    return [(json.loads(json.dumps(iterator.get_state())), next(iterator)) for _ in range(10)]


@given(consumed=st.integers(0, 8))
@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_resume_is_exact(tiny, uninterrupted, consumed):
    resumed = train_batches(config(tiny))
    resumed.set_state(uninterrupted[consumed][0])
    for _, wanted in uninterrupted[consumed : consumed + 2]:
        assert_same(wanted, next(resumed))
    resumed.close()


def test_random_numbers_stay_as_they_are(tiny, pair):
    """Batches as written down when samples had one view: a run of then can be resumed today."""
    digest = hashlib.sha256()
    bands = {"slc_dual": ("VV_re", "VV_im")}
    for batch in take(train_batches(config(pair, "slc_dual", bands=bands)), 2):
        entry = batch["sensors"]["slc_dual"]  # samples are only moved, so every bit is known
        for array in (entry["pixels"], entry["mask"], batch["index"], entry["time"]):
            digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest()[:16] == "e049b646ca6ab37f"
    pixels = next(train_batches(config(tiny)))["sensors"]["rgb"]["pixels"][:, 0, [0, 3, 7], [1, 4, 6], 0]
    wanted = [[0.7122, 0.7946, 0.4735], [0.8088, 0.3909, 0.5369], [0.2412, 0.4771, 0.953], [0.4525, 0.2841, 0.6473]]
    np.testing.assert_allclose(pixels, wanted, atol=2e-4)


def test_set_state_rewinds_a_running_iterator(tiny):
    iterator = train_batches(config(tiny))
    state = iterator.get_state()
    first = take(iterator, 3)
    iterator.set_state(state)
    for wanted, got in zip(first, take(iterator, 3), strict=True):
        assert_same(wanted, got)
    iterator.close()


def test_state_of_another_run_is_refused(tiny, tmp_path):
    state = train_batches(config(tiny)).get_state()
    others = {
        "seed": train_batches(config(tiny, shuffle_seed=1)),
        "streams": train_batches(config(write(tmp_path / "d", "rgb", train=13))),
    }
    for key, iterator in others.items():
        with pytest.raises(DataError, match=f"saved data position has {key} = .*start it as before"):
            iterator.set_state(state)


@pytest.mark.parametrize("reader", ["tf", "device"])
def test_hosts_side_by_side_make_the_batch_of_one(tmp_path, reader):
    """Also where an epoch ends within a batch, and after a change of hosts: pixels, masks and order, bit for bit."""
    made = config(write(tmp_path / "d", "rgb", train=13), reader=reader)
    whole = train_batches(made)
    wanted = take(whole, 5)
    state = whole.get_state() | {"batches": 2, "hosts": 1}  # "hosts" is what earlier versions wrote
    parts = [train_batches(made, host=host, hosts=2) for host in (0, 1)]
    for part in parts:
        part.set_state(state)
    for batch in wanted[2:]:
        rows = [next(part) for part in parts]
        assert_same(jax.tree.map(lambda *x: np.concatenate(x), *rows), jax.tree.map(np.asarray, batch))
    for part in parts:
        part.close()


def test_random_numbers_differ_by_sample_epoch_and_seed(tiny):
    masks = [b["sensors"]["rgb"]["mask"] for b in take(train_batches(config(tiny, mask_unit=1)), 6)]
    rows = np.concatenate(masks).reshape(24, -1)
    assert len(np.unique(rows, axis=0)) == 24
    other = next(train_batches(config(tiny, mask_unit=1, shuffle_seed=1)))["sensors"]["rgb"]["mask"]
    assert (other != masks[0]).any()


def two_streams(tiny, pair, **changes):
    streams = {"a": StreamConfig(str(tiny), ("rgb",)), "b": StreamConfig(str(pair), ("s1_grd",), weight=0.5)}
    return DataConfig(streams, image_size=8, batch_size=6, mask_unit=0, **changes)


def test_zip_gives_every_stream_the_same_number(tiny, pair):
    batch = next(train_batches(two_streams(tiny, pair)))
    assert {n: len(e["pixels"]) for n, e in batch["sensors"].items()} == {"rgb": 6, "s1_grd": 6}
    assert set(batch) == {"sensors"}  # rows of different streams are different places
    assert "mask" not in batch["sensors"]["rgb"]


def test_temperature_gives_streams_their_share(tiny, pair):
    iterator = train_batches(two_streams(tiny, pair, mixing="temperature"), multiple_of=2)
    assert iterator.sizes == {"a": 8, "b": 4}  # 12 : 12 * 0.5 of 12 images, in twos
    batch = next(iterator)
    assert {n: len(e["pixels"]) for n, e in batch["sensors"].items()} == {"rgb": 8, "s1_grd": 4}


def test_a_sensor_belongs_to_one_stream(tiny):
    streams = {name: StreamConfig(str(tiny), ("rgb",)) for name in "ab"}
    with pytest.raises(ConfigError, match='"rgb" is in "a" and "b"'):
        train_batches(DataConfig(streams, image_size=8, batch_size=2, mask_unit=0))


def test_statistics_come_from_where_the_config_says(tiny):
    stored = train_batches(config(tiny)).statistics["rgb"]
    assert 'data set "tiny"' in stored.source
    np.testing.assert_allclose(stored.mean, [0.5] * 3, atol=0.03)  # uniform 1..254 of 255
    table = train_batches(config(tiny, statistics="table")).statistics["rgb"]
    assert table == sensors.get("rgb").statistics


def test_bands_are_chosen_by_name_or_alias(pair):
    names = ("nir", "B02", "red")
    (batch,) = EvalBatches(pair, ["s2_12"], image_size=8, batch_size=3, bands={"s2_12": names})
    (full,) = EvalBatches(pair, ["s2_12"], image_size=8, batch_size=3)
    table = sensors.get("s2_12")
    wanted = full["sensors"]["s2_12"]["pixels"][..., [table.band_index(n) for n in names]]
    np.testing.assert_array_equal(batch["sensors"]["s2_12"]["pixels"], wanted)
    statistics = train_batches(config(pair, "s2_12", bands={"s2_12": names})).statistics["s2_12"]
    whole = train_batches(config(pair, "s2_12")).statistics["s2_12"]
    assert statistics.mean == tuple(whole.mean[table.band_index(n)] for n in names)


def places(directory, with_complex):
    """64 training samples whose pixels say where in the tile they lie, on grids of 1:1 and 1:2, and a map."""
    names = {"dem": 16, "ndsm": 32} | ({"slc_single": 32} if with_complex else {})
    infos = {n: SensorInfo.of(sensors.get(n), (1, s, s), 1.0) for n, s in names.items()}
    images = {}
    for name, size in names.items():
        row, column = np.meshgrid(*2 * [(np.arange(size) + 0.5) / size], indexing="ij")
        channels = [row, column] if name == "slc_single" else [1000 * row + 10 * column]
        images[name] = Image(np.stack(channels, -1)[None].astype(np.float32))
    meta = Metadata("places", infos, "", "", "")
    return write_dataset(directory, {"train": [Sample(str(i), images) for i in range(64)]}, meta)


def test_sensors_of_a_sample_are_cropped_and_turned_alike(tmp_path):
    places(tmp_path / "d", with_complex=False)
    batch = next(train_batches(config(tmp_path / "d", "dem", "ndsm", batch_size=64, mask_unit=0)))
    coarse, fine = (batch["sensors"][n]["pixels"][:, 0, 1:-1, 1:-1, 0] for n in ("dem", "ndsm"))
    np.testing.assert_allclose(coarse, fine, atol=12)  # of 1000; border kernels differ by a fraction of a pixel
    corners = np.round(fine[:, [0, -1], :][:, :, [0, -1]]).reshape(64, -1)
    assert len({tuple(np.argsort(c)) for c in corners}) == 8  # all flips and rotations occur


def test_complex_sensor_sets_the_crop_of_its_companions(tmp_path):
    places(tmp_path / "d", with_complex=True)
    batch = next(train_batches(config(tmp_path / "d", "dem", "slc_single", batch_size=64, mask_unit=0)))
    slc = batch["sensors"]["slc_single"]["pixels"][:, 0]
    samples = slc * 32 - 0.5
    np.testing.assert_allclose(samples, np.round(samples), atol=1e-4)  # native samples, none interpolated
    assert np.ptp(samples[..., 0], axis=(1, 2)).tolist() == [7] * 64  # 8 neighbouring rows
    dem = batch["sensors"]["dem"]["pixels"][:, 0, 1:-1, 1:-1, 0]
    there = (1000 * slc[..., 0] + 10 * slc[..., 1])[:, 1:-1, 1:-1]
    np.testing.assert_allclose(dem, there, atol=16)  # a quarter of a dem pixel at the tile's border


def test_map_labels_turn_with_the_pixels(tmp_path):
    """The map of `tiny` holds the column; so does this image."""
    meta = metadata("rgb")
    columns = np.tile(np.arange(8), (8, 1))
    pixels = np.repeat(columns[None, ..., None], 3, -1).astype(np.uint8)
    labels = {"kind": 0, "map": columns}
    write_dataset(
        tmp_path / "d", {"train": [Sample(str(i), {"rgb": Image(pixels)}, labels=labels) for i in range(32)]}, meta
    )
    batch = next(train_batches(config(tmp_path / "d", batch_size=32, mask_unit=0)))
    shown = batch["sensors"]["rgb"]["pixels"][:, 0, ..., 0] * 255
    assert np.abs(shown - batch["labels"]["map"]).max() <= 0.75  # nearest against bilinear, with cut kernels


def test_invalid_pixels_are_zero_and_marked(tmp_path):
    info = {"ndsm": SensorInfo.of(sensors.get("ndsm"), (1, 2, 3), 1.0)}
    pixels = np.array([[1, np.nan, np.inf], [-9999, 5, 6]], np.float32)[None, ..., None]
    valid = np.array([[1, 1, 1], [1, 1, 0]], bool)[None]
    meta = Metadata("holes", {"ndsm": dataclasses.replace(info["ndsm"], shape=(1, 3, 3))}, "", "", "")
    pixels, valid = (np.concatenate([a, a[:, :1]], 1) for a in (pixels, valid))
    write_dataset(tmp_path / "d", {"train": [Sample("a", {"ndsm": Image(pixels, valid)})]}, meta)
    (batch,) = EvalBatches(tmp_path / "d", ["ndsm"], split="train", image_size=3, batch_size=1)
    entry = batch["sensors"]["ndsm"]
    assert entry["pixels"][0, 0, ..., 0].tolist() == [[1, 0, 0], [0, 5, 0], [1, 0, 0]]
    assert entry["valid"][0, 0].tolist() == [[True, False, False], [False, True, False], [True, False, False]]


def test_evaluation_shows_every_sample_once_on_all_hosts(tiny):
    parts = [
        list(EvalBatches(tiny, ["rgb"], split="train", image_size=8, batch_size=3, host=h, hosts=5)) for h in range(5)
    ]
    assert {len(part) for part in parts} == {1}
    assert [b["index"].tolist() for part in parts for b in part] == [
        [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [-1, -1, -1]
    ]  # fmt: skip
    fill = parts[4][0]
    assert not fill["real"].any()
    assert not fill["sensors"]["rgb"]["valid"].any()
    assert not fill["sensors"]["rgb"]["pixels"].any()


def test_evaluation_is_repeatable_and_masks_follow_the_index(tiny):
    batches = EvalBatches(tiny, ["rgb"], split="train", image_size=4, batch_size=5, mask_unit=1, seed=3)
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == 3
    for a, b in zip(first, second, strict=True):
        assert_same(a, b)
    other = EvalBatches(tiny, ["rgb"], split="train", image_size=4, batch_size=12, mask_unit=1, seed=3)
    masks = np.concatenate([b["sensors"]["rgb"]["mask"] for b in first])[:12]
    np.testing.assert_array_equal(masks, next(iter(other))["sensors"]["rgb"]["mask"])


def test_what_is_shown_alike_is_read_by_one_graph(tiny):
    """Whatever the split and the batch, for building one takes longer than reading a small split."""
    one, again, other = (
        EvalBatches(tiny, ["rgb"], split=split, image_size=size, batch_size=3)._read
        for split, size in (("train", 8), ("validation", 8), ("train", 4))
    )
    assert one is again
    assert one is not other


def test_evaluation_says_how_much_ground_it_shows(tiny, pair):
    """Whole tiles resized, and the centre that pixels of a complex sensor are cut to."""
    assert EvalBatches(tiny, ["rgb"], image_size=4, batch_size=3).ground == 8 * 10  # pixels of 10 m
    assert EvalBatches(pair, ["slc_dual"], image_size=16, batch_size=3).ground == 16 * 10
    assert EvalBatches(pair, ["slc_dual"], image_size=8, batch_size=3).ground == 8 * 10


@pytest.mark.parametrize("reader", ["tf", "device"])
def test_batches_say_how_fine_they_are(tiny, pair, reader):
    """Metres between pixels as they are shown: resized tiles, complex samples as they are, crops by their boxes."""
    fine = lambda source, name, size: next(  # noqa: E731
        iter(EvalBatches(source, [name], image_size=size, batch_size=3, reader=reader))
    )["sensors"][name]["gsd"]
    np.testing.assert_allclose(fine(tiny, "rgb", 4), 20.0)  # 8 px of 10 m shown in 4
    np.testing.assert_allclose(fine(tiny, "rgb", 8), 10.0)
    np.testing.assert_allclose(fine(pair, "slc_dual", 8), 10.0)
    crops = np.concatenate([b["sensors"]["rgb"]["gsd"] for b in take(train_batches(config(tiny, reader=reader)), 9)])
    assert len(np.unique(crops)) > 20
    assert crops.min() < crops.max() <= 10.0 * 8 / 8 + 1e-5


@pytest.mark.parametrize("reader", ["tf", "device"])
def test_crops_say_the_power_of_their_tile(pair, reader):
    """Of its valid pixels, whatever of it is shown; only complex sensors, and only where it is asked for."""
    names, wanted = ["slc_dual", "s2_12"], {}
    for batch in EvalBatches(pair, names, split="train", image_size=16, batch_size=4):
        tiles, real = batch["sensors"]["slc_dual"], batch["real"]
        for i, pixels, valid in zip(batch["index"][real], tiles["pixels"][real], tiles["valid"][real], strict=True):
            power = np.square(pixels.astype(np.float64)).sum(axis=-1)[valid]
            wanted[i] = [[power.min(), power.max()]]
    shown = config(pair, *names, reader=reader, tile_power=True)
    evaluation = EvalBatches.of(shown, pair, names, split="train", batch_size=4)
    for batch in (next(train_batches(shown)), next(iter(evaluation))):
        entries = batch["sensors"]
        limits = np.stack([wanted[i] for i in np.asarray(batch["index"])])
        np.testing.assert_allclose(entries["slc_dual"]["power"], limits, rtol=1e-5)
        own = np.square(entries["slc_dual"]["pixels"]).sum(axis=-1)
        assert own.max(axis=(2, 3)).min() < limits[..., 1].max()
        assert "power" not in entries["s2_12"]


def test_evaluation_of_complex_data_takes_the_centre(pair):
    (whole,) = EvalBatches(pair, ["slc_dual"], image_size=16, batch_size=3)
    (centre,) = EvalBatches(pair, ["slc_dual", "s2_12"], image_size=8, batch_size=3)
    wanted = whole["sensors"]["slc_dual"]["pixels"][:, :, 4:12, 4:12]
    np.testing.assert_array_equal(centre["sensors"]["slc_dual"]["pixels"], wanted)


def test_complex_tiles_that_are_too_small(pair):
    with pytest.raises(DataError, match='"slc_dual" are 16 x 16 px, smaller than image_size = 24'):
        train_batches(config(pair, "slc_dual", image_size=24))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixing": "zipp"}, 'data.mixing = \'zipp\': wanted "zip" or "temperature"'),
        ({"mask_unit": 3}, "data.mask_unit = 3: wanted 0 .* or a divisor of 8"),
        ({"mask_ratio": 1.5}, "data.mask_ratio = 1.5"),
        ({"batch_size": 0}, "data.batch_size = 0"),
        ({"statistics": "imagenet"}, "data.statistics"),
        ({"shufle_seed": 1}, 'shufle_seed does not exist: did you mean "shuffle_seed"'),
        ({"streams": {"a": {"directory": "x", "sensors": ["rgb"], "crop_scale": [0.5, 0.2]}}}, "streams.a.crop_scale"),
    ],
)
def test_wrong_config(change, message):
    values = {
        "streams": {"a": {"directory": "x", "sensors": ["rgb"]}},
        "image_size": 8,
        "batch_size": 2,
        "mask_unit": 4,
    }
    with pytest.raises(ConfigError, match=message):
        build(DataConfig, values | change, "data")


def test_batches_that_hosts_cannot_share(tiny):
    with pytest.raises(ConfigError, match="gives a: 4 images a step, wanted a multiple of 3"):
        train_batches(config(tiny), hosts=3)


@pytest.mark.slow
def test_a_program_that_forgets_to_close_still_ends(tiny):
    """Threads of tf.data that call Python must not outlive it: they would hang or abort the process."""
    program = (
        "from input_pipeline.reader import train_batches\n"
        "from ringmoe_jax.data_config import DataConfig, StreamConfig\n"
        f"streams = {{'a': StreamConfig({str(tiny)!r}, ('rgb',))}}\n"
        "iterator = train_batches(DataConfig(streams, image_size=64, batch_size=64, mask_unit=8))\n"
        "print(next(iterator)['index'].shape)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "(64,)\n")
