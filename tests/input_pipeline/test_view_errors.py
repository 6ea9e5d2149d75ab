"""Views that cannot be: configs and data sets that contradict themselves are refused in one clear line."""

import numpy as np
import pytest

from input_pipeline.builder import write_dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.reader import train_batches
from input_pipeline.schema import TRACKS, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors
from ringmoe_jax.config import build
from ringmoe_jax.data_config import DataConfig, PhotometricConfig, StreamConfig, ViewsConfig
from ringmoe_jax.errors import ConfigError, DataError


def config(directory, views: ViewsConfig, **changes) -> DataConfig:
    values = {"image_size": 8, "batch_size": 4, "mask_unit": 0, "views": views}
    return DataConfig({"a": StreamConfig(str(directory), ("s1_grd", "slc_dual"))}, **(values | changes))


VALUES = {
    "streams": {"a": {"directory": "x", "sensors": ["rgb", "s2_10"]}},
    "image_size": 8,
    "batch_size": 2,
    "mask_unit": 0,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": {"rgb": 0}}, r"data.sizes.rgb = 0: wanted pixels > 0"),
        ({"sizes": {"rgb": 6}, "mask_unit": 4}, r"data.sizes.rgb = 6: wanted a multiple of mask_unit = 4"),
        ({"frames": {"rgb": 0}}, r"data.frames.rgb = 0: wanted 1 or more dates"),
        ({"views": {"overlap": 1.5}}, r"data.views.overlap = 1.5: wanted 0 to 1"),
        ({"views": {"local": -1}}, r"data.views.local = -1"),
        ({"views": {"local": 1}}, r"data.views.local_sensor = ''"),
        ({"views": {"local": 1, "local_sensor": "rgb"}}, r"data.views.local_size = 0: wanted pixels > 0"),
        ({"views": {"local": 1, "local_sensor": "rbg", "local_size": 4}}, r'"rbg"|local_sensor = .*did you mean "rgb"'),
        ({"views": {"local": 1, "local_sensor": "rgb", "local_size": 9}}, r"local_size = 9: wanted at most the 8 px"),
        (
            {"views": {"grid": "s2_10", "local": 1, "local_sensor": "rgb", "local_size": 6}, "sizes": {"s2_10": 2}},
            r'local_size = 6: wanted a whole number of pixels of "s2_10": a multiple of 4',
        ),
        ({"views": {"grid": "s1_grd"}}, r"""data.views.grid = 's1_grd': .*"a" reads rgb, s2_10"""),
        ({"views": {"date_jitter": -1}}, r"data.views.date_jitter = -1"),
        ({"reader": "gpu"}, 'data.reader = \'gpu\': wanted "tf" or "device"'),
        ({"views": {"photometric": {"rgb": {"gain": -0.1}}}}, r"data.views.photometric.rgb.gain = -0.1"),
        ({"views": {"photometric": {"rgb": {"blur": 1.1}}}}, r"data.views.photometric.rgb.blur = 1.1: .*probability"),
        ({"views": {"photometric": {"rgb": {"offset": -1}}}}, r"data.views.photometric.rgb.offset = -1"),
        ({"views": {"photometric": {"rgb": {"drop_band": 2}}}}, r"photometric.rgb.drop_band = 2.0: .*probability"),
        ({"views": {"photometric": {"rgb": {"solarise": -1}}}}, r"data.views.photometric.rgb.solarise = -1"),
        ({"views": {"photometric": {"rgb": {"blurr": 1}}}}, r'blurr does not exist: did you mean "blur"'),
        ({"views": 3}, r"data.views = 3: wanted the keys of ViewsConfig"),
    ],
)
def test_wrong_config(change, message):
    with pytest.raises(ConfigError, match=message):
        build(DataConfig, VALUES | change, "data")


def test_views_are_built_from_a_mapping():
    chosen = {"grid": "s2_10", "photometric": {"rgb": {"gain": 1}}}
    built = build(DataConfig, VALUES | {"views": chosen, "sizes": {"s2_10": 2}}, "data")
    assert built.views == ViewsConfig(grid="s2_10", photometric={"rgb": PhotometricConfig(gain=1.0)})
    assert (built.size("rgb"), built.size("s2_10")) == (8, 2)
    assert build(DataConfig, VALUES | {"views": None}, "data").views is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sizes": {"rbg": 8}}, ConfigError, r'data.sizes names "rbg", which is no sensor: did you mean "rgb"'),
        ({"frames": {"rbg": 8}}, ConfigError, r'data.frames names "rbg", which is no sensor: did you mean "rgb"'),
        ({"frames": {"s1_grd": 2}}, DataError, r'"s1_grd" has 1 dates, and frames.s1_grd = 2: wanted 1 to 1'),
        ({"sizes": {"s1_grd": 9}}, DataError, r'"s1_grd" are 8 x 8 px, smaller than the 9 px .* at most 8'),
        (
            {"sizes": {"s1_grd": 4, "slc_dual": 12}},
            ConfigError,
            r'4 px of the grid "s1_grd" are 0.5 x 0.5 of a tile and 12 samples of "slc_dual" 0.75 x 0.75',
        ),
        ({"sizes": {"slc_dual": 17}}, DataError, r"smaller than image_size = 17.*sizes.slc_dual\) to at most 16"),
    ],
)
def test_data_that_does_not_fit(pair, changes, error, message):
    with pytest.raises(error, match=message):
        train_batches(config(pair, ViewsConfig(grid="s1_grd"), **changes))


@pytest.mark.parametrize(
    ("sensor", "disturbance", "message"),
    [
        ("slc_dual", {"blur": 0.5}, "data.views.photometric.slc_dual.blur = 0.5: complex samples are never averaged"),
        ("slc_dual", {"solarise": 0.5}, 'slc_dual.solarise = 0.5: values are in "complex amplitude'),
        ("s1_grd", {"solarise": 0.5}, r's1_grd.solarise = 0.5: values are in "dB \(sigma0\)", -60 to 40'),
        ("s1_grd", {"offset": 0.5}, r's1_grd.offset = 0.5: values are in "dB .*, to which nothing adds.*: set gain'),
        ("slc_dual", {"offset": 0.5}, 'slc_dual.offset = 0.5: values are in "complex amplitude.*wanted 0$'),
        ("rbg", {"gain": 0.5}, 'data.views.photometric names "rbg", which is no sensor: did you mean "rgb"'),
    ],
)
def test_disturbances_that_a_sensor_does_not_allow(pair, sensor, disturbance, message):
    chosen = ViewsConfig(photometric={sensor: PhotometricConfig(**disturbance)})
    with pytest.raises(ConfigError, match=message):
        train_batches(config(pair, chosen))


@pytest.mark.parametrize(("sensor", "bands"), [("s1_grd", ("VV",)), ("slc_dual", ("VH_re", "VH_im"))])
def test_the_only_band_cannot_be_dropped(pair, sensor, bands):
    chosen = ViewsConfig(photometric={sensor: PhotometricConfig(drop_band=0.5)})
    train_batches(config(pair, chosen))
    with pytest.raises(ConfigError, match=f"{sensor}.drop_band = 0.5: one band is always kept, and it has one"):
        train_batches(config(pair, chosen, bands={sensor: bands}))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sizes": {"rgb": 0}}, ConfigError, "sizes.rgb = 0: wanted pixels > 0$"),
        ({"sizes": {"rgb": 6}, "mask_unit": 4}, ConfigError, "sizes.rgb = 6: .*a multiple of mask_unit = 4"),
        ({"sizes": {"rbg": 8}}, ConfigError, 'sizes names "rbg"'),
        ({"frames": {"rgb": 0}}, DataError, "frames.rgb = 0: wanted 1 to 1"),
        ({"reader": "tff"}, ConfigError, 'reader "tff" does not exist: did you mean "tf"'),
        ({"grid": "s2_10"}, ConfigError, 'reads no sensor "s2_10", which is the grid'),
        ({"sizes": {"rgb": 9}, "grid": "rgb"}, DataError, '"rgb" are 8 x 8 px, smaller than the 9 px'),
    ],
)
def test_wrong_evaluation(tiny, changes, error, message):
    with pytest.raises(error, match=message):
        EvalBatches(tiny, ["rgb"], **({"image_size": 8, "batch_size": 2} | changes))


def test_tracks_need_all_dates(tmp_path):
    info = SensorInfo.of(sensors.get("rgb"), (2, 4, 4), 1.0)
    meta = Metadata("d", {"rgb": info}, "", "", "", labels={"track": LabelInfo(TRACKS, ("car",), "", "rgb", 1)})
    image = Image(np.ones((2, 4, 4, 3), np.uint8))
    sample = Sample("a", {"rgb": image}, labels={"track": np.zeros((1, 8), np.float32)})
    write_dataset(tmp_path / "d", {"validation": [sample]}, meta)
    with pytest.raises(ConfigError, match=r'frames.rgb = 1: the tracks "track" of .* count all of its dates'):
        EvalBatches(tmp_path / "d", ["rgb"], image_size=4, batch_size=1, frames={"rgb": 1})
