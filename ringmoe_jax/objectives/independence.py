"""Real and imaginary parts of single-look pixels as two looks at the same power: self-supervised despeckling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives import radar
from ringmoe_jax.objectives.base import NOTHING, Objective, Result, find, masked_mean, register
from ringmoe_jax.sensors import Sensor


@register("part_independence")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PartIndependence(Objective):
    """Negative log-likelihood of the part of a visible pixel that the encoder did not see, given predicted power.

    Given lambda, the real and the imaginary part of a circular pixel are independent, each normal with variance
    lambda / 2: -ln p(part) = part^2 / lambda + ln(lambda) / 2, in nats a part without constants. The pretext
    task "masked_parts" withholds one of the two from every image, so that speckle cannot be copied and only the
    power behind it can be predicted. Assumes fully developed speckle and a spectrum that is symmetric about
    zero: centre it first. Shares the decoder of `complex_gaussian`. No-data pixels add nothing. Source: MERLIN
    (Dalsasso, Denis and Tupin 2021); drawing the part by image, our choice.

    Attributes:
        sensor: name of a complex sensor.
    """

    sensor: str

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        sensor = find(self, sensors)
        radar.require(sensor, who=type(self).__name__, complex_only=True)
        return {self.sensor: {radar.HEADS["lexicographic"]: sensor.channels // 2}}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        if self.sensor not in outputs["heads"]:
            return NOTHING
        if self.sensor not in outputs.get("withheld", {}):
            raise ConfigError('PartIndependence needs what the encoder did not see: set pretext.name = "masked_parts"')
        withheld = outputs["withheld"][self.sensor]  # re or im of visible pixels, never both
        power = radar.predicted_power(outputs, self.sensor)
        parts = jnp.where(withheld, batch["sensors"][self.sensor]["pixels"], 0)
        squares = jnp.square(parts[..., 0::2] + parts[..., 1::2])
        finite = jnp.isfinite(squares).all(axis=-1)
        nats = jnp.where(finite[..., None], squares, 0) / power + jnp.log(power) / 2
        return masked_mean(nats, withheld.any(axis=-1) & finite)
