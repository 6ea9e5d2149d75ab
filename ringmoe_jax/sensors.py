"""What a sensor is: bands, wavelengths, units, ground sampling, statistics, no-data.

This table is the only place that knows. Adding a sensor is adding one entry to
`SENSORS`, calling `register` from your own module, or naming one of your own file,
`my_sensors:THERMAL`: the pipeline, the patch embeddings, the decoders, the objectives
and the reports follow from it.

Pixels are stored in records as the provider delivers them (`dtype`) and leave the
pipeline in the sensor's physical unit, `scale * stored + offset`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ringmoe_jax.errors import DataError, nearest
from ringmoe_jax.registry import Registry

# How neighbouring pixels may be averaged when an image is resized.
LINEAR = "linear"  # the value itself is additive: reflectance, radiance, height
DECIBEL = "decibel"  # average in linear power, then return to dB
AMPLITUDE = "amplitude"  # average in linear power, then return to its root
COMPLEX = "complex"  # never: averaging speckle changes its power; crop only


@dataclasses.dataclass(frozen=True)
class Band:
    """One channel.

    Attributes:
        name: the provider's name, for example "B8A" or "VV".
        mean: default mean, in the sensor's unit.
        std: default standard deviation, in the sensor's unit, > 0.
        gsd: native ground sampling distance in metres.
        wavelength: centre wavelength in micrometres (SAR: of the carrier), or None.
        alias: STAC `eo:common_name`, or "" where there is none.
        noise: standard deviation of the sensor's noise, in the sensor's unit, or None where unknown.
        width: full width at half maximum of the spectral response in micrometres, or None where unknown.
        polarisation: of SAR, transmitted and received: "HH", "HV", "VH", "VV", or "" where unknown or not SAR.
    """

    name: str
    mean: float
    std: float
    gsd: float
    wavelength: float | None = None
    alias: str = ""
    noise: float | None = None
    width: float | None = None
    polarisation: str = ""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Per-band normalisation that a model was trained with; part of its checkpoint.

    Attributes:
        mean: one value a band, in the sensor's unit.
        std: one value a band, in the sensor's unit, > 0.
        source: where the numbers come from, for a person to read.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if len(self.mean) != len(self.std):
            raise DataError(f"statistics need one std a mean, got {len(self.mean)} means and {len(self.std)} stds")
        bad = [v for v in self.mean + self.std if not math.isfinite(v)] + [v for v in self.std if v <= 0]
        if bad:
            raise DataError(f"statistics need finite means and std > 0, got {bad[0]} (source: {self.source})")

    def to_json(self) -> dict:
        """Returns a dict of JSON types; `Statistics(**d)` reads it back."""
        return {"mean": list(self.mean), "std": list(self.std), "source": self.source}


@dataclasses.dataclass(frozen=True)
class Sensor:
    """One kind of image.

    Attributes:
        name: key in configs, records and batches.
        modality: which specialised experts it uses; sensors may share a modality.
        unit: physical unit of the values that leave the pipeline.
        bands: channels in storage order.
        dtype: storage dtype, a NumPy name.
        scale: unit = scale * stored + offset.
        offset: see `scale`.
        valid_range: smallest and largest plausible value, in `unit`.
        no_data: stored value that means "not observed", or None. NaN and infinite
            values never are valid, whatever this says.
        flags: first and last of the stored values that are no measurement in any band, such as saturation or what was
            below zero and wrapped around in unsigned integers; or None.
        resampling: `LINEAR`, `DECIBEL`, `AMPLITUDE` or `COMPLEX` (channels are re, im pairs).
        looks: nominal number of looks L >= 1 of a SAR product, or None: not SAR. A SAR sensor with `LINEAR`
            resampling holds intensities.
        source: where the default statistics and band data come from.
    """

    name: str
    modality: str
    unit: str
    bands: tuple[Band, ...]
    dtype: str
    valid_range: tuple[float, float]
    source: str
    scale: float = 1.0
    offset: float = 0.0
    no_data: float | None = None
    resampling: str = LINEAR
    looks: float | None = None
    flags: tuple[float, float] | None = None

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands in storage order."""
        return tuple(band.name for band in self.bands)

    @property
    def channels(self) -> int:
        """Number of real-valued channels, C."""
        return len(self.bands)

    @property
    def gsd(self) -> float:
        """Finest native ground sampling distance of the bands, in metres."""
        return min(band.gsd for band in self.bands)

    @property
    def statistics(self) -> Statistics:
        """Default normalisation of this table."""
        return Statistics(
            tuple(b.mean for b in self.bands), tuple(b.std for b in self.bands), f"sensor table: {self.source}"
        )

    def band_index(self, name: str) -> int:
        """Position of a band by its name or STAC common name.

        Raises:
            DataError: there is no such band; the message names the nearest one.
        """
        for i, band in enumerate(self.bands):
            if name == band.name or (band.alias and name == band.alias):
                return i
        known = [b.name for b in self.bands] + [b.alias for b in self.bands if b.alias]
        raise DataError(f'sensor "{self.name}" has no band "{name}": {nearest(name, known)}')

    def select(self, names: Sequence[str]) -> Sensor:
        """The same sensor with only the named bands (names or aliases), in that order."""
        if self.resampling == COMPLEX:
            indices = [self.band_index(n) for n in names]
            pairs = list(zip(indices[::2], indices[1::2], strict=False))
            if len(indices) % 2 or any(a % 2 or b != a + 1 for a, b in pairs):
                raise DataError(f'sensor "{self.name}" is complex: bands come as re, im pairs, got {list(names)}')
        return dataclasses.replace(self, bands=tuple(self.bands[self.band_index(n)] for n in names))


# Centre wavelengths and widths (Sentinel-2A, micrometres), native sampling and STAC names of the MSI
# bands: ESA Sentinel-2 Spectral Response Functions document, and the STAC eo extension.
_MSI = {
    "B01": (0.4427, 0.021, 60.0, "coastal"),
    "B02": (0.4924, 0.066, 10.0, "blue"),
    "B03": (0.5598, 0.036, 10.0, "green"),
    "B04": (0.6646, 0.031, 10.0, "red"),
    "B05": (0.7041, 0.015, 20.0, "rededge071"),
    "B06": (0.7405, 0.015, 20.0, "rededge075"),
    "B07": (0.7828, 0.020, 20.0, "rededge078"),
    "B08": (0.8328, 0.106, 10.0, "nir"),
    "B8A": (0.8647, 0.021, 20.0, "nir08"),
    "B09": (0.9451, 0.020, 60.0, "nir09"),
    "B10": (1.3735, 0.031, 60.0, "cirrus"),
    "B11": (1.6137, 0.091, 20.0, "swir16"),
    "B12": (2.2024, 0.175, 20.0, "swir22"),
}
# Noise of the MSI bands: reference radiance (W m-2 sr-1 um-1) and the signal-to-noise ratio required there
# (ESA Sentinel-2 User Handbook), and solar irradiance (W m-2 um-1, Sentinel-2A product metadata).
_MSI_NOISE = {
    "B01": (129.0, 129.0, 1884.69),
    "B02": (128.0, 154.0, 1959.66),
    "B03": (128.0, 168.0, 1823.24),
    "B04": (108.0, 142.0, 1512.06),
    "B05": (74.5, 117.0, 1424.64),
    "B06": (68.0, 89.0, 1287.61),
    "B07": (67.0, 105.0, 1162.08),
    "B08": (103.0, 174.0, 1041.63),
    "B8A": (52.5, 72.0, 955.32),
    "B09": (9.0, 114.0, 812.92),
    "B10": (6.0, 50.0, 367.15),
    "B11": (4.0, 100.0, 245.59),
    "B12": (1.5, 100.0, 85.25),
}
# Mean and std in digital numbers (reflectance x 10,000).
_BIGEARTHNET_S2 = {
    "B01": (340.768, 554.813),
    "B02": (429.943, 572.416),
    "B03": (614.217, 582.879),
    "B04": (590.236, 675.887),
    "B05": (950.684, 729.898),
    "B06": (1792.463, 1096.015),
    "B07": (2075.468, 1273.454),
    "B08": (2218.946, 1365.456),
    "B8A": (2266.460, 1356.138),
    "B09": (2246.061, 1302.329),
    "B11": (1594.427, 1079.191),
    "B12": (1009.327, 818.867),
}
_EUROSAT_S2 = {
    "B01": (1354.405, 245.718),
    "B02": (1118.244, 333.008),
    "B03": (1042.930, 395.092),
    "B04": (947.626, 593.751),
    "B05": (1199.473, 566.417),
    "B06": (1999.791, 861.184),
    "B07": (2369.223, 1086.631),
    "B08": (2296.826, 1117.982),
    "B8A": (2594.141, 1231.586),
    "B09": (732.083, 404.920),
    "B10": (12.113, 4.776),
    "B11": (1819.010, 1002.588),
    "B12": (1118.924, 761.303),
}
_BIGEARTHNET = "BigEarthNet statistics as published in bigearthnet-common 2.8.0"
_FLAGS = (64536, 65535)  # of uint16 reflectance x 10,000: -1,000 to -1 wrapped around; 65535 is saturated (ESA)
_C_BAND = 55465.8  # micrometres, 5.405 GHz
_SLC_STD = 0.129  # sqrt(sigma0 / 2) at the mean Sentinel-1 VV and VH backscatter


def _msi_noise(band: str) -> float:
    """Noise-equivalent reflectance pi L / (E SNR), sun overhead (our choice)."""
    radiance, ratio, irradiance = _MSI_NOISE[band]
    return math.pi * radiance / (irradiance * ratio)


def _sentinel2(name: str, table: Mapping[str, tuple[float, float]], bands: Sequence[str], source: str) -> Sensor:
    return Sensor(
        name=name,
        modality="multispectral",
        unit="reflectance",
        dtype="uint16",
        scale=1e-4,
        no_data=0,
        valid_range=(0.0, 2.0),  # snow, cloud and sun glint exceed 1
        flags=_FLAGS,
        source=source,
        bands=tuple(
            Band(b, table[b][0] * 1e-4, table[b][1] * 1e-4, gsd, centre, alias, _msi_noise(b), width)
            for b, (centre, width, gsd, alias) in ((b, _MSI[b]) for b in bands)
        ),
    )


def _single_look_complex(name: str, polarisations: Sequence[str]) -> Sensor:
    return Sensor(
        name=name,
        modality="sar_l1",
        unit="complex amplitude, |S|^2 = sigma0",
        dtype="float32",
        valid_range=(-100.0, 100.0),
        resampling=COMPLEX,
        looks=1.0,
        source="our choice: zero mean and one global scale (phase and polarimetric ratios stay untouched)",
        bands=tuple(
            Band(f"{p}_{part}", 0.0, _SLC_STD, 5.0, _C_BAND, polarisation=p)
            for p in polarisations
            for part in ("re", "im")
        ),
    )


_TABLE = (
    Sensor(
        name="rgb",
        modality="optical",
        unit="relative radiance, 8-bit digital number / 255",
        dtype="uint8",
        scale=1 / 255,
        valid_range=(0.0, 1.0),
        source="ImageNet statistics, as in the released RingMoE configuration",
        bands=(
            Band("red", 0.485, 0.229, 0.1, 0.66, "red"),
            Band("green", 0.456, 0.224, 0.1, 0.56, "green"),
            Band("blue", 0.406, 0.225, 0.1, 0.48, "blue"),
        ),
    ),
    Sensor(
        name="rgbn",
        modality="optical",
        unit="relative radiance, 8-bit digital number / 255",
        dtype="uint8",
        scale=1 / 255,
        valid_range=(0.0, 1.0),
        source="TreeSatAI aerial images, statistics as published with GEO-Bench 2",
        bands=(
            Band("red", 79.308 / 255, 33.364 / 255, 0.2, 0.66, "red"),
            Band("green", 92.135 / 255, 33.529 / 255, 0.2, 0.56, "green"),
            Band("blue", 85.363 / 255, 27.932 / 255, 0.2, 0.48, "blue"),
            Band("nir", 154.290 / 255, 49.029 / 255, 0.2, 0.83, "nir"),
        ),
    ),
    Sensor(
        name="ms4",
        modality="multispectral",
        unit="reflectance",
        dtype="uint16",
        scale=1e-4,
        no_data=0,
        valid_range=(0.0, 2.0),
        flags=_FLAGS,
        source=f"{_BIGEARTHNET}, bands B02 B03 B04 B08",
        bands=tuple(
            Band(alias, _BIGEARTHNET_S2[b][0] * 1e-4, _BIGEARTHNET_S2[b][1] * 1e-4, 4.0, _MSI[b][0], alias)
            for alias, b in (("blue", "B02"), ("green", "B03"), ("red", "B04"), ("nir", "B08"))
        ),
    ),
    _sentinel2("s2_10", _BIGEARTHNET_S2, "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12".split(), f"{_BIGEARTHNET} (L2A)"),
    _sentinel2(
        "s2_12",
        _BIGEARTHNET_S2,
        "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12".split(),
        f"{_BIGEARTHNET} (L2A)",
    ),
    _sentinel2("s2_13", _EUROSAT_S2, tuple(_MSI), "EuroSAT statistics as used by torchgeo (L1C, top of atmosphere)"),
    Sensor(
        name="s1_grd",
        modality="sar_l2",
        unit="dB (sigma0)",
        dtype="float32",
        valid_range=(-60.0, 40.0),
        resampling=DECIBEL,
        looks=4.4,
        source=_BIGEARTHNET,
        bands=(
            Band("VV", -12.620, 5.116, 10.0, _C_BAND, polarisation="VV"),
            Band("VH", -19.290, 5.464, 10.0, _C_BAND, polarisation="VH"),
        ),
    ),
    Sensor(
        name="sar_amplitude",
        modality="sar_l2",
        unit="amplitude, sqrt(sigma0)",
        dtype="float32",
        no_data=0,
        valid_range=(0.0, 100.0),
        resampling=AMPLITUDE,
        looks=1.0,
        source="our choice: Rayleigh amplitude at the mean Sentinel-1 VV backscatter",
        bands=(Band("amplitude", 0.207, 0.108, 3.0, None),),
    ),
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
    ),
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
    ),
    Sensor(
        name="s1_8bit",
        modality="sar_l2",
        unit="relative backscatter, 8-bit digital number / 255",
        dtype="uint8",
        scale=1 / 255,
        valid_range=(0.0, 1.0),
        source="statistics of the training places of OMBRIA; how they were stretched is unknown, so speckle has no law",
        bands=(Band("backscatter", 0.555, 0.198, 10.0, _C_BAND),),
    ),
    Sensor(
        name="s2_8bit",
        modality="optical",
        unit="relative radiance, 8-bit digital number / 255",
        dtype="uint8",
        scale=1 / 255,
        valid_range=(0.0, 1.0),
        source="statistics of the training places of OMBRIA; bands inferred from how plants, soil and water look",
        bands=(
            Band("swir", 0.228, 0.137, 20.0),
            Band("nir", 0.273, 0.127, 10.0),
            Band("red", 0.146, 0.116, 10.0),
        ),
    ),
    Sensor(
        name="tirs",
        modality="thermal",
        unit="W m-2 sr-1 um-1",
        dtype="float32",
        no_data=0,
        valid_range=(0.0, 50.0),
        source="our choice: Planck radiance at 290 K with a spread of 10 K; bands of Landsat 8 and 9 TIRS (USGS)",
        bands=(Band("B10", 8.26, 1.31, 100.0, 10.895, "lwir11"), Band("B11", 7.79, 1.13, 100.0, 12.005, "lwir12")),
    ),
    _single_look_complex("slc_single", ("VV",)),
    _single_look_complex("slc_dual", ("VV", "VH")),
    _single_look_complex("slc_quad", ("HH", "HV", "VH", "VV")),
    Sensor(
        name="dem",
        modality="elevation",
        unit="m above the geoid",
        dtype="float32",
        no_data=-9999,
        valid_range=(-500.0, 9000.0),
        source="our choice",
        bands=(Band("elevation", 300.0, 500.0, 30.0),),
    ),
    Sensor(
        name="ndsm",
        modality="elevation",
        unit="m above ground",
        dtype="float32",
        no_data=-9999,
        valid_range=(-5.0, 500.0),
        source="our choice",
        bands=(Band("height", 3.0, 6.0, 0.5),),
    ),
)

SENSORS = Registry("sensor", Sensor)
for _sensor in _TABLE:
    SENSORS.add(_sensor.name, _sensor)


def register(sensor: Sensor) -> Sensor:
    """Adds a sensor to the table, for example from a module of your own.

    Raises:
        ConfigError: another sensor of that name is in the table.
    """
    return SENSORS.add(sensor.name, sensor)


def get(name: str) -> Sensor:
    """Looks a sensor up. One of your own file, `module:NAME`, is in the table from then on, by its own name.

    Raises:
        ConfigError: unknown name; the message names the nearest one.
    """
    sensor = SENSORS.find(name)
    return sensor if name in SENSORS else register(sensor)


def own_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names as batches and records have them: for `module:NAME` the sensor's own name, others as they are."""
    return tuple(get(name).name if ":" in name else name for name in names)


def resolve(names: Sequence[str], known: Mapping[str, Sensor] | None = None) -> dict[str, Sensor]:
    """The named sensors, in order and by their own names: from `known` where it has them, else from the table."""
    return {name: known[name] if known and name in known else get(name) for name in own_names(names)}


def modalities(sensors: Mapping[str, Sensor]) -> tuple[str, ...]:
    """Modalities of some sensors, each once, in order of first appearance: the axis M of routing tables."""
    return tuple(dict.fromkeys(sensor.modality for sensor in sensors.values()))
