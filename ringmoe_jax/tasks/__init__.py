"""Downstream tasks: what a head is asked for, how its predictions become answers, scores and pictures."""

from ringmoe_jax.tasks.base import REGISTRY, SENSOR, Example, SceneOutput, Target, Task, build, register
from ringmoe_jax.tasks.objects import Detection, Tracking
from ringmoe_jax.tasks.pixels import Change, Height, Segmentation
from ringmoe_jax.tasks.scenes import Classification, MultiLabel

__all__ = [
    "REGISTRY",
    "SENSOR",
    "Change",
    "Classification",
    "Detection",
    "Example",
    "Height",
    "MultiLabel",
    "SceneOutput",
    "Segmentation",
    "Target",
    "Task",
    "Tracking",
    "build",
    "register",
]
