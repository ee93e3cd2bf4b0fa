"""What a CPU run does with memory that it frees."""

import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from spatialreward_jax.memory import keep_freed_memory

def in_heap(array):
    heaps = [line.split()[0].split("-") for line in open("/proc/self/maps") if "[heap]" in line]
    return any(int(low, 16) <= array.ctypes.data < int(high, 16) for low, high in heaps)

assert not in_heap(np.ones(2**24)), "large arrays are mapped one by one"
assert keep_freed_memory()
assert in_heap(np.ones(2**24))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_large_arrays_come_from_memory_that_is_kept():
    """In a process of its own: the setting cannot be undone."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert not done.returncode, done.stderr
