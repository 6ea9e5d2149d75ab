"""Downstream tasks: what a head is asked for, how its predictions become answers, scores and pictures."""

from ringmoe_jax.tasks.base import SENSOR, TASKS, Example, Target, Task, build, register
from ringmoe_jax.tasks.objects import Detection, Tracking
from ringmoe_jax.tasks.pixels import Change, Height, Segmentation
from ringmoe_jax.tasks.scenes import Classification, MultiLabel

__all__ = [
    "SENSOR",
    "TASKS",
    "Change",
    "Classification",
    "Detection",
    "Example",
    "Height",
    "MultiLabel",
    "Segmentation",
    "Target",
    "Task",
    "Tracking",
    "build",
    "register",
]
