"""What makes the suite's programs compile quickly, in this process and in those that it starts; imports no JAX."""

from importlib import metadata
from pathlib import Path

CACHE = Path(__file__).parent.parent.parent / ".cache" / "jax-tests"
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jax").startswith("0.10."):  # later ones do not know the flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
