"""The heap of a training."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from esrgan_deploy.training._heap import keep_heap
if sys.argv[1] == "kept":
    keep_heap()
# Over the 32 MiB below which glibc learns to keep blocks by itself.
def step():
    a = torch.ones(10_000_000)
    return (a + 1).sum()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_step_takes_the_memory_of_the_step_before():
    """Page faults are what the system spends on memory that was given back and asked for again."""
    faults = {}
    for way in ("given back", "kept"):
        shown = subprocess.run(
            [sys.executable, "-c", CODE, way], capture_output=True, text=True, check=True
        ).stdout
        faults[way] = int(shown)
    assert faults["kept"] < faults["given back"] / 4
