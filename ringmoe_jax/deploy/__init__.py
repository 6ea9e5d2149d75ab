"""Models for other programs: weights, a StableHLO program and a STAC description in one folder, and back.

program     a model as a function of flat dicts that runs without this package
stac        what it takes and gives, as a STAC Item with the Machine Learning Model extension
directory   the folder: written, checked, read
"""

from ringmoe_jax.deploy.directory import check_target, load, save
from ringmoe_jax.deploy.program import PLATFORMS, Program, Used, export, trim
from ringmoe_jax.deploy.stac import Card, Meaning, describe

__all__ = [
    "PLATFORMS",
    "Card",
    "Meaning",
    "Program",
    "Used",
    "check_target",
    "describe",
    "export",
    "load",
    "save",
    "trim",
]
