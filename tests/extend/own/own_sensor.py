"""A sensor: land surface temperature."""

from ringmoe_jax.sensors import Band, Sensor

LST = Sensor(
    name="lst",
    modality="thermal",  # whose specialised experts it uses
    unit="K",
    bands=(Band("temperature", mean=290.0, std=15.0, gsd=100.0, wavelength=10.9),),
    dtype="uint16",  # as stored; K = 0.01 * stored
    scale=0.01,
    no_data=0,
    valid_range=(150.0, 400.0),
    source="our product of 2025",
)
