"""Encoders that are as small as they can be, and batches for them."""

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax import sensors

RINGMOE = dict(
    name="ringmoe",
    sensors=("rgb", "s1_grd"),
    width=8,
    depths=(2, 2),
    image_size=16,
    window=2,
    head_width=8,
    moe=dict(specialised=0, collaborative=0, shared=True),
)
SERIES = dict(width=16, depth=2, heads=2, drop_path=0.0)
SKYSENSE = dict(
    name="skysense",
    sensors=("s2_10", "s1_grd"),
    high_resolution="",
    width=8,
    depths=(1, 1),
    frame=SERIES,
    frame_patch=4,
    frame_size=8,
    fusion=SERIES,
)
BLOCK = SERIES | dict(depth=1)
SKYSENSE_PHYSICS = SKYSENSE | dict(  # a pixel of every sensor is a location
    sensors=("rgb", "s2_10"),
    high_resolution="rgb",
    image_size=8,
    patch=1,
    depths=(1,),
    window=8,
    head_width=8,
    frame=BLOCK,
    fusion=BLOCK,
    stem="physics",
)


def batch(model: dict, rows: int = 2, dates: int = 1, size: int | None = None, seed: int = 0) -> dict:
    """A batch of random pixels of all sensors of a model; what is constant comes from NumPy, which compiles nothing."""
    side = size or model.get("image_size", 8)
    entries = {}
    for i, name in enumerate(model["sensors"]):
        sensor = sensors.get(name)
        noise = jax.random.normal(jax.random.key(seed + i), (rows, dates, side, side, sensor.channels))
        statistics = sensor.statistics
        entries[name] = {
            "pixels": noise * jnp.asarray(statistics.std, jnp.float32) + jnp.asarray(statistics.mean, jnp.float32),
            "valid": jnp.asarray(np.ones((rows, dates, side, side), bool)),
            "time": jnp.asarray(np.tile(18000 + 30 * np.arange(dates, dtype=np.int32), (rows, 1))),
            "location": jnp.asarray(np.full((rows, 2), np.nan, np.float32)),
            "gsd": jnp.asarray(np.full(rows, sensor.gsd, np.float32)),
        }
    return {"sensors": entries}
