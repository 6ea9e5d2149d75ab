"""Records and folders are read as TensorFlow and TFDS read them, without either."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import example, pipeline
from input_pipeline.cpu_tf import tf
from input_pipeline.dataset import open_dataset
from input_pipeline.device import storage
from ringmoe_jax.errors import DataError

VALUES = st.one_of(
    st.lists(st.binary(max_size=300)),
    st.lists(st.floats(width=32, allow_nan=False)),
    st.lists(st.integers(-(2**63), 2**63 - 1)),
)


def feature(values):
    if values and isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if values and isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values)) if values else tf.train.Feature()


@given(st.dictionaries(st.text(max_size=20), VALUES, max_size=6))
@settings(deadline=None, max_examples=100)
def test_what_tensorflow_wrote_is_read(values):
    features = tf.train.Features(feature={key: feature(several) for key, several in values.items()})
    payload = tf.train.Example(features=features).SerializeToString()
    assert {key: list(several) for key, several in example.parse(payload).items()} == values


@pytest.mark.parametrize("payload", [b"\x0a", b"not an example", b"\x0a\x05\x0a\x03\x0a\x09a"])
def test_what_is_no_example_is_refused(payload):
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        example.parse(payload)


def test_files_and_counts_are_those_of_tfds(tiny):
    splits = tfds.builder_from_directory(str(tiny)).info.splits
    dataset = open_dataset(str(tiny), ["rgb"])
    assert dataset.counts == {name: tuple(split.shard_lengths) for name, split in splits.items()}
    paths = {name: [path.name for path in map(type(tiny), split.filepaths)] for name, split in splits.items()}
    assert {name: list(files) for name, files in dataset.files.items()} == paths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be opened .JSONDecodeError"),
        ("{}", "cannot be opened .KeyError: no 'splits'"),
        ('{"splits": 3}', "cannot be opened .TypeError"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tiny, tmp_path, text, message):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    (copy / "dataset_info.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset_info\.json is not what was written"):
        open_dataset(str(copy), ["rgb"])
    (copy / "checksums.json").unlink()  # as of a version before checksums
    with pytest.raises(DataError, match=message) as error:
        open_dataset(str(copy), ["rgb"])
    assert "\n" not in str(error.value)
    (copy / "dataset_info.json").write_text((tiny / "dataset_info.json").read_text())
    (copy / "metadata.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(DataError, match="without our metadata"):
        open_dataset(str(copy), ["rgb"])


def test_samples_are_decoded_as_tensorflow_decodes_them(pair):
    """Chosen bands in another order, complex samples, labels of a class and a map."""
    bands = {"s2_12": ("nir", "B02")}
    dataset = open_dataset(str(pair), ["slc_dual", "s2_12"], bands)
    payloads = dataset.records("train", 0).read(range(3))
    arrays = storage.blank(dataset, 4)
    storage.fill(dataset, arrays, payloads, start=1)
    parse = pipeline.parse(dataset)
    for row, payload in enumerate(payloads, 1):
        wanted = parse(payload)
        for name, entry in wanted["sensors"].items():
            own = arrays["sensors"][name]
            stored = entry["stored"].numpy()[..., dataset.channels[name]]
            np.testing.assert_array_equal(own["stored"][row], stored)
            assert own["stored"].dtype == stored.dtype
            np.testing.assert_array_equal(own["time"][row], entry["time"])
            np.testing.assert_array_equal(
                own["valid"][row], pipeline.physical(dataset, name, entry["stored"], entry["valid"])[1]
            )
            np.testing.assert_array_equal(arrays["location"][row], entry["location"])
        for name, label in wanted["labels"].items():
            np.testing.assert_array_equal(arrays["labels"][name][row], label)
    assert not arrays["sensors"]["slc_dual"]["valid"][0].any()
    assert np.isnan(arrays["location"][0]).all()
