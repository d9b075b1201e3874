"""ONNX Runtime as a session."""

import contextlib
import dataclasses
import io
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError, MissingDependencyError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime.device import (
    borrow_array,
    cuda_device_count,
    fault_of,
    gpu_is_there,
    gpu_label,
    stream_handle,
)
from esrgan_deploy.runtime.sessions._checks import (
    check_batch,
    check_output,
    converted_on_host,
    host_arrays,
    output_shape,
)
from esrgan_deploy.runtime.sessions._host_slot import HostSlot
from esrgan_deploy.runtime.sessions._protocol import (
    SLOTS_ON_GPU,
    BatchOutput,
    SessionInfo,
    SessionOptions,
    Slot,
)
from esrgan_deploy.runtime.sessions.onnx._adapter import AdaptedGraph, Ends, measured_ends
from esrgan_deploy.runtime.sessions.onnx._cuda import (
    OrtCuda,
    OrtCudaSlot,
    bound,
    element_type,
    failure_of,
    reason_of,
    run_bound,
)
from esrgan_deploy.runtime.sessions.onnx._facts import facts_of_graph
from esrgan_deploy.runtime.sessions.onnx._file import describes_itself, missing_data
from esrgan_deploy.runtime.sessions.onnx._parts import OnnxParts, open_parts, parts_beside

__all__ = ["OnnxSession", "on_cuda", "provider_settings"]


CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PREFERRED = (CUDA, CPU)
# These take the address of an NVIDIA device's memory and an ordinal.
ON_CUDA = (CUDA, TENSORRT, "NvTensorRTRTXExecutionProvider")

# https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html. Nothing here was timed on a GPU.
CUDA_OPTIONS = {
    # The default searches exhaustively for each convolution and each new shape, which takes seconds; the pictures of
    # a folder all differ.
    "cudnn_conv_algo_search": "HEURISTIC",
    # An fp32 graph computes in fp32: what it is verified against does. cuDNN's own graphs may use TF32 all the same
    # (ONNX Runtime's pull request 19470), which only NVIDIA_TF32_OVERRIDE=0 in the environment forbids.
    "use_tf32": "0",
    # By default the arena doubles with each request, and the last doubling is what does not fit.
    "arena_extend_strategy": "kSameAsRequested",
}


def provider_settings(
    available: Sequence[str], wanted: Sequence[str] | None, *, device: int
) -> list[tuple[str, dict[str, str]]]:
    """Return the providers to open a graph with, and their options.

    Args:
        available: What this ONNX Runtime was built with, by full name.
        wanted: In order of preference, by full name or in short (``"cpu"``, ``"cuda"``, ``"tensorrt"``,
            ``"openvino"``); None for CUDA where it is present, and the CPU.
        device: Ordinal of the CUDA device.

    Raises:
        InferenceError: One is not available.
    """
    names = [name for name in PREFERRED if name in available] if wanted is None else _full(available, wanted)
    return [(name, _options(name, device)) for name in names]


def on_cuda(provider: str) -> bool:
    """Return whether a provider computes on a CUDA device."""
    return provider in ON_CUDA


def _full(available: Sequence[str], wanted: Sequence[str]) -> list[str]:
    by_name = {name.removesuffix("ExecutionProvider").lower(): name for name in available}
    chosen = []
    for name in wanted:
        key = name.removesuffix("ExecutionProvider").lower()
        if key not in by_name:
            raise InferenceError(
                f"this ONNX Runtime has no provider {name!r}, only {', '.join(sorted(by_name))}; "
                "CUDA comes with: pip uninstall onnxruntime, then pip install 'esrgan-deploy[cuda]'"
            )
        chosen.append(by_name[key])
    return chosen


def _options(name: str, device: int) -> dict[str, str]:
    if name not in ON_CUDA:
        return {}
    options = {"device_id": str(device)}
    return options | CUDA_OPTIONS if name == CUDA else options


class OnnxSession:
    """An ``.onnx`` graph in ONNX Runtime, in either I/O form; see `Session` for the protocol.

    On the processor `run_on_device` takes arrays in ordinary memory (numpy, or a tensor of PyTorch), and returns when
    the result is there.

    Args:
        path: The graph.
        options: How to open it.
        note: What `SessionInfo.provider` ends with.

    Raises:
        InferenceError: The file is no graph that this runtime can run, or a provider is not available.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, options: SessionOptions | None = None, *, note: str = "") -> None:
        options = options or SessionOptions()
        ort = require("onnxruntime", extra="cpu")
        wanted = provider_settings(ort.get_available_providers(), options.providers, device=options.device)
        self._name, self._path, self._options = path.name, path, options
        self._turn, self._opening = threading.Lock(), threading.Lock()
        self._parts: OnnxParts | None = None
        self._graph: Any = None
        self._cuda: OrtCuda | None = None
        try:
            graph, ends = _look(ort, path, options, wanted)
            if ends is None or ends.plain:
                # Not before: what was opened on a stream must not outlive it.
                self._cuda = _cuda_for(wanted, options.device)
                if graph is None or (self._cuda is not None and on_cuda(graph.get_providers()[0])):
                    # Let go of the one that was measured: there may not be room for both.
                    graph = None
                    graph = _opened(ort, path, options, wanted)
                self._graph = graph
            else:
                self._graph = AdaptedGraph(graph, ends)
            self._input = self._graph.get_inputs()[0].name
            active = self._graph.get_providers()
            if not on_cuda(active[0]):
                self._close_cuda()
            self._dtype = element_type(self._graph.get_outputs()[0])
            provider = f"ONNX Runtime {ort.__version__}, {active[0].removesuffix('ExecutionProvider')}"
            if on_cuda(active[0]):
                provider += f", {gpu_label(options.device)}"
            if ends is not None:
                provider += "" if ends.plain else f", its own form {ends}"
                provider += f"; {ends.doubt}" if ends.doubt else ""
            provider += note
            facts = facts_of_graph(path, self._graph, lambda batch: self._run(batch).batch, provider=provider)
            if ends is not None and ends.failure:
                raise InferenceError(
                    f"{path} ran on no grey picture ({ends.failure}), so that its range stays open; say it: "
                    "--range 1 or 255, and --layout NCHW or NHWC"
                )
            device = options.device if on_cuda(active[0]) else -1
            slots = SLOTS_ON_GPU if device >= 0 else facts.slots
            found = parts_beside(path) if active[0] == CPU and ends is None else None
            self._info = dataclasses.replace(
                facts, device=device, slots=slots, parts=None if found is None else found[2]
            )
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> SessionInfo:
        """What the session takes and gives."""
        return self._info

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Enlarge one batch; see `Session.run`."""
        with self._turn:
            return self._make(batch).batch

    def slot(self) -> Slot:
        """Return a new slot; see `Session.slot`."""
        graph = self._open_graph()
        if self._cuda is not None:
            return OrtCudaSlot(self._cuda, graph, self._info, dtype=self._dtype, turn=self._turn)
        return HostSlot(self._info, self._make, self._turn, self._open_parts)

    def run_on_device(
        self, array: object, *, stream: object | None = None, out: object | None = None
    ) -> object:
        """See `Session.run_on_device`.

        Raises:
            InferenceError: The array does not fit or cannot stay where it is, there are no streams, or it failed.
        """  # noqa: DOC501  what failure_of returns
        graph = self._open_graph()
        if isinstance(graph, AdaptedGraph):
            raise converted_on_host(self._name)
        if self._cuda is not None:
            return self._enqueue(graph, self._cuda, array, stream, out)
        if self._info.device >= 0:
            raise InferenceError(
                f"{self._name} is on cuda:{self._info.device} and cuda-bindings, which orders the streams, is not "
                "installed. Run: pip install 'esrgan-deploy[cuda]'"
            )
        batch, target, made = host_arrays(self._info, array, out, dtype=self._dtype, stream=stream)
        outputs = [target]
        if self._info.watched:
            outputs.append(borrow_array(np.empty((batch.shape[0], 3), np.float32)))
        with self._turn:
            try:
                run_bound(graph, bound(graph, batch, outputs), wait=True)
            except Exception as error:
                raise failure_of(error, self._name, batch.shape) from error
        return made

    def close(self) -> None:
        """Release the graph; a second call does nothing."""
        self._graph = self._parts = None
        self._close_cuda()

    def _enqueue(
        self, graph: Any, cuda: OrtCuda, array: object, stream: object | None, out: object | None
    ) -> object:
        # ONNX Runtime never waits for the device as a whole, so that the default stream does no harm here; DLPack
        # and the array interface call it 1.
        handle = cuda.stream.handle if stream is None else stream_handle(stream, allow_default=True) or 1
        owner = cuda.stream if stream is None else stream
        with cuda.device.bound():
            batch = borrow_array(array, stream=handle)
            nhw = check_batch(batch, self._info)
            if out is not None:
                target = borrow_array(out, stream=handle)
                check_output(target, self._info, nhw, dtype=self._dtype, batch=batch)
            if stream is None:
                # Whatever fills the batch may do so on a stream that is not known here.
                cuda.device.synchronize()
            made = out
            if made is None:
                made = cuda.new_array(output_shape(self._info, nhw), self._dtype, handle, owner=owner)
                target = borrow_array(made)
            outputs = [target]
            if self._info.watched:
                # Nothing looks at it here, and it is freed in the stream's order.
                outputs.append(borrow_array(cuda.new_array((nhw[0], 3), "float32", handle, owner=owner)))
            cuda.enqueue(graph, batch, tuple(outputs), name=self._name, turn=self._turn, stream=handle)
            if stream is None:
                cuda.stream.synchronize()
        return made

    def _make(self, batch: npt.NDArray[Any]) -> BatchOutput:
        try:
            return self._run(batch)
        except InferenceError:
            raise
        except Exception as error:
            raise failure_of(error, self._name, batch.shape) from error

    def _run(self, batch: npt.NDArray[Any]) -> BatchOutput:
        graph = self._open_graph()
        return BatchOutput(*map(np.asarray, graph.run(None, {self._input: batch})))

    def _open_parts(self) -> OnnxParts:
        # When a picture needs them, and once.
        self._open_graph()
        with self._opening:
            if self._parts is None:
                ort, how = require("onnxruntime", extra="cpu"), self._options

                def open_part(part: Path, _: str) -> Any:
                    return _opened(ort, part, how, [(CPU, {})])

                self._parts = open_parts(self._path, open_part, turn=self._turn, kind=OnnxParts)
            return self._parts

    def _open_graph(self) -> Any:
        graph = self._graph
        if graph is None:
            raise InferenceError(f"the session of {self._name} is closed; open it again")
        return graph

    def _close_cuda(self) -> None:
        cuda, self._cuda = self._cuda, None
        if cuda is not None:
            cuda.close()


def _look(
    ort: Any, path: Path, options: SessionOptions, wanted: list[tuple[str, dict[str, str]]]
) -> tuple[Any, Ends | None]:
    """Open a graph that others made and find out what it takes and gives; no graph where it says so itself.

    Raises:
        InferenceError: The graph says itself what it takes, and options say it too.
    """
    if not describes_itself(path):
        graph = _opened(ort, path, options, wanted)
        return graph, measured_ends(graph, path, options)
    if options.describes:
        raise InferenceError(
            f"{path} was made by esrgan-export and says itself what it takes and gives; "
            "leave range, layout and output_name out"
        )
    return None, None


def _opened(ort: Any, path: Path, options: SessionOptions, wanted: list[tuple[str, dict[str, str]]]) -> Any:
    settings = ort.SessionOptions()
    # What goes wrong is raised and translated below; ONNX Runtime would print it as well.
    settings.log_severity_level = 4
    # The pattern of a first run is laid out as one block beside what that run took: for a tile of 256 in an RRDB with
    # 32 features 950 MiB instead of 590, and no faster.
    settings.enable_mem_pattern = False
    if not options.spin:
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    names = [name for name, _ in wanted]
    if on_cuda(names[0]) and hasattr(ort, "preload_dlls"):
        # cuBLAS, cudart and cuDNN of the packages that the extra `cuda` installs: nothing else loads them where
        # PyTorch does not. It prints what it does not find.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    try:
        graph = ort.InferenceSession(str(path), settings, providers=wanted)
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error):
            raise InferenceError(
                f"{', '.join(names)} has no kernel for a part of {path} ({reason_of(error)}); bf16 graphs have "
                "none on a processor. Use the fp32 or fp16 graph beside it"
            ) from error
        missing = missing_data(path)
        if missing:
            raise InferenceError(
                f"{path} keeps its weights in {path.parent / missing}, which is not there; put it beside the graph"
            ) from error
        kind = fault_of(str(error))
        advice = "If the file is cut off or is no ONNX graph, run: esrgan-export again"
        if kind is not InferenceError:
            advice = "Run: nvidia-smi to see who holds the GPU"
        raise kind(f"ONNX Runtime cannot open {path} ({reason_of(error)}). {advice}") from error
    active = graph.get_providers()
    if options.providers is not None and names[0] not in active:
        raise InferenceError(
            f"ONNX Runtime could not start {names[0]}, only {', '.join(active)}; "
            "check the driver, or use provider cpu"
        )
    idle = _why_idle(names[0]) if options.providers is None and not on_cuda(active[0]) else ""
    if idle:
        # Without the file's name: Python says the same warning of a place once.
        warnings.warn(
            f"ONNX Runtime runs on the processor beside a GPU: {idle}", RuntimeWarning, stacklevel=4
        )
    return graph


def _why_idle(provider: str) -> str:
    if on_cuda(provider):
        brings = "Run: pip install 'esrgan-deploy[cuda]', which brings cuBLAS and cuDNN"
        return f"it could not start {provider}. {brings}" if cuda_device_count() else ""
    if not gpu_is_there():
        return ""
    # Both packages unpack into one folder.
    return (
        "it was built without CUDA. Run: pip uninstall -y onnxruntime, then pip install 'esrgan-deploy[cuda]'; "
        "or choose the provider cpu"
    )


def _cuda_for(wanted: list[tuple[str, dict[str, str]]], device: int) -> OrtCuda | None:
    """Make the stream that the providers on the device compute on, and write it into their options."""
    if not on_cuda(wanted[0][0]) or cuda_device_count() == 0:
        return None
    try:
        cuda = OrtCuda(device)
    except MissingDependencyError:
        # Without cuda-bindings there is no stream to be had: ONNX Runtime copies and waits by itself.
        return None
    for name, settings in wanted:
        if on_cuda(name):
            settings["user_compute_stream"] = str(cuda.stream.handle)
    return cuda
