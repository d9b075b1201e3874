"""The suite for a machine with a GPU works, as far as a machine without one can show it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_gpu_suite_can_be_rehearsed_on_a_processor(tmp_path, traces):
    """It runs once in a while, on a machine that is lent for minutes; what is broken in it is found too late."""
    environment = {**os.environ, "ESRGAN_GPU_SUITE": "rehearse", "ESRGAN_GPU_RESULTS": str(tmp_path)}
    environment["ESRGAN_TEST_TRACES"] = str(traces)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "--tb=short"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:]
    report = json.loads((tmp_path / "gpu_rehearsal.json").read_text())
    assert "nothing of a GPU was shown" in report["on"]
    # PyTorch and ONNX Runtime went through all of it, and the report says what it did not show.
    for backend in ("pytorch", "onnxruntime"):
        assert len([name for name in report["shown"] if backend in name]) >= 5, backend
    assert len([reason for reason in report["not shown"].values() if "a plan needs a GPU" in reason]) > 20
    assert report["shown"]["test_does_this_card_take_the_plan[tensorrt-rtx]"]["taken"] is False


@pytest.mark.slow
def test_a_step_that_hangs_ends_the_run_and_says_where(tmp_path):
    """Of a quarter of an hour, a hang that is waited for leaves nothing, and one without a stack teaches nothing."""
    environment = {**os.environ, "ESRGAN_GPU_SUITE": "rehearse", "ESRGAN_GPU_LIMIT": "0.2"}
    # What it installs stays where it was told to work, on the machine that is lent.
    environment["TMPDIR"] = str(tmp_path)
    command = [sys.executable, "scripts/gpu.py", "--only", "and", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr[-2000:]
    steps = json.loads((tmp_path / "gpu_rehearsal.json").read_text())["steps"]
    # The first of the steps that were asked for, and none after it.
    assert [step["status"] for step in steps.values()] == ["hung"], steps
    assert "Timeout" in result.stderr
    assert "most recent call first" in result.stderr
