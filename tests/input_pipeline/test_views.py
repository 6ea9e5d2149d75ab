"""Views of a sample: the ground that they say they show, its overlap, dates and disturbances, and exact resume.

Both optical sensors of `places` hold where a pixel lies in the tile (row and column, 0 to 1) and its date, so every
image can be compared with the ground that its entry claims.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import views
from input_pipeline.builder import write_dataset
from input_pipeline.cpu_tf import tf
from input_pipeline.evaluation import EvalBatches
from input_pipeline.reader import train_batches
from input_pipeline.schema import CLASSES, MAP, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.data_config import DataConfig, PhotometricConfig, StreamConfig, ViewsConfig

GRID, DATES, COUNT = 10, 6, 64
SHAPES = {"ms4": (1, 60, 60), "s2_10": (DATES, GRID, GRID), "slc_single": (1, 20, 20)}
DAYS = 17_000 + 5 * np.arange(DATES)  # closer than what they are moved by
SIZES = {"s2_10": 6, "ms4": 24}
SNAPPED = ViewsConfig(grid="s2_10", overlap=0.5, local=2, local_sensor="ms4", local_size=8)


def where_pixels_lie(shape, channels: int):
    """Row, column and number of the date (/ 1000) as bands of uint16 reflectances; see `decoded`."""
    times, height, width = shape
    row, column = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    values = np.full((*shape, channels), 0.5)
    values[..., 0], values[..., 1] = row, column
    values[..., 2] = np.arange(times)[:, None, None] / 1000
    return np.round(1 + 9000 * values).astype(np.uint16)  # 0 means not observed


def decoded(pixels):
    """Row, column and number of the date from reflectances."""
    values = (pixels[..., :3] * 10_000 - 1) / 9000
    return values[..., :2], np.round(values[..., 2] * 1000)


def observed(i: int) -> np.ndarray:
    """Dates of sample i with a valid pixel; none in sample 0."""
    return np.random.default_rng(i).permutation(DATES) < i % (DATES + 1)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """64 samples of ms4 (60 px), s2_10 (10 px, 6 dates, some of them invalid) and slc_single (20 px), and a map."""
    directory = tmp_path_factory.mktemp("places") / "d"
    infos = {name: SensorInfo.of(sensors.get(name), shape, 1.0) for name, shape in SHAPES.items()}
    labels = {"kind": LabelInfo(CLASSES, ("a",), ""), "map": LabelInfo(MAP, tuple("abcdefghij"), "column", "s2_10")}
    fine, coarse = (where_pixels_lie(SHAPES[name], sensors.get(name).channels) for name in ("ms4", "s2_10"))
    samples = []
    for i in range(COUNT):
        valid = np.broadcast_to(observed(i)[:, None, None], SHAPES["s2_10"])
        native = where_pixels_lie(SHAPES["slc_single"], 3)[..., :2].astype(np.float32) * 1e-4
        images = {"ms4": Image(fine), "s2_10": Image(coarse, valid, DAYS), "slc_single": Image(native)}
        samples.append(Sample(str(i), images, float(i), 0.0, {"kind": 0, "map": np.tile(np.arange(GRID), (GRID, 1))}))
    write_dataset(directory, {"train": samples}, Metadata("places", infos, "", "", "", labels=labels))
    return directory


def config(directory, *names, **changes) -> DataConfig:
    values = {"image_size": 8, "batch_size": COUNT, "mask_unit": 0, "sizes": SIZES, "views": SNAPPED}
    values["statistics"] = "table"  # some bands are constant
    return DataConfig({"a": StreamConfig(str(directory), names or ("ms4", "s2_10"))}, **(values | changes))


def first_batch(*arguments, **changes):
    iterator = train_batches(config(*arguments, **changes))
    batch = next(iterator)
    iterator.close()
    return batch


def every_view(batch):
    """Name and entries of the first view and the others."""
    return {"first": batch["sensors"], **batch["views"]}


def ground_of(entry):
    """[B, H, W, 2]: row and column in the tile of every pixel's centre, as the entry says."""
    size = entry["pixels"].shape[2]
    centres = (np.arange(size) + 0.5) / size
    points = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)
    matrix = entry["ground"]
    return np.einsum("bij,hwj->bhwi", matrix[..., :2], points) + matrix[:, None, None, :, 2]


def boxes(entry):
    """[B, 2, 2]: upper left and lower right corner in the tile."""
    corners = np.stack([entry["ground"][..., 2], entry["ground"].sum(-1)], 1)
    return np.stack([corners.min(1), corners.max(1)], 1)


def shared(first, second):
    """[B]: share of the first boxes' area that the second ones show."""
    end, begin = np.minimum(first[:, 1], second[:, 1]), np.maximum(first[:, 0], second[:, 0])
    return np.maximum(end - begin, 0).prod(1) / (first[:, 1] - first[:, 0]).prod(1)


@pytest.fixture(scope="module")
def snapped(places):
    return first_batch(places)


def test_views_are_as_the_contract_says(snapped):
    shapes = {
        view: {n: {k: v.shape[1:] for k, v in e.items()} for n, e in s.items()}
        for view, s in every_view(snapped).items()
    }
    rest = {"location": (2,), "gsd": (), "ground": (2, 3)}
    fine = {"pixels": (1, 24, 24, 4), "valid": (1, 24, 24), "time": (1,), **rest}
    coarse = {"pixels": (6, 6, 6, 10), "valid": (6, 6, 6), "time": (6,), **rest}
    local = {"ms4": {**fine, "pixels": (1, 8, 8, 4), "valid": (1, 8, 8)}}
    both = {"ms4": fine, "s2_10": coarse}
    assert shapes == {"first": both, "second": both, "local0": local, "local1": local}
    assert snapped["sensors"]["ms4"]["ground"].dtype == np.float32
    assert snapped["labels"]["map"].shape == (COUNT, 6, 6)  # the size of its sensor


@pytest.mark.parametrize("view", ["first", "second", "local0", "local1"])
def test_snapped_views_show_the_ground_that_they_say(snapped, view):
    entries = every_view(snapped)[view]
    orientations = {tuple(np.sign(np.round(m[:, :2], 6)).ravel()) for m in entries["ms4"]["ground"]}
    assert len(orientations) == 8  # all flips and rotations occur
    for name, entry in entries.items():
        shown, valid = decoded(entry["pixels"])[0], entry["valid"]
        truth = np.broadcast_to(ground_of(entry)[:, None], shown.shape)
        # Whole pixels of the grid are only moved; an antialiased ramp is right to a part of a fine pixel.
        tolerance = {"s2_10": 2e-4, "ms4": 0.5 / 60}[name]
        np.testing.assert_allclose(shown[valid], truth[valid], atol=tolerance)
        np.testing.assert_array_equal(entry["ground"], entries["ms4"]["ground"])  # sensors of a view share it


@pytest.mark.parametrize("view", ["first", "second"])
def test_views_are_whole_pixels_of_the_grid(snapped, view):
    corners = boxes(every_view(snapped)[view]["ms4"]) * GRID
    np.testing.assert_allclose(corners, np.round(corners), atol=1e-4)
    np.testing.assert_allclose(corners[:, 1] - corners[:, 0], 6, atol=1e-4)
    assert (np.ptp(np.round(corners[:, 0]), axis=0) == 4).all()  # every place occurs


def test_local_crops_are_whole_pixels_with_their_centre_in_the_second_view(snapped):
    view = boxes(snapped["views"]["second"]["ms4"])
    outside = 0
    for key in ("local0", "local1"):
        corners = boxes(snapped["views"][key]["ms4"])
        np.testing.assert_allclose(corners * GRID, np.round(corners * GRID), atol=1e-4)
        np.testing.assert_allclose(corners[:, 1] - corners[:, 0], 0.2, atol=1e-5)  # 8 of 24 px of 6 of 10 px
        assert corners.min() > -1e-5
        assert corners.max() < 1 + 1e-5
        centre = corners.mean(1)
        assert ((centre > view[:, 0] - 1e-5) & (centre < view[:, 1] + 1e-5)).all()
        outside += (shared(corners, view) < 0.99).sum()
    assert outside  # the crop itself may reach beyond
    assert (boxes(snapped["views"]["local0"]["ms4"]) != boxes(snapped["views"]["local1"]["ms4"])).any()


def test_views_differ_and_overlap(snapped):
    first, second = boxes(snapped["sensors"]["ms4"]), boxes(snapped["views"]["second"]["ms4"])
    assert shared(first, second).min() >= 0.5 - 1e-5
    assert (np.abs(first - second).max((1, 2)) > 0.05).mean() > 0.5
    turned = np.abs(snapped["sensors"]["ms4"]["ground"] - snapped["views"]["second"]["ms4"]["ground"])[..., :2]
    assert (turned.max((1, 2)) > 0.1).mean() > 0.5


def test_free_boxes_show_the_ground_that_they_say(places):
    streams = {"a": StreamConfig(str(places), ("ms4", "s2_10"), crop_scale=(0.3, 0.8))}
    chosen = DataConfig(
        streams, 24, COUNT, mask_unit=0, views=ViewsConfig(overlap=0.6), sizes={"s2_10": 8}, statistics="table"
    )
    batch = next(train_batches(chosen))
    assert set(batch["views"]) == {"second"}
    for entries in every_view(batch).values():
        for name, tolerance in {"ms4": 0.5 / 60, "s2_10": 0.25 / 10}.items():  # parts of a pixel
            entry = entries[name]
            inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # at the tile's border kernels are cut
            shown, valid = decoded(entry["pixels"])[0][inside], entry["valid"][inside]
            truth = np.broadcast_to(ground_of(entry)[:, None, 1:-1, 1:-1], shown.shape)
            np.testing.assert_allclose(shown[valid], truth[valid], atol=tolerance)
    first, second = (boxes(entries["ms4"]) for entries in every_view(batch).values())
    assert shared(first, second).min() >= 0.6 - 1e-5


@pytest.mark.parametrize("grid", ["", "s2_10"])
def test_complex_sensors_keep_their_samples(places, grid):
    local = ViewsConfig(grid=grid, local=1, local_sensor="slc_single", local_size=4)
    batch = first_batch(places, "s2_10", "slc_single", sizes={"s2_10": 6, "slc_single": 12}, views=local)
    for view, entries in every_view(batch).items():
        entry = entries["slc_single"]
        shown = (entry["pixels"][:, 0] * 10_000 - 1) / 9000
        np.testing.assert_allclose(shown, ground_of(entry), atol=2e-4)
        if view != "local0":
            np.testing.assert_allclose(entry["ground"], entries["s2_10"]["ground"], atol=1e-6)


def test_complex_samples_that_a_box_cannot_hit_say_what_they_show(tmp_path):
    """Windows of 4 of 6 dem pixels begin between the samples of a 9 x 9 grid."""
    shapes = {"dem": (1, 6, 6), "slc_single": (1, 9, 9)}
    infos = {name: SensorInfo.of(sensors.get(name), shape, 1.0) for name, shape in shapes.items()}
    images = {"dem": Image(np.arange(36, dtype=np.float32).reshape(1, 6, 6, 1))}
    images["slc_single"] = Image(where_pixels_lie(shapes["slc_single"], 3)[..., :2].astype(np.float32) * 1e-4)
    meta = Metadata("odd", infos, "", "", "")
    write_dataset(tmp_path / "d", {"train": [Sample(str(i), images) for i in range(16)]}, meta)
    sizes = {"dem": 4, "slc_single": 6}
    batch = first_batch(tmp_path / "d", "dem", "slc_single", batch_size=16, sizes=sizes, views=ViewsConfig(grid="dem"))
    for entries in every_view(batch).values():
        shown = (entries["slc_single"]["pixels"][:, 0] * 10_000 - 1) / 9000
        np.testing.assert_allclose(shown, ground_of(entries["slc_single"]), atol=2e-4)
        assert np.abs(entries["slc_single"]["ground"] - entries["dem"]["ground"]).max() < 0.6 / 9


@pytest.mark.parametrize("two", [True, False])
def test_sub_sequences_are_sorted_distinct_and_observed(places, two):
    chosen = ViewsConfig(grid="s2_10", overlap=0.5) if two else None
    batch = first_batch(places, "s2_10", sizes={"s2_10": 6}, frames={"s2_10": 3}, views=chosen)
    entries = [batch["sensors"], *([batch["views"]["second"]] if two else [])]
    for entry in (e["s2_10"] for e in entries):
        assert entry["pixels"].shape[:2] == (COUNT, 3)
        for row, number in enumerate(entry["location"][:, 0].astype(int)):
            count = min(3, observed(number).sum())
            time, valid = entry["time"][row], entry["valid"][row]
            assert (np.diff(time[:count]) > 0).all()
            assert set(time[:count]) <= set(DAYS[observed(number)])
            assert (time[count:] == NO_TIME).all()
            assert valid[:count].all()
            assert not valid[count:].any()
            assert not entry["pixels"][row, count:].any()
            dates = decoded(entry["pixels"][row, :count])[1]
            np.testing.assert_array_equal(dates, np.broadcast_to((time[:count, None, None] - 17_000) / 5, dates.shape))
    if two:
        assert (entries[0]["s2_10"]["time"] != entries[1]["s2_10"]["time"]).any(1).mean() > 0.3


@given(shown=st.lists(st.booleans(), min_size=1, max_size=12), data=st.data())
@settings(deadline=None, max_examples=25)
def test_chosen_frames(shown, data):
    count = data.draw(st.integers(1, len(shown)))
    seed = data.draw(st.one_of(st.none(), st.integers(0, 1000).map(lambda seed: tf.constant([seed, 1]))))
    index, present = (a.numpy() for a in views.choose_frames(tf.constant(shown), count, seed))
    wanted = min(count, sum(shown))
    assert present.tolist() == [True] * wanted + [False] * (count - wanted)
    assert (np.diff(index[:wanted]) > 0).all()
    assert all(shown[i] for i in index[:wanted])
    assert ((index >= 0) & (index < len(shown))).all()


def test_frames_are_drawn_evenly_in_training_and_spaced_evenly_in_evaluation():
    shown = tf.constant([True, False, True, True, True, True])
    draw = tf.function(lambda seed: views.choose_frames(shown, 2, seed)[0])
    draws = [draw(tf.constant([seed, 0])).numpy() for seed in range(400)]
    counts = np.bincount(np.concatenate(draws), minlength=6)
    assert counts[1] == 0
    np.testing.assert_allclose(counts[[0, 2, 3, 4, 5]], 160, atol=45)  # binomial(400, 0.4): deviation 9.8
    assert views.choose_frames(shown, 3)[0].numpy().tolist() == [0, 3, 5]


def test_dates_move_within_bounds_and_stay_sorted(places):
    """Pixels say which date they were taken on."""
    options = {"frames": {"s2_10": 4}, "sizes": {"s2_10": 6}}
    moved = first_batch(places, "s2_10", **options, views=ViewsConfig(grid="s2_10", date_jitter=7))
    differences = []
    for entry in (entries["s2_10"] for entries in every_view(moved).values()):
        known = entry["time"] != NO_TIME
        np.testing.assert_array_equal(entry["valid"].any((2, 3)), known)
        assert (np.diff(entry["time"])[known[:, 1:]] >= 0).all()
        before = DAYS[decoded(entry["pixels"])[1][:, :, 0, 0].astype(int)]
        differences.append((entry["time"] - before)[known])
        assert set(differences[-1]) == set(range(-7, 8))
    assert (differences[0] != differences[1]).any()


@given(
    time=st.lists(st.one_of(st.just(NO_TIME), st.integers(-30_000, 30_000)), min_size=1, max_size=9),
    days=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=25)
def test_moved_dates(time, days, seed):
    time = np.array(time, np.int32)
    moved = views.move_dates(tf.constant(time), days, tf.constant([seed, 0])).numpy()
    known = time != NO_TIME
    assert (moved[~known] == NO_TIME).all()
    assert (np.abs(moved[known] - time[known]) <= days).all()
    order = np.argsort(time[known], kind="stable")
    assert (np.diff(moved[known][order]) >= 0).all()


_BOX = st.tuples(*[st.floats(0, 1, width=32)] * 4)


def box(values):
    """[4] float32 inside the tile, from four numbers of 0 to 1."""
    tall, wide = 0.1 + 0.9 * values[2], 0.1 + 0.9 * values[3]
    return np.array([values[0] * (1 - tall), values[1] * (1 - wide), tall, wide], np.float32)


@given(first=_BOX, others=st.lists(_BOX, min_size=1, max_size=5), overlap=st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_the_first_candidate_that_overlaps_is_taken(first, others, overlap):
    first, candidates = box(first), np.stack([*map(box, others), box(first)])
    got = views.overlapping(tf.constant(first), tf.constant(candidates), overlap).numpy()

    def corners(b):
        return np.stack([b[:2], b[:2] + b[2:]])[None]

    shares = np.array([shared(corners(first), corners(c))[0] for c in candidates])
    taken = next(i for i, c in enumerate(candidates) if (c == got).all())
    assert shares[taken] >= overlap - 1e-4
    assert (shares[:taken] < overlap + 1e-4).all()


@given(values=_BOX, share=st.floats(0.05, 1), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_local_boxes_lie_in_the_tile_with_their_centre_in_the_view(values, share, seed):
    view = box(values)
    inner = views.local_box(tf.constant([seed, 0]), tf.constant(view), share, None).numpy()
    np.testing.assert_allclose(inner[2:], view[2:] * share, rtol=1e-5)
    assert inner[:2].min() >= -1e-6
    assert (inner[:2] + inner[2:]).max() <= 1 + 1e-6
    centre = inner[:2] + inner[2:] / 2
    assert ((centre >= view[:2] - 1e-6) & (centre <= view[:2] + view[2:] + 1e-6)).all()


def flat(batch, prefix=""):
    for key, value in batch.items():
        yield from flat(value, f"{prefix}/{key}") if isinstance(value, dict) else [(f"{prefix}/{key}", value)]


def test_resume_is_exact(places):
    disturbed = {"s2_10": PhotometricConfig(gain=0.1, blur=0.5, solarise=0.2)}
    chosen = {"grid": "s2_10", "local": 1, "local_sensor": "s2_10", "local_size": 2, "date_jitter": 3}
    options = {"batch_size": 8, "frames": {"s2_10": 2}, "sizes": {"s2_10": 6}}
    options |= {"views": ViewsConfig(**chosen, photometric=disturbed)}
    iterator = train_batches(config(places, "s2_10", **options))
    next(iterator)
    state = iterator.get_state()
    wanted = dict(flat(next(iterator)))
    resumed = train_batches(config(places, "s2_10", **options))
    resumed.set_state(state)
    got = dict(flat(next(resumed)))
    assert wanted.keys() == got.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(value, got[key], err_msg=key)
    iterator.close()
    resumed.close()


@pytest.mark.slow
def test_values_are_disturbed_in_every_view_on_its_own(places):
    plain = first_batch(places)
    disturbed = first_batch(
        places, views=ViewsConfig(**{**SNAPPED.__dict__, "photometric": {"ms4": PhotometricConfig(gain=0.2)}})
    )
    factors = []
    for view, entries in every_view(disturbed).items():
        before = every_view(plain)[view]
        ratio = entries["ms4"]["pixels"] / before["ms4"]["pixels"]
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :, :1, :1], ratio.shape), rtol=1e-4)
        factors.append(np.log(ratio[:, 0, 0, 0]))
        if "s2_10" in entries:
            np.testing.assert_array_equal(entries["s2_10"]["pixels"], before["s2_10"]["pixels"])
    factors = np.stack(factors)  # [views, B, C]
    assert np.std(factors) == pytest.approx(0.2, rel=0.1)
    assert np.abs(np.corrcoef(factors.reshape(4, -1)) - np.eye(4)).max() < 0.3


def test_first_view_is_masked_and_streams_are_merged(places, tiny):
    streams = {"a": StreamConfig(str(places), ("ms4", "s2_10")), "b": StreamConfig(str(tiny), ("rgb",))}
    local = ViewsConfig(local=1, local_sensor="rgb", local_size=4)
    batch = next(
        train_batches(DataConfig(streams, 8, 4, mask_unit=2, sizes={"ms4": 12}, views=local, statistics="table"))
    )
    assert {n: e["mask"].shape for n, e in batch["sensors"].items()} == {
        "ms4": (4, 6, 6),
        "s2_10": (4, 4, 4),
        "rgb": (4, 4, 4),
    }
    assert {view: sorted(entries) for view, entries in batch["views"].items()} == {
        "second": ["ms4", "rgb", "s2_10"],
        "local0": ["rgb"],
    }
    assert batch["views"]["local0"]["rgb"]["pixels"].shape == (4, 1, 4, 4, 3)
    assert "mask" not in batch["views"]["second"]["rgb"]
    assert set(batch) == {"sensors", "views"}


def test_map_labels_follow_the_first_view(snapped):
    entry = snapped["sensors"]["s2_10"]
    np.testing.assert_array_equal(snapped["labels"]["map"], np.floor(ground_of(entry)[..., 1] * GRID + 1e-3))


def test_evaluation_shows_the_middle_and_evenly_spaced_dates(places):
    options = {"split": "train", "image_size": 12, "batch_size": COUNT, "frames": {"s2_10": 2}}
    (batch,) = EvalBatches(places, ["ms4", "s2_10"], sizes=SIZES, grid="s2_10", **options)
    (whole,) = EvalBatches(places, ["ms4", "s2_10"], sizes={"s2_10": GRID, "ms4": 60}, **options)
    assert batch["sensors"]["ms4"]["pixels"].shape == (COUNT, 1, 24, 24, 4)
    np.testing.assert_array_equal(
        batch["sensors"]["s2_10"]["pixels"], whole["sensors"]["s2_10"]["pixels"][:, :, 2:8, 2:8]
    )
    assert batch["labels"]["map"][0, 0].tolist() == [2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(decoded(batch["sensors"]["ms4"]["pixels"])[0].mean((1, 2, 3)), 0.5, atol=1e-3)
    for i, number in enumerate(batch["sensors"]["s2_10"]["location"][:, 0].astype(int)):
        days = DAYS[observed(number)]
        middle = [days[len(days) // 4], days[3 * len(days) // 4]] if len(days) > 1 else [*days, *2 * [NO_TIME]][:2]
        assert batch["sensors"]["s2_10"]["time"][i].tolist() == middle
    assert "ground" not in batch["sensors"]["ms4"]


def test_dates_without_data_are_not_chosen(tmp_path):
    """The no-data value counts as not observed although the sample calls its pixels valid."""
    info = SensorInfo.of(sensors.get("s2_10"), (4, 3, 3), 10.0)
    pixels = np.ones((4, 3, 3, 10), np.uint16)
    pixels[[0, 2]] = 0
    samples = [Sample(str(i), {"s2_10": Image(pixels, time=DAYS[:4])}) for i in range(4)]
    write_dataset(tmp_path / "d", {"train": samples}, Metadata("d", {"s2_10": info}, "", "", ""))
    batch = first_batch(tmp_path / "d", "s2_10", frames={"s2_10": 3}, sizes={}, batch_size=4, views=None)
    assert batch["sensors"]["s2_10"]["time"].tolist() == [[DAYS[1], DAYS[3], NO_TIME]] * 4


@pytest.mark.parametrize("seed", range(3))
def test_dates_that_a_view_would_not_see_are_not_chosen(tmp_path, seed):
    """Every date has one valid pixel: an entry knows a date only where it shows that pixel."""
    info = SensorInfo.of(sensors.get("s2_10"), (DATES, 8, 8), 10.0)
    pixels, samples = np.ones((DATES, 8, 8, 10), np.uint16), []
    for i in range(32):
        valid = np.zeros((DATES, 64), bool)
        valid[np.arange(DATES), np.random.default_rng([i, seed]).integers(0, 64, DATES)] = True
        samples.append(Sample(str(i), {"s2_10": Image(pixels * (i + 1), valid.reshape(DATES, 8, 8), DAYS)}))
    write_dataset(tmp_path / "d", {"train": samples}, Metadata("d", {"s2_10": info}, "", "", ""))
    options = {"frames": {"s2_10": 3}, "sizes": {"s2_10": 4}, "batch_size": 32, "shuffle_seed": seed}
    batch = first_batch(tmp_path / "d", "s2_10", views=ViewsConfig(grid="s2_10"), **options)
    for entries in every_view(batch).values():
        seen = entries["s2_10"]["valid"].any((2, 3))
        np.testing.assert_array_equal(seen, entries["s2_10"]["time"] != NO_TIME)
        assert 0 < seen.mean() < 1


def test_sizes_need_no_views(pair):
    batch = first_batch(pair, "s2_12", "s1_grd", sizes={"s1_grd": 4}, batch_size=2, views=None, mask_unit=2)
    assert {n: e["pixels"].shape[2] for n, e in batch["sensors"].items()} == {"s2_12": 8, "s1_grd": 4}
    assert {n: e["mask"].shape for n, e in batch["sensors"].items()} == {"s2_12": (2, 4, 4), "s1_grd": (2, 2, 2)}
    assert "views" not in batch
    assert "ground" not in batch["sensors"]["s2_12"]
