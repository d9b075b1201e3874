"""Arrays and streams of other libraries: no copy, no waiting, and what does not fit is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esrgan_deploy import InferenceError, Upscaler
from esrgan_deploy.runtime import Session

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime", "pytorch")


def tensor_of(session: Session, lr: np.ndarray) -> torch.Tensor:
    """A batch in the session's form, on its device."""
    device = "cpu" if session.info.device < 0 else f"cuda:{session.info.device}"
    batch = torch.from_numpy(lr[None]).to(device)
    if session.info.form == "uint8":
        return batch
    kind = {"float16": torch.float16, "float32": torch.float32}[session.info.dtype.name]
    return (batch.permute(0, 3, 1, 2).to(torch.float32) / 255).to(kind).contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_on_the_callers_stream(opened, picture, backend):
    """Written on that stream just before and read on it just after, with no synchronisation between."""
    session = opened(backend, "fp16", "float" if backend == "pytorch" else "uint8")
    batch = tensor_of(session, picture(64, 80))
    expected = session.run(batch.cpu().numpy())
    with Upscaler(session) as up:
        if not torch.cuda.is_available():
            made = torch.from_dlpack(up.run(batch))
        else:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                # A long wait first: work that ran beside the stream would see the zeros.
                source = torch.zeros_like(batch)
                torch.cuda._sleep(200_000_000)
                source.copy_(batch)
                made = torch.from_dlpack(up.run(source, stream=stream)).clone()
            stream.synchronize()
    assert np.abs(made.cpu().numpy().astype(np.float32) - expected).max() <= (
        1 if batch.dtype == torch.uint8 else 0.01
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_is_filled_where_it_lies(opened, picture, backend):
    """A ring of buffers that an encoder reads from."""
    session = opened(backend, "fp16", "float" if backend == "pytorch" else "uint8")
    batch = tensor_of(session, picture(32, 48))
    expected = torch.from_numpy(session.run(batch.cpu().numpy()).copy())
    out = torch.empty(expected.shape, dtype=expected.dtype, device=batch.device)
    stream = torch.cuda.Stream() if torch.cuda.is_available() else None
    with Upscaler(session) as up:
        made = up.run(batch, stream=stream, out=out)
    if stream is not None:
        stream.synchronize()
    assert made is out
    assert (out.cpu().float() - expected.float()).abs().max() <= (1 if batch.dtype == torch.uint8 else 0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused(opened, picture, backend):
    """A wrong stride read as a picture is garbage, or the end of the process."""
    session = opened(backend, "fp16", "float" if backend == "pytorch" else "uint8")
    batch = tensor_of(session, picture(32, 32))
    bad: list[Any] = [batch.to(torch.float64), batch[:, :, ::2], batch[0], object()]
    if backend in ("tensorrt", "tensorrt-rtx"):
        bad.append(tensor_of(session, picture(300, 300)))
    if torch.cuda.is_available():
        bad.append(batch.cpu())
    for array in bad:
        with pytest.raises(InferenceError) as caught:
            session.run_on_device(array)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["cupy", "pycuda"])
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_the_example_of_another_library_runs(artefact, opened, backend, library):
    """Word for word, in a process of its own, as a user would."""
    pytest.importorskip(library)
    opened(backend, "fp16", "uint8").close()
    script = ROOT / "docs" / "examples" / f"embed_{library}.py"
    result = subprocess.run(
        [sys.executable, str(script), str(artefact(backend, "fp16", "uint8"))], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
