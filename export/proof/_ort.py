"""Graphs in ONNX Runtime, as what verifies runs them, and what of them overflows fp16."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import ExportError
from esrgan_deploy._optional import require
from esrgan_deploy.export.graphs import append, clone, to_bytes

__all__ = ["activation_maxima", "overflow_warnings", "run", "session_of"]

# fp16 ends at 65504. A picture unlike those that were tried may well be six times as hard.
FP16_WARNING = 1e4


def session_of(model: bytes | Path) -> Any:
    """Load a graph on ONNX Runtime's CPU provider.

    Raises:
        ExportError: ONNX Runtime refuses it.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime raises its own types, one for each status, none of them documented.
        what = "the graph" if isinstance(model, bytes) else str(model)
        raise ExportError(f"ONNX Runtime cannot load {what}: {one_line(error)}") from error


def run(session: Any, batch: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
    """Run one batch through the graph's only input and return every output.

    Raises:
        ExportError: ONNX Runtime fails while it runs.
    """
    try:
        return list(session.run(None, {session.get_inputs()[0].name: batch}))
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot run {batch.shape}: {one_line(error)}") from error


def activation_maxima(model: ir.Model, pictures: Iterable[npt.NDArray[np.float32]]) -> dict[str, float]:
    """Return the largest absolute value that each convolution puts out, by the name of its weights.

    Args:
        model: A float-form graph in fp32; it is not changed.
        pictures: Inputs, each ``(N, C, H, W)`` float32 0..1.
    """
    model = clone(model)
    names: list[str] = []
    for node in list(model.graph):
        if node.op_type != "Conv" or node.inputs[1] is None:
            continue
        layer = (node.inputs[1].name or "").removesuffix(".weight")
        size = append(model, "Abs", [node.outputs[0]], name=f"probe_abs_{len(names)}")
        peak = append(model, "ReduceMax", [size], {"keepdims": 0}, name=f"probe_max_{len(names)}")
        peak.type, peak.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        model.graph.outputs.append(peak)
        names.append(layer)
    session = session_of(to_bytes(model))
    maxima = dict.fromkeys(names, 0.0)
    for picture in pictures:
        for name, value in zip(names, run(session, picture)[1:], strict=True):
            # A NaN must win, and max() would drop it.
            maxima[name] = float(np.fmax(maxima[name], value)) if np.isfinite(value) else float("inf")
    return maxima


def overflow_warnings(maxima: Mapping[str, float]) -> list[str]:
    """Return a sentence for each layer that comes near the end of fp16, the largest first, at most five."""
    near = sorted(((peak, name) for name, peak in maxima.items() if peak > FP16_WARNING), reverse=True)
    sentences = [
        f"activations of {name} reach {peak:.3g}, and fp16 ends at 65504: it may overflow on other pictures; "
        "--precision bf16 or fp32 does not"
        for peak, name in near[:5]
    ]
    if len(near) > 5:
        sentences.append(f"{len(near) - 5} more layers pass {FP16_WARNING:.0e}")
    return sentences
