"""Freed memory is kept: a further large allocation meets pages that are there already."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from gtl_lightning.allocation import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    before = faults()
    torch.empty(16 << 20, dtype=torch.uint8).fill_(1)
print(faults() - before)
"""


def faults(how: str) -> int:
    """Page faults of the last of some equal allocations of 16 MB."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_large_tensor_is_made_of_pages_that_were_freed() -> None:
    assert faults("kept") < 100 < faults("as it is")
