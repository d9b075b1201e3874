"""ONNX Runtime's CUDA provider with nothing else that brings CUDA's libraries, as in a service without PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
import numpy as np
from esrgan_deploy.runtime import SessionOptions, open_session
session = open_session(sys.argv[1], SessionOptions(providers=(sys.argv[2],)))
reference = open_session(sys.argv[1], SessionOptions(providers=("cpu",)))
batch = np.random.default_rng(0).random((1, 3, 48, 64), np.float32)
print(session.info.device, float(np.abs(session.run(batch) - reference.run(batch)).max()))
assert "torch" not in sys.modules
"""


def test_the_provider_is_active_in_a_process_without_torch(artefact, record):
    """PyTorch loads cuBLAS and cuDNN for everybody, and hides that without it the provider falls back in silence."""
    rehearsal = os.environ.get("ESRGAN_GPU_SUITE") == "rehearse"
    onnxruntime = pytest.importorskip("onnxruntime")
    if not rehearsal and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime was built without the CUDA provider")
    path = artefact("onnxruntime", "fp32", "float")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(path), "cpu" if rehearsal else "cuda"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    device, difference = done.stdout.split()
    record(device=int(device), max_abs=float(difference))
    assert int(device) == (-1 if rehearsal else 0)
    assert float(difference) <= 1e-4
