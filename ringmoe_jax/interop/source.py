"""What the weights of others are, and how they come in: one file a source."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.interop.files import Tensors
from ringmoe_jax.interop.mapping import WeightMap
from ringmoe_jax.registry import Registry
from ringmoe_jax.sensors import Sensor, Statistics


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """A family of published weights. One of your own is a frozen dataclass made from this class.

    Attributes:
        sensors: that the model is to take; () is what the weights are for.
        title: what the literature calls it.
        licence: of the weights as published, an SPDX identifier, or words where there is none.
        citation: how to cite it.
    """

    sensors: tuple[str, ...] = ()
    title: ClassVar[str]
    licence: ClassVar[str]
    citation: ClassVar[str]

    @abc.abstractmethod
    def model(self, tensors: Tensors, path: Path) -> dict[str, Any]:
        """`config.model` of the model that a file's tensors fill, as far as names and shapes tell.

        Raises:
            DataError: the file is of another model.
        """

    @abc.abstractmethod
    def map(self, model: Mapping[str, Any]) -> WeightMap:
        """The table between the source's names and the parameters of a model."""

    def prepare(self, tensors: Tensors, model: Mapping[str, Any]) -> Tensors:
        """The tensors as the table wants them, for example with kernels for other bands. Default: as they are."""
        del model
        return tensors

    def statistics(self, sensor: Sensor, path: Path) -> Statistics | None:
        """The normalisation that the weights were trained with; None where the source says nothing of a sensor."""
        del sensor, path
        return None

    def data(self, path: Path) -> dict[str, Any]:
        """Fields of `config.data` that the weights of a file demand. Default: none."""
        del path
        return {}

    def about(self, path: Path) -> dict[str, str]:
        """What stays with the run: source, licence and citation. Default: those of all files of the source."""
        del path
        return {"source": self.title, "licence": self.licence, "citation": self.citation}


SOURCES = Registry("source of weights", Source)

RGB = ("red", "green", "blue")


def adapted(kernel: np.ndarray, bands: Sequence[str], sensor: Sensor) -> np.ndarray:
    """The kernel of a first convolution for other bands than it was trained on.

    A band takes the kernel of the source's band that is nearest by wavelength, and a band without an optical wavelength
    their mean. All are scaled by the ratio of the band counts, so that an image that is the same in all bands gives
    what it gave (our choice, after timm, which repeats channels in their order; released SkySense code copies red to
    near infrared without a scale).

    Args:
        kernel: [D, C, h, w].
        bands: names or STAC common names of its C bands, of the sensor table's "s2_10".
        sensor: that it is wanted for.

    Raises:
        ConfigError: it has another number of bands than the source says.
    """
    if kernel.shape[1] != len(bands):
        raise ConfigError(f"the first kernel has {kernel.shape[1]} bands, wanted {len(bands)}: {', '.join(bands)}")
    msi = sensor_table.get("s2_10")
    waves = np.array([msi.bands[msi.band_index(name)].wavelength for name in bands])
    optical = [band.wavelength if band.wavelength and band.wavelength < 20 else None for band in sensor.bands]
    if tuple(band.alias for band in sensor.bands) == tuple(bands):
        return kernel
    chosen = [kernel.mean(axis=1) if wave is None else kernel[:, np.argmin(np.abs(waves - wave))] for wave in optical]
    return np.stack(chosen, axis=1) * np.float32(len(bands) / len(chosen))


def counted(tensors: Tensors, start: str, end: str) -> int:
    """How many numbers from 0 up stand between `start` and `end` in the names of tensors: blocks, stages."""
    number = 0
    while f"{start}{number}{end}" in tensors:
        number += 1
    return number
