"""Fixed shares of a split: which samples they are, and that training and evaluation show those alone."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.builder import write_dataset
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.reader import train_batches
from input_pipeline.schema import CLASSES, MULTILABEL, Image, LabelInfo, Metadata, Sample, SensorInfo
from input_pipeline.subset import read_classes, read_scenes, subset
from ringmoe_jax import sensors
from ringmoe_jax.data_config import DataConfig, StreamConfig
from ringmoe_jax.errors import ConfigError, DataError

COUNTS = (1, 5, 14)  # of the classes; four more samples are of unknown class
KINDS = np.random.default_rng(0).permutation(np.repeat([-1, 0, 1, 2], (4, *COUNTS)))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """24 samples in 3 shards, so that positions are not in the order of writing; latitude is a sample's number."""
    out = tmp_path_factory.mktemp("few") / "d"
    labels = {"kind": LabelInfo(CLASSES, ("a", "b", "c"), "made up"), "all": LabelInfo(MULTILABEL, ("a",), "made up")}
    info = SensorInfo.of(sensors.get("rgb"), (1, 4, 4), 1.0)
    samples = [
        Sample(f"{i}", {"rgb": Image(np.full((1, 4, 4, 3), i + 1, np.uint8))}, i, 0, {"kind": kind, "all": [1]})
        for i, kind in enumerate(KINDS)
    ]
    write_dataset(out, {"train": samples}, Metadata("few", {"rgb": info}, "", "none", "tests", labels=labels), shards=3)
    return out


@pytest.fixture(scope="module")
def dataset(few):
    return open_dataset(str(few), ["rgb"])


def test_a_share_of_scenes_takes_all_tiles_of_each(tmp_path):
    info = SensorInfo.of(sensors.get("rgb"), (1, 4, 4), 1.0)
    ids = [f"town/{scene}/{left}/{top}" for scene in range(10) for left in (0, 4) for top in (0, 4, 8)] + ["alone"]
    samples = [Sample(name, {"rgb": Image(np.ones((1, 4, 4, 3), np.uint8))}) for name in ids]
    write_dataset(tmp_path / "d", {"train": samples}, Metadata("d", {"rgb": info}, "", "none", "tests"), shards=2)
    tiles = open_dataset(str(tmp_path / "d"), ["rgb"])
    scenes = read_scenes(tiles, "train")
    assert sorted(scenes) == sorted([f"town/{scene}" for scene in range(10)] * 6 + ["alone"])
    small, large = (subset(tiles, "train", share, "", 3, of="scenes") for share in (0.2, 0.5))
    assert len(set(scenes[small])) == 2
    assert len(set(scenes[large])) == round(0.5 * 11)
    for chosen in (small, large):
        np.testing.assert_array_equal(chosen, np.flatnonzero(np.isin(scenes, scenes[chosen])))
    assert set(small) < set(large)


def test_only_the_label_is_read(few, dataset):
    classes = read_classes(dataset, "train", "kind")
    for batch in EvalBatches(few, ["rgb"], split="train", image_size=4, batch_size=8):
        np.testing.assert_array_equal(classes[batch["index"]], batch["labels"]["kind"])
        number = batch["sensors"]["rgb"]["location"][:, 0].astype(int)
        np.testing.assert_array_equal(classes[batch["index"]], KINDS[number])


@pytest.mark.parametrize("fraction", [1e-6, 0.2, 0.5, 1.0])
def test_every_class_gives_its_share(dataset, fraction):
    classes = read_classes(dataset, "train", "kind")
    positions = subset(dataset, "train", fraction, "kind", 0)
    assert (np.diff(positions) > 0).all()
    got = [np.sum(classes[positions] == kind) for kind in (-1, 0, 1, 2)]
    assert got == [0, *(max(1, round(fraction * n)) for n in COUNTS)]


@given(size=st.integers(1, 200), seed=st.integers(0, 5), shares=st.tuples(*[st.floats(0.001, 1)] * 2))
@settings(deadline=None)
def test_shares_of_all_samples(size, seed, shares):
    known = SimpleNamespace(size=lambda split: size)
    small, large = (subset(known, "train", share, "", seed) for share in sorted(shares))
    assert len(small) == max(1, round(min(shares) * size))
    assert set(small) <= set(large) <= set(range(size))
    np.testing.assert_array_equal(small, subset(known, "train", min(shares), "", seed))
    np.testing.assert_array_equal(subset(known, "train", 1.0, "", seed), np.arange(size))


def test_subsets_are_nested_and_go_by_their_seed(dataset):
    small, large = (set(subset(dataset, "train", share, "kind", 3)) for share in (0.3, 0.6))
    assert small < large
    assert len({tuple(subset(dataset, "train", 0.3, "kind", seed)) for seed in range(6)}) > 3


def test_wrong_subsets(dataset, tiny):
    with pytest.raises(ConfigError, match=r"fraction = 0: wanted a share above 0"):
        subset(dataset, "train", 0, "", 0)
    with pytest.raises(ConfigError, match=r'"kin" is no label of classes of .*: did you mean "kind"'):
        subset(dataset, "train", 0.5, "kin", 0)
    with pytest.raises(ConfigError, match=r'"all" is no label of classes of .*known: kind'):
        subset(dataset, "train", 0.5, "all", 0)
    with pytest.raises(DataError, match='no split "trian"'):
        subset(dataset, "trian", 0.5, "", 0)


def test_a_class_without_samples_is_refused(tmp_path):
    labels = {"kind": LabelInfo(CLASSES, ("a", "b"), "made up")}
    info = SensorInfo.of(sensors.get("rgb"), (1, 4, 4), 1.0)
    sample = Sample("0", {"rgb": Image(np.ones((1, 4, 4, 3), np.uint8))}, labels={"kind": 0})
    write_dataset(tmp_path / "d", {"train": [sample]}, Metadata("one", {"rgb": info}, "", "none", "", labels=labels))
    with pytest.raises(DataError, match=r'no sample of "train" has the kind "b" \(1 such classes\)'):
        subset(open_dataset(str(tmp_path / "d"), ["rgb"]), "train", 1.0, "kind", 0)


def test_broken_records_are_left_out(few, tmp_path):
    for path in few.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = next(path for path in sorted(tmp_path.iterdir()) if "tfrecord" in path.name)
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    broken = open_dataset(str(tmp_path), ["rgb"])
    with pytest.raises(DataError, match="1 broken records, 0 allowed"):
        read_classes(broken, "train", "kind")
    classes = read_classes(broken, "train", "kind", max_bad=1)
    assert classes[0] == -1
    np.testing.assert_array_equal(classes[1:], read_classes(open_dataset(str(few), ["rgb"]), "train", "kind")[1:])


def training(directory, host=0, hosts=1, **stream):
    config = DataConfig(
        {"a": StreamConfig(str(directory), ("rgb",), **stream)}, image_size=4, batch_size=2 * hosts, mask_unit=0
    )
    return train_batches(config, host=host, hosts=hosts)


def shown(batches, number):
    found = [int(i) for batch in itertools.islice(batches, number) for i in batch["index"]]
    batches.close()
    return found


def test_training_shows_the_subset_alone(few, dataset):
    chosen = {"fraction": 0.5, "fraction_label": "kind", "subset_seed": 1}
    wanted = subset(dataset, "train", 0.5, "kind", 1)
    batches = training(few, **chosen)
    assert batches.samples == {"a": len(wanted)} == {"a": 10}
    epochs = shown(batches, 15)
    for epoch in (epochs[:10], epochs[10:20], epochs[20:]):
        assert sorted(epoch) == wanted.tolist()
    halves = [shown(training(few, host, 2, **chosen), 2) for host in range(2)]
    assert [*halves[0][:2], *halves[1][:2], *halves[0][2:], *halves[1][2:]] == epochs[:8]
    assert training(few).samples == {"a": 24}


def test_a_state_belongs_to_its_subset(few):
    whole, again = training(few).get_state(), training(few, subset_seed=5).get_state()
    assert whole == again  # all of them, whatever the seed
    half = training(few, fraction=0.5).get_state()
    assert half == training(few, fraction=0.5).get_state()
    for other in (training(few), training(few, fraction=0.4), training(few, fraction=0.5, subset_seed=1)):
        with pytest.raises(DataError, match="data position has streams"):
            other.set_state(half)


def test_temperature_counts_the_subset(few, pair):
    streams = {
        "a": StreamConfig(str(few), ("rgb",), fraction=0.25),
        "b": StreamConfig(str(pair), ("s2_12",)),
    }
    config = DataConfig(streams, image_size=4, batch_size=9, mixing="temperature", mask_unit=0)
    batches = train_batches(config)
    assert batches.samples == {"a": 6, "b": 12}
    assert batches.sizes == {"a": 6, "b": 12}


def test_evaluation_shows_the_positions_in_their_order(few):
    positions = np.array([7, 2, 20, 5, 11])
    batches = EvalBatches(few, ["rgb"], split="train", image_size=4, batch_size=2, positions=positions)
    assert len(batches) == 3
    assert [int(i) for batch in batches for i in batch["index"]] == [7, 2, 20, 5, 11, -1]
    options = {"split": "train", "image_size": 4, "batch_size": 2, "positions": positions, "hosts": 2}
    parts = [EvalBatches(few, ["rgb"], host=host, **options) for host in range(2)]
    assert [[int(i) for batch in part for i in batch["index"]] for part in parts] == [[7, 2, 11, -1], [20, 5, -1, -1]]


@pytest.mark.parametrize("positions", [[], [0, 24], [-1], [3, 3]])
def test_wrong_positions(few, positions):
    with pytest.raises(ConfigError, match="wanted some of 0 to 23, each once"):
        EvalBatches(few, ["rgb"], split="train", image_size=4, batch_size=2, positions=np.array(positions, int))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 0}, "data.streams.a.fraction = 0: wanted a share"),
        ({"fraction": 1.5}, "data.streams.a.fraction = 1.5"),
        ({"fraction_of": "towns"}, 'data.streams.a.fraction_of = \'towns\': wanted "samples" or "scenes"'),
        ({"fraction_of": "scenes", "fraction_label": "kind"}, "fraction_of = 'scenes': wanted"),
        ({"subset_seed": -1}, "data.streams.a.subset_seed = -1: wanted 0 or more"),
        ({"crop_ratio": (2, 1)}, r"data.streams.a.crop_ratio = \(2, 1\): wanted 0 < min <= max"),
        ({"crop_scale": (0, 1)}, r"data.streams.a.crop_scale = \(0, 1\): wanted 0 < min <= max <= 1"),
        ({"sensors": ()}, "data.streams.a.sensors is empty"),
    ],
)
def test_wrong_config(change, message):
    stream = StreamConfig(**({"directory": "d", "sensors": ("rgb",)} | change))
    with pytest.raises(ConfigError, match=message):
        DataConfig({"a": stream}, image_size=4, batch_size=2, mask_unit=0)
