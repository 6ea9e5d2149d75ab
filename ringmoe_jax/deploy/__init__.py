"""Trained models at work: exports for other programs, and maps of whole scenes. Nothing here needs TensorFlow.

Weights, a StableHLO program and a STAC description in one folder, and back; this module has their names:

program     a model as a function of flat dicts that runs without this package
stac        what it takes and gives, as a STAC Item with the Machine Learning Model extension
directory   the folder: written, checked, read
export      what of a run is exported: features, or a task's answers

A scene of any size in the memory of some strips:

scenes      rasters, read by strips and windows
windows     a run as something that answers windows
overlap     work that goes on in a thread of its own
passes      one pass over a scene: reading, computing and writing at the same time
blending    one map of what overlapping windows say
canvas      a map of numbers, made of windows' answers
objects     boxes and tracks, each once, made of them
maps        maps and tables on disk, in parts until they are whole
predict     the job: from rasters and a model to a file
"""

from ringmoe_jax.deploy.directory import check_target, load, save
from ringmoe_jax.deploy.program import PLATFORMS, Program, Used, lower, trim
from ringmoe_jax.deploy.stac import Card, Meaning, describe

__all__ = [
    "PLATFORMS",
    "Card",
    "Meaning",
    "Program",
    "Used",
    "check_target",
    "describe",
    "load",
    "lower",
    "save",
    "trim",
]
