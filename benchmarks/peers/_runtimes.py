"""ONNX Runtime and OpenVINO as peers: the same graph in another runtime."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks.peers._protocol import Peer, PeerTask

__all__ = ["in_openvino", "open_onnxruntime", "open_openvino"]

PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")


def open_onnxruntime(task: PeerTask) -> Peer:
    """Open the fp32 graph with nothing of this package around it: CUDA where it is present, else the processor.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    ort = require("onnxruntime", extra="cpu")
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    # As the artefacts are opened: threads that spin after their batch slow whatever takes the next turn.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if task.threads is not None:
        settings.intra_op_num_threads = task.threads
    available = ort.get_available_providers()
    session = ort.InferenceSession(
        str(task.graph), settings, providers=[name for name in PREFERRED if name in available]
    )
    feeds, output = {session.get_inputs()[0].name: task.batch}, session.get_outputs()[0].name
    held = contextlib.ExitStack()
    held.callback(lambda: feeds.clear())

    def run() -> object:
        return session.run([output], feeds)[0]

    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return Peer(
        name="onnxruntime",
        provider=f"ONNX Runtime, {provider}, fp32",
        version=str(ort.__version__),
        run=run,
        difference=task.difference(session.run([output], feeds)[0]),
        close=held.close,
    )


def open_openvino(task: PeerTask) -> Peer:
    """Compile the fp32 graph for the processor at the batch's own shape, in fp32, for the least latency.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    ov = require("openvino", extra="peers")
    held = {"run": in_openvino(task.graph, task.batch, task.threads)}
    return Peer(
        name="openvino",
        provider="OpenVINO, CPU, fp32",
        version=str(ov.__version__),
        run=lambda: held["run"](),
        difference=task.difference(held["run"]()),
        close=held.clear,
    )


def in_openvino(graph: Path, batch: npt.NDArray[np.float32], threads: int | None) -> Callable[[], Any]:
    """Return what runs a batch ``(N, C, H, W)`` through a graph in OpenVINO, on the processor, to a batch.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    core = require("openvino", extra="peers").Core()
    model = core.read_model(str(graph))
    # Fixed shapes, which OpenVINO plans its memory for.
    model.reshape({model.inputs[0].get_any_name(): list(batch.shape)})
    # Else it computes in bf16 where the processor can, and another net would be measured.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer({0: batch}, share_inputs=True, share_outputs=True)[0]
