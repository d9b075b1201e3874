"""ONNX Runtime on the processor, as the exporter uses it to verify."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import ExportError
from esrgan_deploy._optional import require

__all__ = ["run", "session_of"]


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
