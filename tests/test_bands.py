"""What physics says of a band: closed forms, what tells bands apart, what is refused."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import sensors
from ringmoe_jax.bands import PERIODS, WIDTH, describe
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.sensors import Band, Sensor

UNTOLD = ("s2_8bit",)  # nobody knows the wavelengths of its bands


def plain(*bands):
    return Sensor("own", "own", "reflectance", bands, "uint16", (0.0, 2.0), "test")


@pytest.mark.parametrize("name", [sensor.name for sensor in sensors._TABLE if sensor.name not in UNTOLD])
def test_every_sensor_of_the_table_can_be_told(name):
    table = describe(sensors.get(name))
    assert table.shape == (sensors.get(name).channels, WIDTH)
    assert np.abs(table).max() <= 1


def test_a_width_averages_over_the_response():
    """Against the mean of narrow bands, drawn from a Gaussian of the width in ln wavelength."""
    broad = describe(plain(Band("pan", 0.1, 0.1, 1.0, 0.65, width=0.3)))[0]
    spread = 0.3 / 0.65 / 2.354820045
    drawn = np.exp(np.log(0.65) + spread * np.random.default_rng(0).normal(size=20000))
    narrow = np.mean([describe(plain(Band("n", 0.1, 0.1, 1.0, w)))[0] for w in drawn[:4000]], axis=0)
    waves = slice(0, 2 * len(PERIODS))
    assert_allclose(broad[waves], narrow[waves], atol=0.03)
    assert np.hypot(*broad[waves][-2:]) < 0.2  # the finest waves; 1 of a narrow band


def test_near_bands_are_alike_and_far_ones_are_not():
    table = describe(sensors.get("s2_12"))[:, : 2 * len(PERIODS)]
    names = sensors.get("s2_12").band_names
    alike = lambda a, b: float(table[names.index(a)] @ table[names.index(b)])  # noqa: E731
    assert alike("B07", "B8A") > alike("B07", "B04") > alike("B07", "B02") > alike("B07", "B12")


def test_radar_is_told_by_frequency_polarisation_and_looks():
    vv, vh = describe(sensors.get("s1_grd"))
    different = np.flatnonzero(vv != vh)
    assert len(different) == 2  # received H, V
    re, im = describe(sensors.get("slc_single"))
    assert len(np.flatnonzero(re != im)) == 2
    l_band = dataclasses.replace(sensors.get("slc_single").bands[0], wavelength=240_000.0)
    other = describe(dataclasses.replace(sensors.get("slc_single"), bands=(l_band, sensors.get("slc_single").bands[1])))
    assert not np.array_equal(other[0], re)
    assert_array_equal(other[1], im)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ((Band("red", 0.1, 0.1, 10.0), Band("nir", 0.3, 0.1, 10.0)), "nothing but their names tells red and nir apart"),
        ((Band("VV", 0.1, 0.1, 10.0, polarisation="RL"),), 'band VV has polarisation = "RL"'),
        ((Band("red", 0.1, 0.1, 10.0, wavelength=0.0),), "band red has wavelength = 0.0: wanted above 0"),
    ],
)
def test_what_cannot_be_told_is_refused(bands, message):
    with pytest.raises(ConfigError, match=message):
        describe(plain(*bands))
