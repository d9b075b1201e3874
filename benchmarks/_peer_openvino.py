"""OpenVINO as a peer."""

from typing import Any

from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks._peer import Peer, PeerTask, version_of

__all__ = ["open_openvino"]


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
