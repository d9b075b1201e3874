"""ONNX Runtime and OpenVINO as peers: the same graph in another runtime."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks.peers._protocol import Peer, PeerTask
from esrgan_deploy.runtime import SessionOptions, open_session

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
    """Open the fp32 graph as this package opens it in OpenVINO: on the processor, in fp32, for the least latency.

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
    how = SessionOptions(providers=("openvino",), threads=threads)
    slot = open_session(graph, how).slot()
    number, _, height, width = batch.shape

    def run() -> Any:
        # One copy of the input; the output is read where OpenVINO wrote it, as in the other peers.
        np.copyto(slot.prepare((number, height, width)), batch)
        slot.start()
        return slot.finish().batch

    return run
