"""Whole scenes: every kind of answer, seams, no-data, resuming byte for byte, memory, and errors in one line."""

import dataclasses
import functools
import gc
import json
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from affine import Affine
from pyarrow import parquet

from ringmoe_jax import sensors
from ringmoe_jax.contracts import BOXES, CLASSES, MAP, MULTILABEL
from ringmoe_jax.deploy.predict import predict
from ringmoe_jax.deploy.scenes import Stack
from ringmoe_jax.deploy.windows import WindowModel, window_model
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.parallel import processes
from ringmoe_jax.run import Run
from ringmoe_jax.tasks import SENSOR, Segmentation, Target
from tests.helpers import tiny_runs
from tests.helpers.tiny import RINGMOE

SENTINEL = Path(__file__).parents[3] / "shared" / "data" / "multimodal" / "copernicus_fm_s2"
SIZE = 32
MODEL = RINGMOE | dict(depths=(1, 1), image_size=SIZE)
COVER = ("bare", "grown")
COLOURS = ("#10a020", "#ff8000")
HEADS = dict(height=dict(channels=8, bins=8, max_height=30.0), change=dict(name="change_difference", channels=8))
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def tif(path, pixels, **options):
    """Writes [H, W, C] with pixels of 10 m."""
    profile = dict(driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=pixels.shape[2])
    profile |= dict(dtype=pixels.dtype, crs="EPSG:32633", transform=Affine(10, 0, 500_000, 0, -10, 5_000_000))
    with rasterio.open(path, "w", **profile | options) as file:
        file.write(pixels.transpose(2, 0, 1))
    return path


def field(height, width, seed=0, coarse=8):
    """[H, W] smooth random numbers in 0..1."""
    noise = np.random.default_rng(seed).normal(size=(height // coarse + 3, width // coarse + 3))
    smooth = np.asarray(jax.image.resize(noise, [coarse * n for n in noise.shape], "cubic"))[:height, :width]
    return (1 + np.tanh(smooth)) / 2


def ground(height=80, width=112, seed=0):
    """[H, W, 12] digital numbers of Sentinel-2 over ground that is bare here and grown there, and [H, W] which."""
    growth = field(height, width, seed)
    means = np.array([band.mean for band in sensors.get("s2_12").bands]) * 1e4
    visible = np.arange(12) < 5
    values = means * np.where(visible, 1.5 - growth[..., None], 0.5 + growth[..., None])
    return values.astype(np.uint16), (growth > 0.5).astype(np.int32)


# ---- Models --------------------------------------------------------------------------------------------


def said(answer, output="probabilities", names=("a",), *, name="s2_12", size=16, **changes):
    """A model that says what a plain function makes of the first date's pixels [B, H, W, C]."""
    model = WindowModel(
        sensors={name: sensors.get(name)},
        dates={},
        complete=False,
        every_date=False,
        size=size,
        output=output,
        names=names,
        colours=(),
        answer=lambda batch: answer(batch["sensors"][name]["pixels"][:, 0]),
        facts={"checkpoint": "runs/fake", "step": 1},
    )
    return dataclasses.replace(model, **changes)


brightness = functools.partial(jnp.mean, axis=-1, keepdims=True)


def pretrained(workdir, names, **changes):
    """A pre-training run that has not begun."""
    return tiny_runs.pretraining(workdir, MODEL | dict(sensors=names) | changes, size=SIZE)


def fine_tuned(workdir, task, target, names=("s2_12",), head=(), train=None):
    """A fine-tuned run that has not begun, or went through `train(state, step)`."""
    values = dict(
        task=task | dict(target=target.name),
        data=tiny_runs.data(names, SIZE, mask_unit=0),
        model=MODEL | dict(sensors=tuple(name for name in names if name != target.name)),
        head=dict(head),
        optimizer=dict(learning_rate=3e-3, warmup_steps=1),
        train=dict(steps=40),
    )
    return tiny_runs.finetuning(workdir, values, target, dict.fromkeys(names, target.dates), train)


def opened(workdir, output=""):
    return window_model(Run.open(workdir), output)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A run that learnt to tell grown from bare ground in 40 steps."""
    folder = tmp_path_factory.mktemp("segmented")
    pixels, cover = ground(160, 160, seed=1)
    generator = np.random.default_rng(0)

    def train(state, learn):
        with Stack({"s2_12": [tif(folder / "train.tif", pixels)]}, {"s2_12": sensors.get("s2_12")}) as stack:
            for _ in range(40):
                top, *lefts = generator.integers(0, 160 - SIZE, 9)
                batch = stack.strip(top, SIZE).batch([(top, left) for left in lefts], SIZE, 8)
                labels = np.stack([cover[top : top + SIZE, left : left + SIZE] for left in lefts])
                state, _ = learn(state, batch | {"labels": {"cover": labels}})
        return state

    target, head = Target("cover", MAP, COVER, "s2_12", colours=COLOURS), dict(name="fcn", channels=8, dropout=0.0)
    return fine_tuned(folder / "run", dict(name="segmentation"), target, head=head, train=train)


@pytest.fixture(scope="module")
def classes(segmented):
    return opened(segmented)


@pytest.fixture(scope="module")
def probabilities(segmented):
    return opened(segmented, "probabilities")


def read(path):
    with rasterio.open(path) as file:
        return file.read()


# ---- What maps hold -------------------------------------------------------------------------------------


def test_a_trained_segmentation_maps_a_scene(classes, tmp_path):
    pixels, cover = ground(seed=2)
    pixels[10:20, 30:50] = 0
    done = predict(classes, {"s2_12": [tif(tmp_path / "scene.tif", pixels)]}, tmp_path / "map.tif")
    assert (done.windows, done.empty, done.resumed) == (5 * 7, 0, 0)
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(tmp_path / "scene.tif") as scene:
        assert (file.crs, file.transform, file.shape) == (scene.crs, scene.transform, scene.shape)
        assert (file.dtypes, file.nodata) == (("uint8",), 255)
        assert [file.tags()[f"CLASS_{i}"] for i in range(2)] == list(COVER)
        assert [file.colormap(1)[i][:3] for i in range(2)] == [(16, 160, 32), (255, 128, 0)]
        found = file.read(1)
    np.testing.assert_array_equal(found == 255, (pixels == 0).all(-1))
    known = found != 255
    assert (found == cover)[known].mean() > max(0.8, cover[known].mean(), 1 - cover[known].mean())  # measured 0.90


def test_maps_do_not_depend_on_the_batch_nor_on_where_windows_lie(probabilities, tmp_path):
    """Batches change the order of sums only. Windows moved by half their distance say nearly the same.

    Bounds: probabilities differ by less than 0.01 on average and 0.1 anywhere (measured 0.003 and 0.03), and by less
    than a third of what they do without overlap (measured 0.022 and 0.17).
    """
    pixels, _ = ground(seed=3)
    moved = {}
    for overlap in (0.5, 0.0):
        shift = round(SIZE * (1 - overlap)) // 2
        whole = tif(tmp_path / f"whole{overlap}.tif", pixels)
        part = tif(tmp_path / f"part{overlap}.tif", np.ascontiguousarray(pixels[shift:, shift:]))
        maps = [tmp_path / f"{name}{overlap}.tif" for name in ("a", "b")]
        for scene, out in zip((whole, part), maps, strict=True):
            predict(probabilities, {"s2_12": [scene]}, out, overlap=overlap)
        first, second = read(maps[0])[0, shift:, shift:], read(maps[1])[0]
        moved[overlap] = np.abs(first - second)[SIZE // 2 : -SIZE // 2, SIZE // 2 : -SIZE // 2]
    assert moved[0.5].mean() < 0.01
    assert moved[0.5].max() < 0.1
    assert moved[0.5].mean() < moved[0.0].mean() / 3
    predict(probabilities, {"s2_12": [tmp_path / "whole0.5.tif"]}, tmp_path / "three.tif", batch=3)
    np.testing.assert_allclose(read(tmp_path / "three.tif"), read(tmp_path / "a0.5.tif"), atol=1e-5)


@pytest.mark.parametrize(("width", "batch", "calls"), [(64, None, 2), (64, 16, 5), (64, 5, 18), (1100, None, 4 * 3)])
def test_strips_share_batches(width, batch, calls, tmp_path):
    """Of windows of 16 px every 8: nine strips of eight windows in two halves, two strips or one at a
    time; and four strips of 138, in three parts each."""
    height = 72 if width == 64 else 32
    scene = {"s2_12": [tif(tmp_path / "scene.tif", ground(height, width)[0])]}
    asked = []

    def answer(x):
        asked.append(len(x))
        return brightness(x)

    done = predict(said(answer), scene, tmp_path / "map.tif", batch=batch)
    assert asked[1:] == [done.batch] * calls  # the first one is traced
    found = read(tmp_path / "map.tif")[0]
    wanted = read(tmp_path / "scene.tif").mean(0) * 1e-4
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_one_answer_a_window(tmp_path):
    """Every cell is the answer of the window around it; half a window is the distance."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(1, 9000, (40, 50, 12), dtype=np.uint16)
    scene = tif(tmp_path / "scene.tif", pixels)
    model = said(lambda x: x.mean((1, 2, 3))[:, None, None, None])
    predict(model, {"s2_12": [scene]}, tmp_path / "map.tif")
    found = read(tmp_path / "map.tif")[0]
    assert found.shape == (5, 7)
    assert found[2, 3] == pytest.approx(pixels[12:28, 20:36].mean() * 1e-4, rel=1e-5)  # its core is 16..24, 24..32
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.transform == Affine(80, 0, 500_000, 0, -80, 5_000_000)


def test_a_constant_answer_stays_that_on_a_scene_smaller_than_a_window(tmp_path):
    pixels = np.full((9, 11, 12), 1234, np.uint16)
    model = said(lambda x: jnp.full((*x.shape[:3], 1), 0.1, jnp.float32))
    predict(model, {"s2_12": [tif(tmp_path / "scene.tif", pixels)]}, tmp_path / "map.tif")
    assert (read(tmp_path / "map.tif") == np.float32(0.1)).all()


def test_windows_without_data_are_not_asked_and_counted(tmp_path):
    pixels = np.ones((64, 64, 12), np.uint16)
    pixels[:, :40] = 0
    asked = []

    def answer(x):
        asked.append(x)
        return brightness(x)

    done = predict(said(answer), {"s2_12": [tif(tmp_path / "scene.tif", pixels)]}, tmp_path / "map.tif")
    assert (done.windows, done.empty) == (8 * 4, 8 * 4)
    np.testing.assert_array_equal(np.isnan(read(tmp_path / "map.tif")[0]), pixels[..., 0] == 0)
    assert not done.notes
    nothing = tif(tmp_path / "nothing.tif", np.zeros_like(pixels))
    done = predict(said(answer), {"s2_12": [nothing]}, tmp_path / "nothing_map.tif")
    assert done.notes[-1] == "the map holds nothing but no data: no pixel was observed by every one of s2_12"


@pytest.mark.parametrize(
    ("name", "target", "names", "bands"),
    [
        ("height", Target("ndsm", SENSOR, (), "ndsm"), ("s2_12", "ndsm"), ("height",)),
        ("classification", Target("use", CLASSES, COVER), ("s2_12",), ("classes",)),
        slow("change", Target("changed", MAP, ("no", "yes"), "s2_12", 2), ("s2_12",), ("classes",)),
        slow("multilabel", Target("uses", MULTILABEL, COVER), ("s2_12", "s1_grd"), COVER),
    ],
)
def test_every_task_answers(name, target, names, bands, tmp_path):
    run = fine_tuned(tmp_path / "run", dict(name=name), target, names, HEADS.get(name, {}))
    files = {"s2_12": [tif(tmp_path / f"{date}.tif", ground(40, 48, date)[0]) for date in range(target.dates)]}
    if "s1_grd" in names:
        files["s1_grd"] = [tif(tmp_path / "s1.tif", np.full((40, 48, 2), -12.0, np.float32))]
    predict(opened(run), files, tmp_path / "map.tif", overlap=0.25)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.descriptions == bands
        assert file.shape == ((2, 2) if name in ("classification", "multilabel") else (40, 48))
        found = file.read()
    assert np.isfinite(found).all()
    assert (found >= 0).all()


def test_a_detection_finds_in_a_scene_of_one_window_what_it_finds_in_an_image(tmp_path):
    head = dict(channels=8, depth=1, groups=2)
    target = Target("boxes", BOXES, COVER, "s2_12")
    folder = fine_tuned(tmp_path / "run", dict(name="detection", most=50), target, head=head)
    scene = {"s2_12": [tif(tmp_path / "scene.tif", ground(SIZE, SIZE)[0])]}
    model = opened(folder)
    done = predict(model, scene, tmp_path / "map.parquet", overlap=0.0)
    table = parquet.read_table(tmp_path / "map.parquet")
    with Stack(scene, model.sensors) as stack:
        answer = model.answer(stack.strip(0, SIZE).batch([(0, 0)], SIZE, 1))
    boxes, scores, classes = model.objects.kept(*(np.asarray(answer[n])[0] for n in ("boxes", "scores", "classes")))
    inside = ((boxes[:, :2] >= 0) & (boxes[:, :2] < SIZE)).all(1)
    assert done.found == table.num_rows == inside.sum() > 0
    np.testing.assert_allclose(table["score"].to_numpy(), scores[inside], rtol=1e-5)
    found = np.stack([table[name].to_numpy() for name in ("x", "y", "width", "height", "angle")], 1)
    np.testing.assert_allclose(found, boxes[inside], rtol=1e-4, atol=1e-3)
    assert table["class"].to_pylist() == [COVER[i] for i in classes[inside]]


def test_embeddings_are_tokens_of_all_sensors(tmp_path):
    model = opened(pretrained(tmp_path / "run", ("s2_12", "s1_grd")))
    pixels, _ = ground(70, 64)
    pixels[:16, :16] = 0
    decibels = np.full((70, 64, 2), -12.0, np.float32)
    files = {"s2_12": [tif(tmp_path / "s2.tif", pixels)], "s1_grd": [tif(tmp_path / "s1.tif", decibels)]}
    predict(model, files, tmp_path / "map.tif")
    done = predict(model, files, tmp_path / "map.parquet", form="parquet")
    found = read(tmp_path / "map.tif")
    assert found.shape == (32, 9, 8)  # 16 of each sensor; tokens of 8 pixels, the last row of them cut short
    table = parquet.read_table(tmp_path / "map.parquet")
    assert (done.left_out, table.num_rows) == (4, 68)
    rows, columns = table["row"].to_numpy(), table["column"].to_numpy()
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, found[:, rows, columns].T)
    assert (table["valid"].to_numpy() == 1).all()
    assert json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]["bbox"][1] == 5_000_000 - 720
    alone = predict(model, {"s1_grd": files["s1_grd"]}, tmp_path / "alone.tif")
    assert alone.windows == 20
    assert read(tmp_path / "alone.tif").shape == (16, 9, 8)


# ---- Resuming -------------------------------------------------------------------------------------------


class Killed(Exception):
    """What ends a run half-way."""


@pytest.mark.parametrize(
    ("overlap", "batch", "kills"), [(0.5, 2, (8, 25, 20)), (0.7, 2, (8, 25, 20)), (0.5, 24, (2, 2, 2))]
)
def test_a_killed_run_goes_on_to_the_same_bytes(overlap, batch, kills, tmp_path):
    """With 24 windows at a time three strips share a batch, and a draft may end within them."""
    pixels, _ = ground(90, 60)
    pixels[:30, :30] = 0
    scene = {"s2_12": [tif(tmp_path / "scene.tif", pixels)]}
    left = [10**9]

    def answer(x):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return jnp.concatenate([x.mean(-1, keepdims=True), x[..., :1] * jnp.linspace(0, 1, x.shape[2])[:, None]], -1)

    run = functools.partial(predict, said(answer, names=("a", "b")), scene, overlap=overlap, batch=batch)
    whole = run(tmp_path / "whole.tif")
    for calls in kills:
        left[0] = calls
        with pytest.raises(Killed):
            run(tmp_path / "parts.tif")
    left[0] = 10**9
    done = run(tmp_path / "parts.tif")
    assert done.resumed > 0
    assert done.windows < whole.windows
    assert (tmp_path / "parts.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert not (tmp_path / "parts.tif.draft").exists()
    assert run(tmp_path / "parts.tif") is None  # is there already


def test_another_command_does_not_go_on(tmp_path):
    pixels, _ = ground(64, 64)
    scene = {"s2_12": [tif(tmp_path / "scene.tif", pixels)]}
    model = said(brightness)
    predict(model, scene, tmp_path / "map.tif")
    with pytest.raises(DataError, match=r"map\.tif is there already, from another command"):
        predict(model, scene, tmp_path / "map.tif", overlap=0.25)
    left = [3]

    def answer(x):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return brightness(x)

    with pytest.raises(Killed):
        predict(said(answer), scene, tmp_path / "new.tif", batch=8)
    with pytest.raises(DataError, match=r"new\.tif\.draft was begun with step = 1, this command says 2"):
        predict(said(brightness, facts={"checkpoint": "runs/fake", "step": 2}), scene, tmp_path / "new.tif", batch=8)


# ---- Several processes ----------------------------------------------------------------------------------


def in_two(make):
    """What two threads make that talk as the processes of a job do; `tests/multi_process` has real ones."""
    own, meet, told = threading.local(), threading.Barrier(2, timeout=60), [None, None]

    def exchange(value):
        told[own.number] = value
        meet.wait()
        heard = list(told)
        meet.wait()
        return heard

    def run(number):
        own.number = number
        return make()

    talk = dict(count=lambda: 2, number=lambda: own.number, exchange=exchange, gather=exchange)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        for name, function in talk.items():
            patch.setattr(processes, name, function)
        return list(pool.map(run, range(2)))


def test_processes_share_a_scene_and_map_it_as_one_does(tmp_path):
    """Blocks of strips that lie between windows which reach into the next one, and a place without data."""
    pixels, _ = ground(150, 90)
    pixels[40:70, 20:80] = 0
    scene, asked = {"s2_12": [tif(tmp_path / "scene.tif", pixels)]}, []
    model = said(lambda x: asked.append(len(x)) or brightness(x))

    def run(name):
        done = predict(model, scene, tmp_path / name, overlap=0.7, batch=16)
        return done.windows, done.empty

    one, alone = run("one.tif"), len(asked)
    assert in_two(lambda: run("two.tif")) == [one, one]
    assert (tmp_path / "two.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()
    assert one[1] > 0
    assert len(asked) - alone < 1.5 * alone  # windows between two blocks are shown twice


# ---- Memory ---------------------------------------------------------------------------------------------


@pytest.fixture
def usual_garbage_collection():
    """As in a program of its own; tests look for garbage less often."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("usual_garbage_collection")
def test_memory_does_not_grow_with_the_height_of_a_scene(tmp_path):
    peaks = []
    for height in (600, 2400):
        scene = tif(tmp_path / f"{height}.tif", np.ones((height, 200, 1), np.float32), tiled=True)
        model = said(lambda x: x, name="dem", size=32)
        tracemalloc.start()
        predict(model, {"dem": [scene]}, tmp_path / f"map{height}.tif", overlap=0.25)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]  # the first holds what is made once, too


# ---- What a user did wrong --------------------------------------------------------------------------------


def test_what_a_run_does_not_offer(segmented, monkeypatch):
    with pytest.raises(
        ConfigError, match=r'--output "heights" is not what the task "segmentation" of .* gives: .*known'
    ):
        opened(segmented, "heights")
    monkeypatch.setattr(Segmentation, "maps", ())
    with pytest.raises(
        ConfigError, match=r'learnt the task "segmentation", which is not offered for scenes \(offered: .*detection'
    ):
        opened(segmented)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(files={"s1_grd": ["x.tif"]}), r'knows no sensor "s1_grd": .*known: s2_12'),
        (dict(files={"s2_12": ["nowhere.tif"]}), r"nowhere.tif does not exist: wanted a raster of s2_12"),
        (dict(files={}), r"the run reads s2_12: give s2_12=FILE too"),
        (dict(dates=2), r"1 files of s2_12, but the run was trained on 2: one a date"),
        (dict(batch=0), r"batch = 0: wanted 1 or more"),
        (dict(overlap=1.0), r"overlap = 1.0: wanted at least 0 and below 1"),
        (dict(form="parquet"), r'--format parquet is for embeddings, this run gives probabilities: use "cog"'),
        (dict(out="nowhere/map.tif"), r"nowhere does not exist: make the folder of --out first"),
        (dict(answer=lambda x: x * jnp.nan), r"the model's answers are not finite in strip 0"),
    ],
)
def test_one_clear_line(change, message, tmp_path):
    scene = tif(tmp_path / "scene.tif", ground(20, 20)[0])
    model = said(change.pop("answer", brightness), complete=True, dates={"s2_12": change.pop("dates", 1)})
    files, out = change.pop("files", {"s2_12": [scene]}), tmp_path / change.pop("out", "map.tif")
    with pytest.raises((ConfigError, DataError), match=message) as error:
        predict(model, files, out, **change)
    assert "\n" not in str(error.value)


def test_a_scene_that_is_damaged_further_down_ends_in_its_line_and_no_thread_stays(tmp_path):
    noise = np.random.default_rng(0).integers(1, 9000, (200, 64, 12), dtype=np.uint16)
    scene, threads = tif(tmp_path / "scene.tif", noise), threading.active_count()
    scene.write_bytes(scene.read_bytes()[:200_000])
    with pytest.raises(
        DataError, match=r"scene\.tif cannot be read .* the file is damaged at row \d+ or below"
    ) as error:
        predict(said(brightness), {"s2_12": [scene]}, tmp_path / "map.tif", batch=8)
    assert "\n" not in str(error.value)
    assert threading.active_count() == threads
    assert json.loads((tmp_path / "map.tif.draft" / "journal.json").read_text())["strips"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not SENTINEL.is_dir(), reason="no real Sentinel-2 scene in ../shared/data")
def test_a_real_scene(tmp_path):
    """Level 1C over New Zealand: embeddings by random weights, finite everywhere it was observed."""
    (scene,) = SENTINEL.glob("*.tif")
    model = opened(pretrained(tmp_path / "run", ("s2_13",), moe=dict(specialised=2, collaborative=2)))
    predict(model, {"s2_13": [scene]}, tmp_path / "map.tif")
    found = read(tmp_path / "map.tif")
    assert found.shape == (16, 33, 33)
    assert np.isfinite(found).all()
    assert found.std(axis=(1, 2)).min() > 1e-3
