"""A bare ONNX Runtime session as a peer."""

import contextlib

from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks._peer import Peer, PeerTask, version_of

__all__ = ["open_onnxruntime"]

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
