"""What a folder of a run holds, and what a configuration builds: shared by every verb, without the input pipeline."""

from ringmoe_jax.run.build import Encoder, Parts, TaskSpec, build_objectives, finetuning, make_mesh, pretraining
from ringmoe_jax.run.config import CHECKPOINT, RANDOM, FinetuneConfig, PretrainConfig
from ringmoe_jax.run.folder import (
    COMPRESSED,
    FEATURES,
    IMPORTED,
    ORIGIN,
    PRETRAINING,
    TASK,
    Run,
    claim,
    kind_of,
    origin_of,
    read_record,
)

__all__ = [
    "CHECKPOINT",
    "COMPRESSED",
    "FEATURES",
    "IMPORTED",
    "ORIGIN",
    "PRETRAINING",
    "RANDOM",
    "TASK",
    "Encoder",
    "FinetuneConfig",
    "Parts",
    "PretrainConfig",
    "Run",
    "TaskSpec",
    "build_objectives",
    "claim",
    "finetuning",
    "kind_of",
    "make_mesh",
    "origin_of",
    "pretraining",
    "read_record",
]
