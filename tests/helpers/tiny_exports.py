"""An exported program of two numbers, and what is said of it."""

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax import deploy
from ringmoe_jax import sensors as sensor_table

SENSORS = {name: sensor_table.get(name) for name in ("s2_10", "s1_grd")}
CARD = deploy.Card(
    name="RingMoE-tiny",
    description="A mean.",
    architecture="RingMoE",
    tasks=("scene-classification",),
    sensors=SENSORS,
    statistics={name: sensor.statistics for name, sensor in SENSORS.items()},
    outputs={"logits": deploy.Meaning(("class",), "logits", ("sea ice", "land"))},
    facts={"step": 3},
)


def tiny():
    """Two logits of the mean of valid pixels of Sentinel-2 and of Sentinel-1."""

    def apply(params, inputs):
        means = [
            jnp.where(inputs[f"{name}/valid"][..., None], inputs[f"{name}/pixels"], 0).mean(axis=(1, 2, 3, 4))
            for name in SENSORS
        ]
        return {"logits": jnp.stack(means, axis=1) * params["scale"]}

    inputs = {}
    for name, sensor in SENSORS.items():
        inputs[f"{name}/pixels"] = jax.ShapeDtypeStruct((1, 4, 4, sensor.channels), np.float32)
        inputs[f"{name}/valid"] = jax.ShapeDtypeStruct((1, 4, 4), np.bool_)
    return deploy.lower(apply, {"scale": jnp.array([2.0, 1.0])}, inputs)
