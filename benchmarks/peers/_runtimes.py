"""ONNX Runtime and OpenVINO as peers: the same graph in another runtime."""

import contextlib
from typing import Any

from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks.peers._protocol import Peer, PeerTask, version_of

__all__ = ["open_onnxruntime", "open_openvino"]


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
        version=version_of("onnxruntime", "onnxruntime-gpu") or str(ort.__version__),
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
    core = ov.Core()
    model = core.read_model(str(task.graph))
    # Fixed shapes, which OpenVINO plans its memory for.
    model.reshape({model.inputs[0].get_any_name(): list(task.batch.shape)})
    # Else it computes in bf16 where the processor can, and another net would be measured.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if task.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = task.threads
    held = {"request": core.compile_model(model, "CPU", settings).create_infer_request()}

    def run() -> Any:
        return held["request"].infer({0: task.batch}, share_inputs=True, share_outputs=True)[0]

    return Peer(
        name="openvino",
        provider="OpenVINO, CPU, fp32",
        version=version_of("openvino"),
        run=run,
        difference=task.difference(run()),
        close=held.clear,
    )
