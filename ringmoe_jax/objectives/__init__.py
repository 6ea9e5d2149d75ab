"""One loss a file, by physics or by idea. See `base` for the seam and how to add one."""

from ringmoe_jax.objectives.balance import Balance
from ringmoe_jax.objectives.base import Objective, Reconstruction, build, collect_heads, register
from ringmoe_jax.objectives.masked_l1 import MaskedL1
from ringmoe_jax.objectives.total_power import LogTotalPower, TotalPower

__all__ = [
    "Balance",
    "LogTotalPower",
    "MaskedL1",
    "Objective",
    "Reconstruction",
    "TotalPower",
    "build",
    "collect_heads",
    "register",
]
