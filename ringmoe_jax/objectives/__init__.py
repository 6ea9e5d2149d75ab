"""One idea or one piece of physics a file. See `base` for the seam and how to add an objective."""

from ringmoe_jax.objectives.alignment import Alignment
from ringmoe_jax.objectives.balance import Balance
from ringmoe_jax.objectives.base import (
    OBJECTIVES,
    Constraint,
    Likelihood,
    Objective,
    Reconstruction,
    build,
    collect_heads,
    collect_projections,
    register,
    without,
)
from ringmoe_jax.objectives.binary import BinaryCrossEntropy
from ringmoe_jax.objectives.cross_entropy import CrossEntropy
from ringmoe_jax.objectives.distillation import SelfDistillation
from ringmoe_jax.objectives.fcos import FCOS
from ringmoe_jax.objectives.height import BinChamfer, HeightRegression
from ringmoe_jax.objectives.independence import PartIndependence
from ringmoe_jax.objectives.invariance import SIGReg, VICReg
from ringmoe_jax.objectives.latent import LatentTargets
from ringmoe_jax.objectives.masked import MaskedL1, MaskedL2, NoiseWeighted
from ringmoe_jax.objectives.matching import FeatureMatching, LogitMatching, PredictionMatching
from ringmoe_jax.objectives.multilooked import Multilooked
from ringmoe_jax.objectives.overlap import Dice, Lovasz
from ringmoe_jax.objectives.polarimetric import PowerConservation, Reciprocity
from ringmoe_jax.objectives.relations import RelationMatching
from ringmoe_jax.objectives.spatial import FourierL1, GradientL1, NativeResolution
from ringmoe_jax.objectives.speckle import ComplexGaussian, Speckle
from ringmoe_jax.objectives.spectral import BrightnessTemperature, ReflectanceBounds, SpectralAngle, SpectralIndices
from ringmoe_jax.objectives.supervised import check_labels
from ringmoe_jax.objectives.texture import TexturedSpeckle
from ringmoe_jax.objectives.total_power import LogTotalPower, TotalPower
from ringmoe_jax.objectives.wishart import Wishart

__all__ = [
    "FCOS",
    "OBJECTIVES",
    "Alignment",
    "Balance",
    "BinChamfer",
    "BinaryCrossEntropy",
    "BrightnessTemperature",
    "ComplexGaussian",
    "Constraint",
    "CrossEntropy",
    "Dice",
    "FeatureMatching",
    "FourierL1",
    "GradientL1",
    "HeightRegression",
    "LatentTargets",
    "Likelihood",
    "LogTotalPower",
    "LogitMatching",
    "Lovasz",
    "MaskedL1",
    "MaskedL2",
    "Multilooked",
    "NativeResolution",
    "NoiseWeighted",
    "Objective",
    "PartIndependence",
    "PowerConservation",
    "PredictionMatching",
    "Reciprocity",
    "Reconstruction",
    "ReflectanceBounds",
    "RelationMatching",
    "SIGReg",
    "SelfDistillation",
    "Speckle",
    "SpectralAngle",
    "SpectralIndices",
    "TexturedSpeckle",
    "TotalPower",
    "VICReg",
    "Wishart",
    "build",
    "check_labels",
    "collect_heads",
    "collect_projections",
    "register",
    "without",
]
