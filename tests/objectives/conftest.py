import pytest

from ringmoe_jax import sensors
from tests.helpers.tiny_outputs import INTENSITY


@pytest.fixture(autouse=True)
def _intensity_sensor(monkeypatch):
    """The sensor table gains a SAR sensor in linear power for these tests alone."""
    monkeypatch.setitem(sensors.SENSORS.parts, INTENSITY.name, INTENSITY)
