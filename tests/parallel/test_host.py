import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from ringmoe_jax.parallel.host import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**24, np.float32).fill(1.0)  # 64 MiB, more than a second arena holds
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system had to map for the fourth of four equal arrays, none of which lives on."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_array():
    assert faults("keep") < 10
    assert faults("leave") > faults("keep")
