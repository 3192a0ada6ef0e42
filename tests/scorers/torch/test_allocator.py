"""The C library keeps what a layer frees, up to a bound, and gives it back when it is told to."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import re
import numpy as np
from rerank_plugins.scorers.torch.allocator import keep_memory, return_memory

def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) // 1000

def left(megabytes):
    block = np.ones(megabytes * 1_000_000, dtype=np.uint8)
    before = resident()
    del block
    return resident() - before + megabytes

first = left(60)
keep_memory()
kept, beyond = left(60), left(200)
return_memory()
print(first, kept, beyond, resident() < 200)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_freed_memory_is_kept_up_to_a_bound_and_given_back() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )

    first, kept, beyond, small = answer.stdout.split()
    assert int(first) < 5
    assert int(kept) > 50
    assert int(beyond) < 5
    assert small == "True"
