"""Arrays and streams of other libraries: no copy, no waiting, and what does not fit is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esrgan_deploy import InferenceError, Upscaler

ROOT = Path(__file__).resolve().parents[2]


def test_a_tensor_on_the_callers_stream(opened, picture, batch_for, backend, case):
    """Written on that stream just before and read on it just after, with no synchronisation between."""
    session = opened(backend, *case)
    batch = batch_for(session, picture(64, 80))
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
    difference = np.abs(made.cpu().numpy().astype(np.float32) - expected).max()
    assert difference <= (1 if batch.dtype == torch.uint8 else 0.01)


def test_out_is_filled_where_it_lies(opened, picture, batch_for, backend, case):
    """A ring of buffers that an encoder reads from."""
    session = opened(backend, *case)
    batch = batch_for(session, picture(32, 48))
    expected = torch.from_numpy(session.run(batch.cpu().numpy()).copy())
    out = torch.empty(expected.shape, dtype=expected.dtype, device=batch.device)
    stream = torch.cuda.Stream() if torch.cuda.is_available() else None
    with Upscaler(session) as up:
        made = up.run(batch, stream=stream, out=out)
    if stream is not None:
        stream.synchronize()
    assert made is out
    assert (out.cpu().float() - expected.float()).abs().max() <= (1 if batch.dtype == torch.uint8 else 0.01)


def test_what_does_not_fit_is_refused(opened, picture, batch_for, backend, case):
    """A wrong stride read as a picture is garbage, or the end of the process."""
    session = opened(backend, *case)
    batch = batch_for(session, picture(32, 32))
    bad: list[Any] = [batch.to(torch.float64), batch[:, :, ::2], batch[0], object()]
    if backend in ("tensorrt", "tensorrt-rtx"):
        bad.append(batch_for(session, picture(300, 300)))
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
