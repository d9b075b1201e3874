"""ONNX Runtime's device side on a simulated driver: which stream waits for which, and where the bytes go.

The graph is run by ONNX Runtime itself, on the processor, when the simulated stream gets to it. What a real device
does is not shown.
"""

import dataclasses
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from esrgan_deploy import DeviceLostError, InferenceError, OutOfMemoryError
from esrgan_deploy.export.graphs import save, watch
from esrgan_deploy.runtime import SessionOptions
from esrgan_deploy.runtime.device import _driver as _cuda
from esrgan_deploy.runtime.sessions.onnx import OnnxSession
from esrgan_deploy.runtime.sessions.onnx._cuda import OrtCuda


class OnStream:
    """A graph that runs when its stream gets there, on memory that it is told lies on the device."""

    def __init__(self, graph: Any, driver: Any, stream: int) -> None:
        self.graph, self.driver, self.stream = graph, driver, stream
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)

    def io_binding(self) -> Any:
        real = self.graph.io_binding()
        places: list[tuple[int, int]] = []

        def on_cpu(bind: Callable[..., None]) -> Callable[..., None]:
            def checked(name: str, where: str, device: int, dtype: Any, shape: Any, pointer: int) -> None:
                assert (where, device) == ("cuda", 0)
                places.append((pointer, int(np.prod(shape)) * np.dtype(dtype).itemsize))
                self.driver.array(*places[-1])
                bind(name, "cpu", 0, dtype, shape, pointer)

            return checked

        return SimpleNamespace(
            bind_input=on_cpu(real.bind_input), bind_output=on_cpu(real.bind_output), real=real, places=places
        )

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"

        def run() -> None:
            for place in binding.places:
                self.driver.array(*place)
            self.graph.run_with_iobinding(binding.real)

        # What fails may have enqueued a part.
        self.driver.streams[self.stream].push(run)
        if self.failure is not None:
            raise self.failure


@pytest.fixture(scope="module")
def driver(drivers: ModuleType) -> Any:
    """The simulated driver, with events that are more than it gives them."""

    class Driver(drivers.FakeDriver):
        """Events that are points of their stream: here two streams wait for each other, back and forth."""

        def cuEventRecord(self, event: int, stream: int) -> None:
            reached: list[bool] = []
            self.streams[stream].push(lambda: reached.append(True))
            self.events[event] = (self.streams[stream], reached)

        def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
            point = self.events[event]
            self._stream(stream).push(lambda: self.reach(point))

        def cuEventSynchronize(self, event: int) -> None:
            self.reach(self.events[event])

        @staticmethod
        def reach(point: Any) -> None:
            while not point[1]:
                assert point[0].pending, "a point that never comes"
                point[0].drain(1)

    return Driver


@pytest.fixture
def watched(make: Callable[..., Path]) -> Path:
    """A graph that doubles a picture and says its health."""
    path = make("nearest", scale=2)
    model = ir.load(path)
    watch(model)
    save(model, path)
    return path


@pytest.fixture
def simulated(make: Any, driver: Any, drivers: Any, monkeypatch: Any) -> Iterator[Callable[..., Any]]:
    """An ONNX session on a simulated GPU: ``simulated(memory=…)`` has ``driver``, ``session`` and ``expected``."""

    def build(*, path: Path | None = None, **how: Any) -> Any:
        gpu = driver(**how)
        monkeypatch.setattr(_cuda, "_driver", lambda: gpu)
        path = path or make("convolved")
        session = OnnxSession(path, SessionOptions(providers=("cpu",)))
        reference = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        session._cuda = OrtCuda(0)
        session._graph = OnStream(session._graph, gpu, session._cuda.stream.handle)
        session._info = dataclasses.replace(session._info, device=0)
        return SimpleNamespace(
            driver=gpu,
            session=session,
            graph=session._graph,
            array=lambda *shape, **how: drivers.FakeArray(gpu, shape, np.float32, **how),
            stream=lambda: gpu.make_stream(gpu.primary(0)),
            expected=lambda batch: reference.run(None, {"input": batch})[0],
        )

    yield build
    # What is freed later would be freed in the driver of the next test.
    gc.collect()


def picture(seed: int = 0, *, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 3, height, width), np.float32)


def test_slots_upload_compute_and_download_beside_each_other(simulated):
    """Nothing runs before it is waited for, so a missing order between the three streams gives rubbish."""
    gpu = simulated()
    slots = [gpu.session.slot() for _ in range(3)]
    for round_ in range(3):
        for number, slot in enumerate(slots):
            height = 6 + 2 * (round_ == 2)
            slot.prepare((1, height, 8))[:] = picture(10 * round_ + number, height=height)
            slot.start()
        assert any(stream.pending for stream in gpu.driver.streams.values())
        # In another order than they were begun.
        for number, slot in reversed(list(enumerate(slots))):
            expected = gpu.expected(picture(10 * round_ + number, height=6 + 2 * (round_ == 2)))
            np.testing.assert_array_equal(slot.finish().batch, expected)
    for slot in slots:
        slot.close()
        slot.close()
    gpu.session.close()
    gpu.session.close()
    gpu.driver.cuCtxSynchronize()
    assert gpu.driver.left() == {}


def test_the_same_shape_allocates_nothing_new(simulated):
    """Pinning memory takes longer than a small picture."""
    gpu = simulated()
    slot = gpu.session.slot()
    first = slot.prepare((1, 6, 8))
    with gpu.driver.counted() as calls:
        for _ in range(5):
            assert slot.prepare((1, 6, 8)) is first
            slot.start()
            slot.finish()
    assert not {name for name in calls if "Alloc" in name or "Create" in name or "Free" in name}
    assert (calls["cuMemcpyHtoDAsync"], calls["cuMemcpyDtoHAsync"]) == (5, 5)
    assert not calls["cuStreamSynchronize"] + calls["cuCtxSynchronize"]


def test_work_is_ordered_against_the_callers_stream_without_waiting(simulated):
    """The batch is filled on the caller's stream just before, and the result read on it just after."""
    gpu = simulated()
    batch, out, stream = gpu.array(1, 3, 6, 8), gpu.array(1, 3, 12, 16), gpu.stream()
    gpu.driver.streams[stream].push(lambda: batch.seen.__setitem__(slice(None), picture()))
    with gpu.driver.counted() as calls:
        assert gpu.session.run_on_device(batch, stream=stream, out=out) is out
    assert not {name for name in calls if "Synchronize" in name}
    assert not out.seen.any()
    gpu.driver.streams[stream].drain()
    np.testing.assert_array_equal(out.seen, gpu.expected(picture()))
    made = gpu.session.run_on_device(batch, stream=stream)
    interface = made.__cuda_array_interface__
    assert (interface["shape"], interface["stream"]) == ((1, 3, 12, 16), stream)
    gpu.driver.streams[stream].drain()
    values = np.frombuffer(gpu.driver.array(made.pointer, made.nbytes), np.float32)
    np.testing.assert_array_equal(values.reshape(made.shape), out.seen)


def test_the_stream_that_an_array_names_is_waited_for(simulated):
    """Version 3 of the interface: its owner may still be filling it, on another stream than the caller's."""
    gpu = simulated()
    batch, out, stream = gpu.array(1, 3, 6, 8), gpu.array(1, 3, 12, 16), gpu.stream()
    batch.stream = gpu.stream()
    gpu.driver.streams[batch.stream].push(lambda: batch.seen.__setitem__(slice(None), picture()))
    gpu.session.run_on_device(batch, stream=stream, out=out)
    gpu.driver.streams[stream].drain()
    np.testing.assert_array_equal(out.seen, gpu.expected(picture()))


def test_without_a_stream_the_result_is_there_on_return(simulated):
    """And whatever fills the batch anywhere is waited for first."""
    gpu = simulated()
    batch, out = gpu.array(1, 3, 6, 8), gpu.array(1, 3, 12, 16)
    gpu.driver.streams[gpu.stream()].push(lambda: batch.seen.__setitem__(slice(None), picture()))
    gpu.session.run_on_device(batch, out=out)
    np.testing.assert_array_equal(out.seen, gpu.expected(picture()))


def test_what_does_not_fit_enqueues_nothing(simulated):
    """The caller's stream must be as it was."""
    gpu = simulated()
    stream = gpu.stream()
    good = gpu.array(1, 3, 6, 8)
    for array, out, says in (
        (gpu.array(1, 3, 6, 8, device=1), None, "cuda:1 and .* cuda:0"),
        (picture(), None, "the processor"),
        (gpu.array(1, 4, 6, 8), None, "4 channels"),
        (good, gpu.array(1, 3, 12, 15), "out has the shape"),
        (good, gpu.array(1, 3, 12, 16, device=1), "out lies on cuda:1"),
    ):
        with pytest.raises(InferenceError, match=says):
            gpu.session.run_on_device(array, stream=stream, out=out)
    assert not any(found.pending for found in gpu.driver.streams.values())


def test_the_watchdogs_output_comes_along(simulated, watched):
    """A graph with a second output fails at once if that is bound to nothing."""
    gpu = simulated(path=watched)
    assert gpu.session.info.watched
    slot = gpu.session.slot()
    slot.prepare((2, 6, 8))[:] = 0.25
    slot.start()
    made = slot.finish()
    np.testing.assert_array_equal(made.health, np.array([[0.25, 0, 0]] * 2, np.float32))
    batch, out, stream = gpu.array(2, 3, 6, 8), gpu.array(2, 3, 12, 16), gpu.stream()
    batch.seen[:] = 0.5
    gpu.session.run_on_device(batch, stream=stream, out=out)
    gpu.driver.streams[stream].drain()
    assert (out.seen == 0.5).all()
    gpu.driver.cuCtxSynchronize()


def test_faults_are_told_apart(simulated):
    """A smaller tile answers the one, another device the other."""
    gpu = simulated(memory=100_000)
    slot = gpu.session.slot()
    with pytest.raises(OutOfMemoryError, match="smaller tile"):
        slot.prepare((1, 60, 80))
    before = gpu.driver.used()
    slot.prepare((1, 6, 8))
    assert before == 0
    gpu.graph.failure = RuntimeError("Failed to allocate memory for requested buffer of size 8")
    with pytest.raises(OutOfMemoryError, match="batch of 1x3x6x8") as caught:
        slot.start()
    assert "\n" not in str(caught.value)
    with pytest.raises(OutOfMemoryError):
        gpu.session.run_on_device(gpu.array(1, 3, 6, 8), stream=gpu.stream())
    gpu.graph.failure = RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0")
    with pytest.raises(DeviceLostError):
        slot.start()
    gpu.graph.failure = None
    slot.start()
    gpu.driver.lost = True
    with pytest.raises(DeviceLostError):
        slot.finish()
    slot.close()
    gpu.session.close()


def test_a_context_that_onnx_runtime_would_not_use_is_refused(driver, monkeypatch):
    """It computes in the primary one; memory of PyCUDA's own context would be an illegal address there."""
    gpu = driver()
    monkeypatch.setattr(_cuda, "_driver", lambda: gpu)
    gpu.make_context()
    with pytest.raises(InferenceError, match="autoprimaryctx"):
        OrtCuda(0)
    assert gpu.left() == {}
    gpu.cuCtxSetCurrent(gpu.primary(0))
    OrtCuda(0).close()
    assert gpu.left() == {}


def test_a_result_outlives_the_session_whose_stream_frees_it(simulated):
    """Freed on a stream that was destroyed, the call would go to whoever has its address then."""
    gpu = simulated()
    made = gpu.session.run_on_device(gpu.array(1, 3, 6, 8))
    slot = gpu.session.slot()
    slot.prepare((1, 6, 8))[:] = picture()
    slot.start()
    gpu.session.close()
    np.testing.assert_array_equal(slot.finish().batch, gpu.expected(picture()))
    slot.close()
    gc.collect()
    assert gpu.driver.left() == {"device": 1, "primary": 1, "stream": 1}
    with gpu.driver.counted() as calls:
        del made
    assert (calls["cuMemFreeAsync"], calls["cuStreamDestroy"]) == (1, 1)
    assert gpu.driver.left() == {}


def test_a_stream_of_another_library_is_kept_until_the_memory_is_freed(simulated, watched):
    """Its owner destroys it when he is collected, and he may be gone before what was made on it."""
    gpu = simulated(path=watched)

    class Theirs:
        cuda_stream = gpu.stream()

        def __del__(self) -> None:
            gone.append(gpu.driver.calls.count("cuMemFreeAsync"))

    gone: list[int] = []
    made = gpu.session.run_on_device(gpu.array(1, 3, 6, 8), stream=Theirs())
    assert not gone
    del made
    # The watchdog's as well.
    assert gone == [2]


def test_what_fails_midway_frees_nothing_that_is_written_to(simulated, watched):
    """The computing stream may be behind the caller's, on which the result and the watchdog's output are freed."""
    gpu = simulated(path=watched)
    stream = gpu.stream()
    gpu.graph.failure = RuntimeError("Failed to allocate memory for requested buffer of size 8")
    with pytest.raises(OutOfMemoryError):
        gpu.session.run_on_device(gpu.array(1, 3, 6, 8), stream=stream)
    # It has the frames that it went through.
    gpu.graph.failure = None
    gc.collect()
    gpu.driver.streams[stream].drain()
    gpu.session.close()
    assert gpu.driver.left() == {}


def test_threads_take_turns_on_the_computing_stream(simulated):
    """Two runs enqueued at once would mix their orders."""
    gpu = simulated()

    def work(number: int) -> None:
        slot = gpu.session.slot()
        for turn in range(10):
            slot.prepare((1, 6, 8))[:] = picture(number * 100 + turn)
            slot.start()
            np.testing.assert_array_equal(slot.finish().batch, gpu.expected(picture(number * 100 + turn)))
        slot.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.gpu
def test_on_a_gpu_the_callers_stream_orders_it(make):
    """The real driver, ONNX Runtime's CUDA kernels, and a stream of PyTorch's: nothing waits for the host."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is the build for the processor")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch is the build for the processor")
    path = make("convolved")
    expected = OnnxSession(path, SessionOptions(providers=("cpu",))).run(picture())
    session = OnnxSession(path, SessionOptions(providers=("cuda",)))
    assert (session.info.device, session.info.slots) == (0, 3)
    np.testing.assert_allclose(session.run(picture()), expected, atol=1e-4)
    slots = [session.slot() for _ in range(3)]
    for slot in slots:
        slot.prepare((1, 6, 8))[:] = picture()
        slot.start()
    for slot in slots:
        np.testing.assert_allclose(slot.finish().batch, expected, atol=1e-4)
        slot.close()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        batch = torch.from_numpy(picture()).cuda(non_blocking=True)
        made = torch.from_dlpack(session.run_on_device(batch, stream=stream))
        out = torch.empty_like(made)
        assert session.run_on_device(batch, stream=stream.cuda_stream, out=out) is out
    stream.synchronize()
    np.testing.assert_allclose(made.cpu().numpy(), expected, atol=1e-4)
    assert torch.equal(out, made)
    session.close()
