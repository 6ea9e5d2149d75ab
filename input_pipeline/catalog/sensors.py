"""Sensors that only data sets of the table have; models that read them name `input_pipeline.catalog` in `modules`."""

from __future__ import annotations

from ringmoe_jax.sensors import AMPLITUDE, Band, Sensor, register

IRRG = register(
    Sensor(
        name="irrg",
        modality="optical",
        unit="relative radiance, 8-bit digital number / 255",
        dtype="uint8",
        scale=1 / 255,
        valid_range=(0.0, 1.0),
        source="statistics of rgbn (TreeSatAI aerial images)",
        bands=(
            Band("nir", 154.290 / 255, 49.029 / 255, 0.1, 0.83, "nir"),
            Band("red", 79.308 / 255, 33.364 / 255, 0.1, 0.66, "red"),
            Band("green", 92.135 / 255, 33.529 / 255, 0.1, 0.56, "green"),
        ),
    )
)
SAR_8BIT = register(
    Sensor(
        name="sar_8bit",
        modality="sar_l2",
        unit="relative amplitude, 8-bit digital number / 255",
        dtype="uint8",
        scale=1 / 255,
        valid_range=(0.0, 1.0),
        resampling=AMPLITUDE,
        looks=1.0,
        source="our choice: dark images, calibration unknown",
        bands=(Band("amplitude", 0.2, 0.15, 3.0),),
    )
)
