"""A checkpoint opened by the runtime: PyTorch as a session, the reference."""

import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from esrgan_deploy import CheckpointError, InferenceError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.checkpoints import load_checkpoint
from esrgan_deploy.export.proof import reference_of_module
from esrgan_deploy.export.pytorch._session import TorchSession
from esrgan_deploy.runtime import SessionOptions, open_session

Weights = dict[str, torch.Tensor]
Nets = Callable[..., Path]


@pytest.fixture
def checkpoint(
    rrdb_spec: Callable[..., ModelSpec], rrdb_weights: Callable[..., Weights], tmp_path: Path
) -> Nets:
    """Write a small net: ``checkpoint(scale=2, unshuffle=2)``."""

    def write(name: str = "net.pth", **fields: int) -> Path:
        path = tmp_path / name
        weights = rrdb_weights(rrdb_spec(**fields))
        if path.suffix == ".safetensors":
            save_file(weights, path)
        else:
            torch.save(weights, path)
        return path

    return write


def batch(number: int = 1, height: int = 10, width: int = 12, seed: int = 0) -> np.ndarray:
    """A batch of noise."""
    return np.random.default_rng(seed).random((number, 3, height, width), np.float32)


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.ckpt", "net.safetensors"])
def test_every_kind_of_checkpoint_is_opened_by_the_runtime(checkpoint: Nets, name: str) -> None:
    """The runtime knows the room by its entry point; a suffix that is not registered is refused as no model."""
    info = open_session(checkpoint(name)).info
    assert (info.name, info.form, info.scale, info.precision) == (name, "float", Fraction(4), "fp32")
    assert (info.in_channels, info.out_channels, info.size_multiple, info.device) == (3, 3, 1, -1)
    assert info.provider == f"PyTorch {torch.__version__}, CPU"
    assert info.spec is not None
    assert info.spec.blocks == 2


def test_fp32_is_the_reference_to_the_bit(checkpoint: Nets) -> None:
    """Every figure of parity is measured against it; another order of sums would shift them all."""
    path = checkpoint(scale=2, unshuffle=2)
    session = open_session(path)
    assert session.info.size_multiple == 2
    reference = reference_of_module(load_checkpoint(path).module())
    for number, height, width in ((1, 10, 12), (3, 8, 6)):
        picture = batch(number, height, width)
        expected = reference(picture)
        np.testing.assert_array_equal(session.run(picture), expected)
        slot = session.slot()
        slot.prepare((number, height, width))[:] = picture
        slot.start()
        np.testing.assert_array_equal(slot.finish().batch, expected)
        slot.close()
        np.testing.assert_array_equal(session.run_on_device(picture), expected)


@pytest.mark.parametrize(
    ("precision", "dtype", "step"), [("fp16", np.float16, 2**-10), ("bf16", np.float32, 2**-7)]
)
def test_half_precisions_compute_in_them(checkpoint: Nets, precision: Any, dtype: type, step: float) -> None:
    """They must differ from fp32, and by no more than their rounding makes of a sum this long.

    Tolerance: 16 steps of the format at the largest value; measured is 1.0 of both.
    """
    path = checkpoint()
    session = open_session(path, SessionOptions(precision=precision))
    assert (session.info.dtype, session.info.precision) == (dtype, precision)
    picture = batch()
    made = session.run(picture.astype(dtype))
    assert made.dtype == dtype
    expected = open_session(path).run(picture)
    worst = np.abs(made.astype(np.float32) - expected).max() / (step * np.abs(expected).max())
    assert 0 < worst < 16, worst
    if precision == "bf16":
        # float32 on the outside, and each sample is one that bfloat16 has.
        assert not (made.view(np.uint32) & 0xFFFF).any()


def test_tensors_go_in_and_come_out_where_they_lie(checkpoint: Nets) -> None:
    """What embeds it in a PyTorch program: no numpy between, and `out` is the caller's own memory."""
    session = open_session(checkpoint())
    picture = torch.from_numpy(batch(2))
    made = session.run_on_device(picture)
    assert isinstance(made, torch.Tensor)
    assert not made.is_inference()
    out = torch.zeros(3, 3, 40, 48)
    address = out.data_ptr()
    view = out[1:]
    assert session.run_on_device(picture, out=view) is view
    assert out.data_ptr() == address
    assert torch.equal(out[1:], made)
    assert not out[0].any()
    target = np.zeros((2, 3, 40, 48), np.float32)
    assert session.run_on_device(picture, out=target) is target
    np.testing.assert_array_equal(target, made.numpy())


def test_bfloat16_tensors_are_taken_and_given(checkpoint: Nets) -> None:
    """numpy has none, so the session speaks float32 with it; PyTorch has, and would lose time casting."""
    session = open_session(checkpoint(), SessionOptions(precision="bf16"))
    picture = torch.from_numpy(batch()).bfloat16()
    made = session.run_on_device(picture)
    assert isinstance(made, torch.Tensor)
    assert made.dtype == torch.bfloat16
    np.testing.assert_array_equal(made.float().numpy(), session.run(picture.float().numpy()))
    with pytest.raises(InferenceError, match=r"bfloat16; .* takes float32"):
        open_session(checkpoint()).run_on_device(picture)


@pytest.mark.parametrize(
    ("array", "options", "says"),
    [
        (np.zeros((1, 3, 8, 8)), {}, "is float64; .* takes float32"),
        (np.zeros((1, 3, 8, 7), np.float32), {}, "7 columns.*multiples of 2"),
        (torch.zeros(1, 3, 8, 16)[..., ::2], {}, "not C-contiguous"),
        (torch.zeros(1, 3, 8, 8, requires_grad=True), {}, "gradient"),
        (np.zeros((1, 3, 8, 8), np.float32), {"stream": 7}, "no streams"),
        (np.zeros((1, 3, 8, 8), np.float32), {"out": torch.zeros(1, 3, 8, 8)}, "out has the shape"),
    ],
)
def test_what_does_not_fit_is_refused(
    checkpoint: Nets, array: Any, options: dict[str, Any], says: str
) -> None:
    """PyTorch would broadcast, copy or cast where the other sessions refuse."""
    session = open_session(checkpoint(scale=2, unshuffle=2))
    with pytest.raises(InferenceError, match=says) as caught:
        session.run_on_device(array, **options)
    assert "\n" not in str(caught.value)


def test_a_read_only_picture_is_enlarged(checkpoint: Nets) -> None:
    """PyTorch warns of such arrays, and a warning in a library is an error in somebody's tests."""
    session = open_session(checkpoint())
    picture = batch()
    picture.flags.writeable = False
    np.testing.assert_array_equal(session.run(picture), session.run(picture.copy()))


def test_garbage_is_one_line_with_its_name(tmp_path: Path) -> None:
    """A broken download under the name of a checkpoint."""
    path = tmp_path / "model.pth"
    path.write_bytes(b"PK\x03\x04 nothing more")
    with pytest.raises(CheckpointError, match=r"model\.pth") as caught:
        open_session(path)
    assert "\n" not in str(caught.value)


def test_nets_that_cannot_be_run_are_refused(checkpoint: Nets) -> None:
    """Where fp16 is known to overflow, black pictures would be the answer."""
    import dataclasses

    sound = load_checkpoint(checkpoint())
    fragile = dataclasses.replace(sound, spec=dataclasses.replace(sound.spec, supports_half=False))
    with pytest.raises(InferenceError, match="not known to work in fp16; use fp32"):
        TorchSession(fragile, SessionOptions(precision="fp16"), name="net.pth")
    masked = dataclasses.replace(sound, spec=dataclasses.replace(sound.spec, in_channels=4))
    with pytest.raises(InferenceError, match="3 channels of 4"):
        TorchSession(masked, SessionOptions(), name="net.pth")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_runs_on_the_processor_unless_cuda_was_asked_for(checkpoint: Nets) -> None:
    """Asked for CUDA, hours on a processor are no answer."""
    path = checkpoint()
    assert open_session(path, SessionOptions(device=5)).info.device == -1
    assert open_session(path, SessionOptions(providers=("cpu",))).info.device == -1
    with pytest.raises(InferenceError, match="no CUDA device"):
        open_session(path, SessionOptions(providers=("cuda", "cpu")))


def test_closing_is_final_and_harmless_twice(checkpoint: Nets) -> None:
    """Another thread may close it in the middle of a film."""
    session = open_session(checkpoint())
    slot = session.slot()
    slot.prepare((1, 8, 8))
    session.close()
    session.close()
    for attempt in (
        session.slot,
        slot.start,
        lambda: session.run(batch()),
        lambda: session.run_on_device(batch()),
    ):
        with pytest.raises(InferenceError, match="closed"):
            attempt()


def test_slots_of_several_threads_do_not_mix(checkpoint: Nets) -> None:
    """One net, many batches."""
    session = open_session(checkpoint())
    pictures = [batch(seed=seed) for seed in range(4)]
    expected = [session.run(picture).copy() for picture in pictures]
    wrong: list[int] = []

    def work(number: int) -> None:
        slot = session.slot()
        for turn in range(5):
            which = (number + turn) % len(pictures)
            slot.prepare((1, 10, 12))[:] = pictures[which]
            slot.start()
            if not np.array_equal(slot.finish().batch, expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.slow
def test_memory_that_is_short_is_told_apart(checkpoint: Nets, fork: Any, tmp_path: Path) -> None:
    """The Upscaler takes a smaller tile on this error only; here the memory is really short."""
    path = checkpoint()
    code = f"""
import resource, psutil, numpy as np
from esrgan_deploy.runtime import SessionOptions, open_session
from esrgan_deploy import OutOfMemoryError
session = open_session({str(path)!r}, SessionOptions(threads=1))
session.run(np.zeros((1, 3, 8, 8), np.float32))
large = np.zeros((1, 3, 1000, 1000), np.float32)
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 20 * 2**20,) * 2)
try:
    session.run(large)
except OutOfMemoryError as error:
    assert "batch of 1x3x1000x1000" in str(error) and "\\n" not in str(error), error
    print("told apart")
"""
    (tmp_path / "short.py").write_text(code)
    done = fork(tmp_path / "short.py")
    assert done.wait() == 0, done.stderr
    assert done.stdout.strip() == "told apart"


def test_without_torch_the_error_is_the_command(checkpoint: Nets) -> None:
    """The runtime alone is installed, and somebody gives it a checkpoint."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from esrgan_deploy import MissingDependencyError\n"
        "from esrgan_deploy.runtime import open_session\n"
        f"try: open_session({str(checkpoint())!r})\n"
        "except MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'esrgan-deploy[export]'" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_compiled_net_makes_the_same_picture(checkpoint: Nets) -> None:
    """Compiling reorders sums: the tolerance is 1e-5 of the largest value; measured is 6e-7."""
    path = checkpoint()
    session = open_session(path, SessionOptions(compile=True))
    assert session.info.provider.endswith("compiled")
    picture = batch()
    expected = open_session(path).run(picture)
    made = session.run(picture)
    assert np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.gpu
def test_on_a_gpu_the_callers_stream_orders_it(checkpoint: Nets) -> None:
    """Nothing waits for the host: the result is read after the caller's stream alone was waited for."""
    path = checkpoint()
    session = open_session(path)
    assert session.info.device == 0
    expected = open_session(path, SessionOptions(providers=("cpu",))).run(batch())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        picture = torch.from_numpy(batch()).cuda(non_blocking=True)
        made = session.run_on_device(picture, stream=stream)
    stream.synchronize()
    assert isinstance(made, torch.Tensor)
    np.testing.assert_allclose(made.cpu().numpy(), expected, atol=1e-4)
    out = torch.empty_like(made)
    assert session.run_on_device(picture, stream=stream.cuda_stream, out=out) is out
    stream.synchronize()
    assert torch.equal(out, made)
    slot = session.slot()
    slot.prepare((1, 10, 12))[:] = batch()
    slot.start()
    np.testing.assert_allclose(slot.finish().batch, expected, atol=1e-4)
    slot.close()
    with pytest.raises(InferenceError, match="the processor"):
        session.run_on_device(batch())
