"""Batches of the reader "device": order, resume, the contract, what is refused, and draws distributed as by "tf"."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from scipy import stats

from input_pipeline.builder import write_dataset
from input_pipeline.device import storage
from input_pipeline.reader import train_batches
from input_pipeline.schema import Image, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.data_config import DataConfig, PhotometricConfig, StreamConfig, ViewsConfig
from ringmoe_jax.errors import DataError
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.training import loop
from tests.helpers import scenes_of_all_kinds

VIEWS = ViewsConfig(local=2, local_sensor="rgb", local_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return scenes_of_all_kinds.write(tmp_path_factory.mktemp("all") / "kinds")


def config(directory, *names, stream=None, reader="device", **changes) -> DataConfig:
    values = {"image_size": 8, "batch_size": 4, "mask_unit": 4, "reader": reader}
    return DataConfig({"a": StreamConfig(str(directory), names or ("rgb",), **(stream or {}))}, **(values | changes))


def take(iterator, count):
    return [jax.device_get(next(iterator)) for _ in range(count)]


def described(batch):
    return jax.tree.map(lambda x: (x.shape, x.dtype.name), batch)


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        pytest.param(
            ("rgb", "s1_grd"), {"views": VIEWS, "image_size": 16, "frames": {"s1_grd": 3}}, marks=pytest.mark.slow
        ),
        (("rgb", "ndsm"), {"stream": {"crop_ratio": (1, 1)}, "mask_unit": 0}),
        (("slc_dual", "rgb"), {"views": VIEWS, "sizes": {"slc_dual": 16, "rgb": 16}, "rotate": False}),
    ],
)
def test_a_batch_has_the_structure_of_the_other_reader_s(folder, names, changes):
    ours, theirs = (next(train_batches(config(folder, *names, **changes, reader=r))) for r in ("device", "tf"))
    assert described(ours) == described(theirs)
    np.testing.assert_array_equal(ours["index"], theirs["index"])
    assert isinstance(jax.tree.leaves(ours["sensors"])[0], jax.Array)
    for sensor, entry in theirs["sensors"].items():
        np.testing.assert_array_equal(ours["sensors"][sensor]["location"], entry["location"])
    for name in ("kind", "several", "value"):
        np.testing.assert_array_equal(ours["labels"][name], theirs["labels"][name])


@pytest.mark.parametrize(("host", "hosts", "fraction"), [(0, 1, 1.0), (1, 2, 1.0), (0, 1, 0.5)])
def test_both_readers_show_records_in_one_order(tiny, host, hosts, fraction):
    parts = []
    for reader in ("device", "tf"):
        iterator = train_batches(config(tiny, reader=reader, stream={"fraction": fraction}), host=host, hosts=hosts)
        parts.append(take(iterator, 5))
        iterator.close()
    for ours, theirs in zip(*parts, strict=True):
        np.testing.assert_array_equal(ours["index"], theirs["index"])
        np.testing.assert_array_equal(ours["sensors"]["rgb"]["location"], theirs["sensors"]["rgb"]["location"])


def test_resume_is_exact_and_close_frees(tiny):
    make = functools.partial(train_batches, config(tiny, views=VIEWS, image_size=16))
    iterator = make()
    states, batches = [], []
    for _ in range(5):
        states.append(json.loads(json.dumps(iterator.get_state())))
        batches.append(jax.device_get(next(iterator)))
    for start in (0, 3):
        resumed = make()
        resumed.set_state(states[start])
        for wanted in batches[start : start + 2]:
            assert_same(jax.device_get(next(resumed)), wanted)
    iterator.close()
    iterator.set_state(states[1])
    assert_same(jax.device_get(next(iterator)), batches[1])
    with pytest.raises(DataError, match="saved data position has seed"):
        train_batches(config(tiny, shuffle_seed=1)).set_state(states[0])


@pytest.mark.slow
def test_samples_seeds_and_streams_draw_different_numbers(tiny):
    masks = np.concatenate([b["sensors"]["rgb"]["mask"] for b in take(train_batches(config(tiny, mask_unit=1)), 6)])
    assert len(np.unique(masks.reshape(24, -1), axis=0)) == 24
    other = next(train_batches(config(tiny, mask_unit=1, shuffle_seed=2**40)))["sensors"]["rgb"]["mask"]
    assert (np.asarray(other) != masks[:4]).any()
    streams = {name: StreamConfig(str(tiny), ("rgb",)) for name in "ab"}
    batches = [
        jax.device_get(
            next(train_batches(DataConfig({n: s}, image_size=8, batch_size=4, mask_unit=1, reader="device")))
        )
        for n, s in streams.items()
    ]
    assert (batches[0]["sensors"]["rgb"]["mask"] != batches[1]["sensors"]["rgb"]["mask"]).any()


@pytest.mark.slow
def test_several_streams_are_joined(tiny, pair):
    streams = {"a": StreamConfig(str(tiny), ("rgb",)), "b": StreamConfig(str(pair), ("s1_grd",), weight=0.5)}
    values = dict(image_size=8, batch_size=6, mask_unit=0, mixing="temperature", views=ViewsConfig())
    ours, theirs = (next(train_batches(DataConfig(streams, reader=r, **values))) for r in ("device", "tf"))
    assert described(ours) == described(theirs)
    assert len(ours["views"]["second"]["s1_grd"]["pixels"]) == 4


def test_nothing_crosses_from_the_host_unasked(tiny):
    """The loop trains under this guard; and arrays that lie on a device are spread over a mesh."""
    with jax.transfer_guard("disallow"):
        iterator = train_batches(config(tiny, batch_size=8, views=VIEWS, image_size=16))
        batch = loop.place(next(iterator), None)
        mesh = meshes.make(meshes.MeshConfig(), jax.devices()[:8])
        spread = loop.place(next(iterator), mesh)
    pixels = batch["sensors"]["rgb"]["pixels"]
    assert pixels.devices() == {jax.devices()[0]}
    assert len(spread["views"]["second"]["rgb"]["pixels"].devices()) == 8
    again = train_batches(config(tiny, batch_size=8, views=VIEWS, image_size=16))
    _, wanted = take(again, 2)
    assert_same(jax.device_get(spread), {**wanted, "index": wanted["index"].astype(np.int32)})


def test_arrays_are_no_part_of_the_program(tiny):
    """A split that were compiled into the program would be copied and hashed with it."""
    iterator = train_batches(config(tiny))
    stream = iterator._source._streams["a"]
    arrays = stream.load()
    rows, numbers = np.zeros(4, np.int32), np.zeros((4, 2), np.uint32)
    assert arrays["sensors"]["rgb"]["stored"].shape == (12, 1, 8, 8, 3)
    assert arrays["sensors"]["rgb"]["stored"].dtype == np.uint8
    assert "valid" not in arrays["sensors"]["rgb"]  # all are
    assert "12x1x8x8x3" in str(stream._make.lower(arrays, rows, numbers).as_text().splitlines()[1:3])
    assert all(x.size < 100 for x in jax.make_jaxpr(stream._batch)(arrays, rows, numbers).consts)


def test_broken_records_are_named_counted_and_not_shown(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    shard = next(copy.glob("*train*00000-of*"))
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    iterator = train_batches(config(copy, max_bad_records=1))
    index = np.concatenate([batch["index"] for batch in take(iterator, 6)])
    assert iterator.bad_records == 1
    assert set(index) == set(range(1, 12))
    assert all(b["sensors"]["rgb"]["valid"].all() for b in take(iterator, 3))
    with pytest.raises(DataError, match="1 broken records, 0 allowed"):
        next(train_batches(config(copy)))


def test_data_that_does_not_fit_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(storage, "_memory", lambda: 2**10)
    with pytest.raises(DataError) as error:
        train_batches(config(tiny))
    # 12 samples of 192 bytes of pixels, 64 of validity, 4 of time, 8 of place and 132 of labels
    assert str(error.value).startswith(
        'data.reader = "device": 12 samples take 4.47e-06 GiB, more than 50% of the 9.54e-07'
    )
    assert "\n" not in str(error.value)
    monkeypatch.setattr(storage, "_memory", lambda: 2 * 12 * (192 + 64 + 4 + 8 + 132))
    train_batches(config(tiny))


# ---- Distributions ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """32 tiles of constant brightness 0.4 (24 x 16 px), with a series of ten dates, the last two of unknown time."""
    folder = tmp_path_factory.mktemp("plain") / "plain"
    infos = {
        "rgb": SensorInfo.of(sensors.get("rgb"), (1, 24, 16), 1.0),
        "ndsm": SensorInfo.of(sensors.get("ndsm"), (10, 6, 4), 4.0),
    }
    time = np.array([10_000 + 100 * i for i in range(8)] + [NO_TIME] * 2)
    dates = np.broadcast_to(np.arange(1, 11, dtype=np.float32)[:, None, None, None], (10, 6, 4, 1))
    images = {"rgb": Image(np.full((1, 24, 16, 3), 102, np.uint8)), "ndsm": Image(np.array(dates), time=time)}
    meta = Metadata("plain", infos, "", "", "")
    write_dataset(folder, {"train": [Sample(str(i), images, 1.0, 2.0) for i in range(32)]}, meta)
    return folder


def drawn(folder, reader, *names, draws=512, **changes):
    """Batches of a reader, joined: [draws, ...]; fewer sensors are a smaller graph to build."""
    values = {"batch_size": 64, "image_size": 8, "sizes": {"ndsm": 4}, "mask_unit": 2, "statistics": "table"}
    stream = {"crop_scale": (0.2, 0.9), "crop_ratio": (0.5, 2)}
    iterator = train_batches(config(folder, *names, stream=stream, reader=reader, **(values | changes)))
    batches = take(iterator, draws // 64)
    iterator.close()
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def alike(ours, theirs, least=1e-3):
    """Whether two samples of one number may be of one distribution (Kolmogorov and Smirnov)."""
    assert stats.ks_2samp(np.ravel(ours), np.ravel(theirs)).pvalue > least


def geometry(entry):
    """Top, left, height and width of boxes, and which of the eight turns."""
    linear, corner = entry["ground"][..., :2], entry["ground"][..., 2]
    extent = np.abs(linear).sum(-1)
    low = corner + np.minimum(linear, 0).sum(-1)
    signs = np.sign(np.round(linear, 6)).reshape(-1, 4)
    return np.concatenate([low, extent], -1), np.unique(signs, axis=0, return_inverse=True)[1]


@pytest.fixture(scope="module")
def views_of_both(plain):
    chosen = ViewsConfig(overlap=0.4, local=2, local_sensor="rgb", local_size=4, date_jitter=5)
    return [drawn(plain, reader, "rgb", "ndsm", views=chosen, frames={"ndsm": 3}) for reader in ("device", "tf")]


@pytest.mark.slow
@pytest.mark.parametrize("view", ["first", "second", "local0", "local1"])
def test_boxes_and_turns_are_distributed_alike(views_of_both, view):
    entries = [(b["sensors"] if view == "first" else b["views"][view])["rgb"] for b in views_of_both]
    (ours, our_turns), (theirs, their_turns) = map(geometry, entries)
    for column in range(4):
        alike(ours[:, column], theirs[:, column])
    alike(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])  # areas
    alike(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])
    for turns in (our_turns, their_turns):
        counts = np.bincount(turns, minlength=8)
        assert len(counts) == 8
        assert stats.chisquare(counts).pvalue > 1e-3


def test_second_views_overlap_alike(views_of_both):
    shares = []
    for batch in views_of_both:
        first, second = (geometry(e["rgb"])[0] for e in (batch["sensors"], batch["views"]["second"]))
        begin = np.maximum(first[:, :2], second[:, :2])
        end = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
        shares.append(np.prod(np.maximum(end - begin, 0), 1) / np.prod(first[:, 2:], 1))
        assert shares[-1].min() >= 0.4 - 1e-5
        small = geometry(batch["views"]["local0"]["rgb"])[0]
        np.testing.assert_allclose(small[:, 2:], second[:, 2:] / 2, rtol=1e-4)
        centre = small[:, :2] + small[:, 2:] / 2
        assert ((centre >= second[:, :2] - 1e-5) & (centre <= second[:, :2] + second[:, 2:] + 1e-5)).all()
    alike(*shares)


def test_dates_and_their_moves_are_distributed_alike(views_of_both):
    """The value of a pixel is the number of its date."""
    chosen = []
    for batch in views_of_both:
        entry = batch["sensors"]["ndsm"]
        number = np.round(entry["pixels"][..., 0].mean((2, 3))).astype(int)
        assert (np.diff(number) > 0).all()  # without replacement, in their order
        moved = entry["time"] - (10_000 + 100 * (number - 1))
        known = entry["time"] != NO_TIME
        assert (known == (number <= 8)).all()
        moves = np.bincount(moved[known] + 5, minlength=11)
        assert len(moves) == 11
        assert stats.chisquare(moves).pvalue > 1e-3
        chosen.append(number)
    for column in range(3):
        alike(chosen[0][:, column], chosen[1][:, column])


def test_masks_hide_alike(views_of_both):
    for batch in views_of_both:
        for name, side in (("rgb", 4), ("ndsm", 2)):
            mask = batch["sensors"][name]["mask"].reshape(512, -1)
            assert (mask.sum(1) == np.ceil(0.6 * side**2)).all()
            assert abs(mask.mean(0) - mask.mean()).max() < 0.1  # deviation 0.022


@pytest.mark.parametrize(
    ("changes", "statistic"),
    [
        pytest.param({"gain": 0.3}, lambda x: np.log(x / 0.4), marks=pytest.mark.slow),
        ({"illumination": 0.3}, lambda x: np.log(x / 0.4)),
        ({"offset": 0.5}, lambda x: (x - 0.4) / np.array([0.229, 0.224, 0.225])),
    ],
)
def test_gains_and_offsets_are_distributed_alike(plain, changes, statistic):
    views = ViewsConfig(photometric={"rgb": PhotometricConfig(**changes)})
    values = []
    for reader in ("device", "tf"):
        batch = drawn(plain, reader, "rgb", views=views)
        pixels = [e["rgb"]["pixels"] for e in (batch["sensors"], batch["views"]["second"])]
        for image in pixels:
            assert np.ptp(image, axis=(1, 2, 3)).max() < 1e-5  # one number a band
        values.append(statistic(np.stack([image[:, 0, 0, 0] for image in pixels])))
        (std,) = changes.values()
        assert values[-1].std() == pytest.approx(std, rel=0.07)
        together = np.corrcoef(values[-1].reshape(-1, 3).T)[0, 1]
        assert together > 0.999 if "illumination" in changes else abs(together) < 0.15  # else bands by themselves
        assert abs(np.corrcoef(values[-1][..., 0])[0, 1]) < 0.2  # views, too
    alike(*values)


@pytest.mark.slow
def test_blur_solarisation_and_loss_of_bands_are_distributed_alike(tmp_path):
    """A checkerboard of 0.2 and 0.8 loses contrast by a blur, turns over by a solarisation, and loses bands."""
    board = np.indices((8, 8)).sum(0) % 2
    pixels = np.repeat(np.where(board, 204, 51)[None, ..., None], 3, -1).astype(np.uint8)
    meta = Metadata("board", {"rgb": SensorInfo.of(sensors.get("rgb"), (1, 8, 8), 1.0)}, "", "", "")
    write_dataset(tmp_path / "d", {"train": [Sample(str(i), {"rgb": Image(pixels)}) for i in range(32)]}, meta)
    chosen = PhotometricConfig(blur=0.5, solarise=0.3, drop_band=0.4)
    spreads, dropped = [], []
    for reader in ("device", "tf"):
        stream = {"crop_scale": (1.0, 1.0), "crop_ratio": (1, 1)}
        views = ViewsConfig(photometric={"rgb": chosen})
        iterator = train_batches(
            config(tmp_path / "d", stream=stream, reader=reader, batch_size=64, views=views, statistics="table")
        )
        images = np.concatenate([batch["sensors"]["rgb"]["pixels"][:, 0] for batch in take(iterator, 8)])
        iterator.close()
        lost = np.ptp(images, axis=(1, 2)) == 0
        np.testing.assert_allclose(images[lost[:, 0], 0, 0, 0], 0.485, rtol=1e-5)  # the mean of the table
        assert not lost.all(1).any()
        dropped.append(lost.sum(1))
        spreads.append(np.where(lost, 0, np.ptp(images, axis=(1, 2))).max(1))
        assert abs(lost.mean() - (0.4 - 0.4**3 / 3)) < 0.04  # one is kept where all would go
    alike(*spreads)
    assert stats.chi2_contingency([np.bincount(lost, minlength=3) for lost in dropped]).pvalue > 1e-3
