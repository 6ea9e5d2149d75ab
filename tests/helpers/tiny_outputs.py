"""Batches and outputs without a model: pixels in the sensor's unit, decoder outputs as given."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from ringmoe_jax import objectives, sensors
from ringmoe_jax.contracts import standardise
from ringmoe_jax.sensors import Band, Sensor

INTENSITY = Sensor(  # the table has no SAR sensor in linear power
    name="test_intensity",
    modality="sar_l2",
    unit="sigma0",
    dtype="float32",
    valid_range=(0.0, 1e6),
    looks=4.0,
    source="test",
    bands=(Band("VV", 0.05, 0.04, 10.0), Band("VH", 0.01, 0.01, 10.0)),
)


def scene(name, pixels, valid=None, hidden=None, statistics=None, lost=None):
    """Outputs of a model without decoders, and its batch.

    Args:
        name: sensor.
        pixels: [B, T, H, W, C], or [H, W, C], or [N, C] for a row of N pixels.
        valid: the same without C; default: everywhere.
        hidden: as `valid`.
        statistics: default: the sensor's.
        lost: [C] bool, channels withheld from the encoder.
    """
    xp = jnp if isinstance(pixels, jax.Array) else np  # NumPy compiles nothing
    lead = (1,) * (5 - np.ndim(pixels))
    pixels = xp.asarray(pixels, np.float32).reshape(lead + np.shape(pixels))
    whole = np.ones(pixels.shape[:-1], bool)
    valid, hidden = (whole if x is None else xp.asarray(x).reshape(whole.shape) for x in (valid, hidden))
    sensor = sensors.get(name)
    statistics = statistics or sensor.statistics
    outputs = {
        "heads": {name: {}},
        "standardised": {name: _standardise(pixels, valid, statistics)},
        "pixel_mask": {name: valid & hidden},
        "sensors": {name: sensor},
        "statistics": {name: statistics},
    }
    if lost is not None:
        outputs["withheld"] = {name: (valid & ~hidden)[..., None] & xp.asarray(lost)}
    return outputs, {"sensors": {name: {"pixels": pixels, "valid": valid}}}


_standardise = jax.jit(standardise, static_argnums=2)


def decoded(outputs, name, **heads):
    """The outputs with what decoders say: arrays [B, T, H, W, K] or constants [K]."""
    shape = outputs["pixel_mask"][name].shape
    says = {}
    for head, x in heads.items():
        xp = jnp if isinstance(x, jax.Array) else np
        says[head] = xp.broadcast_to(xp.asarray(x, np.float32), (*shape, np.shape(x)[-1]))
    return outputs | {"heads": {name: outputs["heads"][name] | says}}


def build(name, sensor, **fields):
    """One objective, checked against the sensor table as a run checks it."""
    terms = objectives.build({"x": {"name": name, "sensor": sensor, **fields}})
    objectives.collect_heads(terms, sensors.SENSORS)
    return terms["x"]


def decoders(term):
    """{head: channels} that an objective wants."""
    return term.heads(sensors.SENSORS)[term.sensor]


@functools.lru_cache
def compiled(term):
    """The objective as one compiled function: eager JAX compiles every operation by itself."""
    return jax.jit(lambda outputs, batch: term(outputs, batch))


def loss(term, shown, **heads):
    """Value by weight of one objective; `shown` is what `scene` returns."""
    value, weight, _ = compiled(term)(decoded(shown[0], term.sensor, **heads), shown[1])
    return value / weight


@functools.lru_cache
def _slope(term, head):
    def run(x, outputs, batch):
        value, weight, _ = term(decoded(outputs, term.sensor, **{head: x}), batch)
        return value / weight

    return jax.jit(jax.value_and_grad(run))


def best_constant(term, shown):
    """The constant decoder output that minimises an objective: value, and outputs that say so."""
    ((head, channels),) = decoders(term).items()
    double = lambda x: [np.asarray(v, np.float64) for v in _slope(term, head)(np.float32(x), *shown)]  # noqa: E731
    found = minimize(double, np.zeros(channels), jac=True, method="BFGS", options={"gtol": 1e-5}).x
    return SimpleNamespace(x=found, outputs=decoded(shown[0], term.sensor, **{head: found}))


def circular(rng, covariance, shape):
    """Circular complex Gaussian vectors of a covariance [P, P] as re, im pairs, [*shape, 2 P]."""
    covariance = np.asarray(covariance, np.complex128)
    lower = np.linalg.cholesky(covariance)
    white = rng.normal(size=(*shape, len(covariance), 2)) / np.sqrt(2)
    s = (white[..., 0] + 1j * white[..., 1]) @ lower.T
    return np.stack([s.real, s.imag], axis=-1).reshape(*shape, -1)


def pixels_of(name, rng, shape):
    """Plausible pixels [*shape, C] of a sensor, in its unit."""
    sensor = sensors.get(name)
    if sensor.resampling == sensors.COMPLEX:
        return circular(rng, np.diag([0.04, 0.01, 0.012, 0.05][: sensor.channels // 2]), shape)
    if sensor.resampling == sensors.AMPLITUDE:
        return rng.rayleigh(0.15, size=(*shape, sensor.channels))
    if sensor is INTENSITY:
        return rng.gamma(4.0, [0.05 / 4, 0.01 / 4], size=(*shape, 2))
    mean, std = sensor.statistics.mean, sensor.statistics.std
    values = rng.normal(mean, std, size=(*shape, sensor.channels))
    return np.abs(values) + 0.01 if sensor.unit == "reflectance" else values
