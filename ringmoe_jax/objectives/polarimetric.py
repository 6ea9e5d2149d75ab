"""What polarimetry demands of predicted powers: constraints between the outputs of decoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.objectives import radar
from ringmoe_jax.objectives.base import Constraint, find, register
from ringmoe_jax.sensors import Sensor


@register("power_conservation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerConservation(Constraint):
    """Span equals the sum of the Pauli powers: (ln sum_k lambda_k - ln sum_p lambda_p)^2 on hidden pixels.

    Couples the decoders of `complex_gaussian` in both bases, which see the same pixels through a unitary change
    of basis, so that total power must agree. Exact for any scatterer; in squared nats. Source: the conservation
    of total power in RingMoE's SAR-L1 objective; as a constraint, our choice.
    """

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        radar.require_quad(find(self, sensors), who=type(self).__name__)
        return {self.sensor: {head: len(radar.QUAD) for head in radar.HEADS.values()}}

    def residual(self, outputs: Mapping) -> jax.Array:
        stored, pauli = (jnp.sum(radar.predicted_power(outputs, self.sensor, b), -1) for b in radar.HEADS)
        return jnp.log(pauli / stored)[..., None]


@register("reciprocity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reciprocity(Constraint):
    """Predicted powers of HV and VH agree: (ln lambda_HV - ln lambda_VH)^2 on hidden pixels.

    Holds for a monostatic radar over reciprocal media and a product with calibrated cross-talk and channel
    imbalance; not for bistatic data or under Faraday rotation. In squared nats. Goes beside `complex_gaussian`
    in the lexicographic basis. Source: the reciprocity theorem (Lee and Pottier 2009); as a constraint, our
    choice.
    """

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        radar.require_quad(find(self, sensors), who=type(self).__name__)
        return {self.sensor: {radar.HEADS["lexicographic"]: len(radar.QUAD)}}

    def residual(self, outputs: Mapping) -> jax.Array:
        power = radar.predicted_power(outputs, self.sensor)
        hv, vh = (power[..., radar.QUAD.index(p)] for p in ("HV", "VH"))
        return jnp.log(hv / vh)[..., None]
