"""ONNX Runtime as a session: providers, memory of the caller's, slots, and what its errors mean."""

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from esrgan_deploy import DeviceLostError, InferenceError, OutOfMemoryError
from esrgan_deploy.runtime import SessionOptions, open_session
from esrgan_deploy.runtime.device import fault_of
from esrgan_deploy.runtime.sessions.onnx._session import on_cuda, provider_settings

GPU_BUILD = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def test_providers_are_named_in_short_and_get_the_device():
    """With two GPUs everything would run on the first."""
    (tensorrt, cuda, cpu) = provider_settings(GPU_BUILD, ("tensorrt", "CUDA", "cpu"), device=1)
    assert tensorrt == ("TensorrtExecutionProvider", {"device_id": "1"})
    assert cuda[0] == "CUDAExecutionProvider"
    assert (cuda[1]["device_id"], cuda[1]["use_tf32"]) == ("1", "0")
    assert cpu == ("CPUExecutionProvider", {})
    assert [on_cuda(name) for name, _ in (tensorrt, cuda, cpu)] == [True, True, False]


def test_cuda_comes_first_where_nothing_is_asked_for():
    """TensorRT builds for minutes; it has to be asked for."""
    assert [name for name, _ in provider_settings(GPU_BUILD, None, device=0)] == GPU_BUILD[1:]
    assert provider_settings(["CPUExecutionProvider"], None, device=0) == [("CPUExecutionProvider", {})]
    with pytest.raises(InferenceError, match="no provider 'openvino', only cpu, cuda, tensorrt"):
        provider_settings(GPU_BUILD, ("openvino",), device=0)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        # microsoft/onnxruntime issues 22702, 16307, 16512, 20038; bfc_arena.cc with gpu_mem_limit.
        (
            "bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 8",
            "oom",
        ),
        ("Available memory of 1048576 is smaller than requested bytes of 33554432", "oom"),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_);", "oom"),
        ("CUDNN failure 4000: CUDNN_STATUS_ALLOC_FAILED ; GPU=0", "oom"),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size);", "oom"),
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc", "oom"),
        ("Status Message: bad allocation", "oom"),
        ("Cuda Error in allocate: 2 (out of memory)", "oom"),
        # PyTorch: c10/cuda/CUDACachingAllocator.cpp, c10/core/impl/alloc_cpu.cpp; numpy.
        ("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.1 GiB", "oom"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes.", "oom"),
        ("Unable to allocate 3.64 TiB for an array with shape (1000000000000,) and data type int32", "oom"),
        # microsoft/onnxruntime issues 26312, 2963, 14211; PyTorch's c10/cuda/CUDAException.cpp.
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; line=63 ; expr=cuda", "lost"),
        ("CUDA failure 77: an illegal memory access was encountered ; GPU=0", "lost"),
        ("CUDA failure 999: unknown error ; GPU=192915439 ; expr=cudaSetDevice(info_.device_id);", "lost"),
        ("CUDA failure 719: unspecified launch failure ; GPU=0", "lost"),
        ("CUDA failure 214: uncorrectable ECC error encountered ; GPU=1", "lost"),
        ("CUDA failure 46: all CUDA-capable devices are busy or unavailable ; GPU=0", "lost"),
        (
            "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
            "lost",
        ),
        ("CUDA error: the launch timed out and was terminated", "lost"),
        ("CUDA error: unknown error", "lost"),
        ("CUDA failure 700: an illegal memory access; later: out of memory", "lost"),
        # What a smaller tile does not mend, nor another device.
        ("Non-zero status code returned while running Conv node. Invalid input shape: {5,5}", "other"),
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=0", "other"),
        ("CUDA failure 7001: not a status", "other"),
        ("CUDA failure 1: invalid argument ; GPU=0", "other"),
    ],
)
def test_a_text_is_known_for_what_it_means(text, kind):
    """A missed one ends the film; one too many drains a sound device."""
    expected = {"oom": OutOfMemoryError, "lost": DeviceLostError, "other": InferenceError}
    assert fault_of(text) is expected[kind]


def test_running_out_of_memory_is_told_apart(make, graphs):
    """The Upscaler takes a smaller tile on this error, and on this error only; here the memory is really short."""
    path = make("convolved")
    code = f"""
import resource, psutil, numpy as np
from esrgan_deploy.runtime import open_session
from esrgan_deploy import OutOfMemoryError
session = open_session({str(path)!r})
batch, out = np.zeros((1, 3, 3000, 3000), np.float32), np.zeros((1, 3, 6000, 6000), np.float32)
small = session.run(batch[:, :, :8, :8].copy())
slot = session.slot()
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
for attempt in (
    lambda: session.run(batch),
    lambda: session.run_on_device(batch, out=out),
    lambda: slot.prepare((1, 90000, 90000)),
):
    try:
        attempt()
    except OutOfMemoryError as error:
        assert "smaller tile" in str(error) and "\\n" not in str(error), error
    else:
        raise SystemExit("it fitted")
assert (session.run(batch[:, :, :8, :8].copy()) == small).all()
print("told apart")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "told apart", result.stderr


@pytest.mark.parametrize("form", ["float", "uint8"])
def test_the_callers_memory_is_read_and_written(make, noise, form):
    """A copy on the way would be a copy per frame, and an `out` that stays empty."""
    session = open_session(make("convolved", io={"form": form}))
    batch = noise(2, 8, 10, 3) if form == "uint8" else noise(2, 3, 8, 10, dtype=np.float32)
    expected = session.run(batch).copy()
    out = np.zeros_like(expected)
    address = out.ctypes.data
    assert session.run_on_device(batch, out=out) is out
    assert out.ctypes.data == address
    np.testing.assert_array_equal(out, expected)
    made = session.run_on_device(batch)
    assert isinstance(made, np.ndarray)
    np.testing.assert_array_equal(made, expected)


def test_tensors_of_pytorch_go_in_and_come_out(make, noise):
    """By DLPack, at any offset into their storage."""
    session = open_session(make("convolved"))
    whole = torch.from_numpy(noise(3, 3, 8, 10, dtype=np.float32))
    out = torch.zeros(3, 3, 16, 20)
    assert session.run_on_device(whole[1:2], out=out[2:]) is not None
    np.testing.assert_array_equal(out[2:].numpy(), session.run(whole[1:2].numpy()))
    assert not out[:2].any()


def test_a_view_into_a_memory_map_is_an_out(make, noise, tmp_path):
    """Frames go straight into the file."""
    session = open_session(make("nearest", scale=2, io={"form": "uint8"}))
    film = np.memmap(tmp_path / "film.raw", np.uint8, "w+", shape=(4, 16, 12, 3))
    frames = noise(4, 8, 6, 3)
    for number in range(4):
        session.run_on_device(frames[number : number + 1], out=film[number : number + 1])
    film.flush()
    read = np.fromfile(tmp_path / "film.raw", np.uint8).reshape(film.shape)
    np.testing.assert_array_equal(read, frames.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize(
    ("array", "options", "says"),
    [
        (np.zeros((1, 3, 8, 8)), {}, "is float64; .* takes float32"),
        (np.zeros((1, 4, 8, 8), np.float32), {}, "4 channels"),
        (np.zeros((3, 8, 8), np.float32), {}, r"\(3, 8, 8\)"),
        (np.zeros((1, 3, 6, 8), np.float32), {}, "6 rows.*multiples of 4"),
        (np.zeros((1, 3, 8, 16), np.float32)[..., ::2], {}, "not C-contiguous"),
        (np.zeros((1, 3, 8, 8), np.float32), {"stream": 7}, "there are no streams"),
        (
            np.zeros((1, 3, 8, 8), np.float32),
            {"out": np.zeros((1, 3, 8, 8), np.float32)},
            "out has the shape",
        ),
        (np.zeros((1, 3, 8, 8), np.float32), {"out": np.zeros((1, 3, 16, 16))}, "out is float64"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_runs(make, array, options, says):
    """ONNX Runtime reads whatever lies at the address that it is given."""
    session = open_session(make("unshuffled", factor=4))
    with pytest.raises(InferenceError, match=says) as caught:
        session.run_on_device(array, **options)
    assert "\n" not in str(caught.value)


def test_an_out_that_overlaps_the_batch_is_refused(make):
    """At x1 it is tempting to write over the input, which the net still reads."""
    session = open_session(make("nearest", scale=1))
    batch = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(InferenceError, match="overlaps"):
        session.run_on_device(batch, out=batch)


def test_a_graph_whose_metadata_lies_fails_in_one_line(make):
    """It says x4 and makes x2: the result must not be read from half-written memory."""
    import json

    spec = {"scale": 4, "in_channels": 3, "out_channels": 3}
    told = json.dumps({"precision": "fp32", "outscale": 4.0, "size_multiple": 1, "spec": spec})
    session = open_session(make("nearest", scale=2, io={"metadata": told}))
    assert session.info.scale == Fraction(4)
    with pytest.raises(InferenceError, match=r"model\.onnx failed on a batch of 1x3x8x8") as caught:
        session.run_on_device(np.zeros((1, 3, 8, 8), np.float32))
    assert "\n" not in str(caught.value)


def test_fp16_graphs_take_and_give_fp16(make, noise):
    """The processor computes them in its own way; the dtypes at both ends stay."""
    session = open_session(make("nearest", scale=2, io={"dtype": "fp16"}))
    batch = noise(1, 3, 4, 5, dtype=np.float32).astype(np.float16)
    made = session.run_on_device(batch)
    assert isinstance(made, np.ndarray)
    assert made.dtype == np.float16
    np.testing.assert_array_equal(made, batch.repeat(2, 2).repeat(2, 3))


def test_slots_work_side_by_side(make, noise):
    """Each has its own buffers: what one thread fills must not reach another's picture."""
    session = open_session(make("convolved"))
    pictures = [noise(1, 3, 12, 14, dtype=np.float32, seed=seed) for seed in range(8)]
    expected = [session.run(picture).copy() for picture in pictures]

    def work(number: int) -> None:
        slot = session.slot()
        for turn in range(20):
            which = (number + turn) % len(pictures)
            slot.prepare((1, 12, 14))[:] = pictures[which]
            slot.start()
            np.testing.assert_array_equal(slot.finish().batch, expected[which])
        slot.close()
        slot.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


def test_a_slot_refuses_a_size_that_the_graph_does_not_take(make):
    """ONNX Runtime would say so only after the batch was filled, and in words of its own."""
    slot = open_session(make("nearest", scale=2, io={"size": (1, 48, 32)})).slot()
    slot.prepare((1, 48, 32))
    with pytest.raises(InferenceError, match=r"40 rows.*takes 48"):
        slot.prepare((1, 40, 32))
    with pytest.raises(InferenceError, match="before it was prepared"):
        slot.start()


def test_a_closed_session_says_so_everywhere(make):
    """It may be closed by another thread."""
    session = open_session(make("nearest"))
    batch = np.zeros((1, 3, 8, 8), np.float32)
    slot = session.slot()
    slot.prepare((1, 8, 8))
    session.close()
    session.close()
    for attempt in (
        session.slot,
        lambda: session.run_on_device(batch),
        lambda: session.run(batch),
        slot.start,
    ):
        with pytest.raises(InferenceError, match="closed"):
            attempt()


def test_a_second_device_is_not_the_processor(make):
    """The ordinal is for CUDA; on the processor it means nothing and the session says -1."""
    assert open_session(make("nearest"), SessionOptions(device=3, providers=("cpu",))).info.device == -1


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.usefixtures("counted_gpu")
def test_the_libraries_of_cuda_are_loaded_first_and_a_fall_back_to_the_processor_is_said(
    monkeypatch, capsys, rig, make
):
    """Without a system-wide CUDA the provider does not start, and all is a hundred times as slow, in silence."""
    rig()
    loaded: list[bool] = []

    def preload() -> None:
        loaded.append(True)
        print("Failed to load libcudnn.so.9")

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    with pytest.warns(
        RuntimeWarning, match=r"runs on the processor beside a GPU: it could not start CUDA.*-deploy\[cuda\]"
    ):
        session = open_session(make("nearest"))
    session.close()
    assert loaded == [True]
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("counted_gpu")
def test_the_build_for_the_processor_beside_a_gpu_is_said_once(monkeypatch, make):
    """`pip install onnxruntime` is what comes first to mind, and leaves the GPU idle in silence."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for name in ("one.onnx", "two.onnx"):
            open_session(make("nearest", name=name)).close()
    assert [str(one.message) for one in said] == [
        "ONNX Runtime runs on the processor beside a GPU: it was built without CUDA. Run: "
        "pip uninstall -y onnxruntime, then pip install 'esrgan-deploy[cuda]'; or choose the provider cpu"
    ]
    # Whoever chose it, or hid the GPU, knows.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_session(make("nearest"), SessionOptions(providers=("cpu",))).close()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        open_session(make("nearest")).close()


@pytest.mark.usefixtures("counted_gpu")
def test_on_a_gpu_the_libraries_come_before_the_session_which_says_the_card(monkeypatch, rig, make):
    """Loaded after it they are no help, and among mixed cards CUDA's number 0 is not the one of nvidia-smi."""
    rig()
    order: list[str] = []
    real = onnxruntime.InferenceSession

    class OnCuda:
        def __init__(self, path: str, settings: Any, **_: Any) -> None:
            order.append("session")
            self.graph = real(path, settings, providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.graph, name)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: order.append("libraries"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCuda)
    session = open_session(make("nearest"))
    session.close()
    # Twice: nobody describes this graph, and it is measured before it is opened on a stream.
    assert order == ["libraries", "session"] * 2
    assert session.info.provider.endswith(", CUDA, cuda:0 (Simulated GPU, 0000:1B:00.0)")
