"""The sensor table: consistent, extensible, and clear about what it does not know."""

import math

import pytest

from ringmoe_jax import sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.sensors import COMPLEX, SENSORS, Band, Sensor, Statistics


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=lambda s: s.name)
def test_every_entry_is_consistent(sensor):
    assert len(set(sensor.band_names)) == sensor.channels > 0
    assert sensor.valid_range[0] < sensor.valid_range[1]
    low, high = sensor.valid_range
    assert all(low <= band.mean <= high and 0 < band.std < high - low for band in sensor.bands)
    assert all(band.gsd > 0 for band in sensor.bands)
    assert sensor.unit
    assert sensor.source
    assert sensor.statistics.mean == tuple(band.mean for band in sensor.bands)
    if sensor.resampling == COMPLEX:
        assert [n[-3:] for n in sensor.band_names] == ["_re", "_im"] * (sensor.channels // 2)
        assert len({band.std for band in sensor.bands}) == 1
        assert {band.mean for band in sensor.bands} == {0.0}


def test_values_by_hand():
    s2 = sensors.get("s2_12")
    assert s2.bands[1].name == "B02"
    assert s2.bands[1].mean == pytest.approx(0.0429943)  # 429.943 digital numbers of 1 / 10,000
    assert s2.gsd == 10
    assert sensors.get("slc_quad").band_names[2:4] == ("HV_re", "HV_im")
    assert sensors.modalities({n: sensors.get(n) for n in ("s2_12", "s1_grd", "s2_10")}) == ("multispectral", "sar_l2")


def test_bands_by_name_alias_and_in_order():
    s2 = sensors.get("s2_12")
    assert s2.band_index("B8A") == s2.band_index("nir08") == 8
    assert s2.select(["nir", "B04"]).band_names == ("B08", "B04")
    with pytest.raises(DataError, match='sensor "s2_12" has no band "B8": did you mean "B8A"'):
        s2.band_index("B8")


def test_complex_bands_come_in_pairs():
    slc = sensors.get("slc_dual")
    assert slc.select(["VH_re", "VH_im"]).band_names == ("VH_re", "VH_im")
    for names in (["VV_re"], ["VV_im", "VV_re"], ["VV_re", "VH_im"]):
        with pytest.raises(DataError, match="come as re, im pairs"):
            slc.select(names)


def test_a_sensor_of_ones_own(monkeypatch):
    monkeypatch.setattr(SENSORS, "parts", dict(SENSORS))
    thermal = Sensor("thermal", "thermal", "K", (Band("T", 290.0, 15.0, 100.0, 10.9),), "float32", (150, 400), "ours")
    assert sensors.register(thermal) is sensors.register(thermal) is sensors.get("thermal")
    with pytest.raises(ConfigError, match='"rgb" is in the table already'):
        sensors.register(Sensor("rgb", "optical", "", thermal.bands, "uint8", (0, 1), ""))


def test_unknown_names():
    with pytest.raises(ConfigError, match='unknown sensor "s2_11": did you mean "s2_1'):
        sensors.get("s2_11")


def test_statistics_are_checked_and_survive_json():
    statistics = Statistics((1, 2), (3, 4), "here")
    assert Statistics(**statistics.to_json()) == statistics
    for mean, std in (((1,), (1, 2)), ((1,), (0,)), ((math.nan,), (1,)), ((1,), (math.inf,))):
        with pytest.raises(DataError, match="statistics need"):
            Statistics(mean, std, "x")
