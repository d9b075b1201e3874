"""ONNX Runtime as a session."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime._graph_facts import facts_of_graph
from esrgan_deploy.runtime._session import Made, SessionInfo, SessionOptions
from esrgan_deploy.runtime._slot_host import HostSlot

__all__ = ["OnnxSession"]

PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxSession:
    """An ``.onnx`` graph in ONNX Runtime, in either I/O form; see `Session` for the protocol.

    Raises:
        InferenceError: The file is no graph that this runtime can run, or a provider is not available.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, options: SessionOptions | None = None) -> None:
        options = options or SessionOptions()
        ort = require("onnxruntime", extra="cpu")
        wanted = _providers(ort.get_available_providers(), options.providers)
        settings = ort.SessionOptions()
        # What goes wrong is raised and translated below; ONNX Runtime would print it as well.
        settings.log_severity_level = 4
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        try:
            graph = ort.InferenceSession(str(path), settings, providers=wanted)
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise InferenceError(
                    f"{', '.join(wanted)} has no kernel for a part of {path} ({_reason(error)}); bf16 graphs have "
                    "none on a processor. Use the fp32 or fp16 graph beside it"
                ) from error
            raise InferenceError(
                f"ONNX Runtime cannot open {path} ({_reason(error)}). "
                "If the file is cut off or is no ONNX graph, run: esrgan-export again"
            ) from error
        active = graph.get_providers()
        if options.providers is not None and wanted[0] not in active:
            raise InferenceError(
                f"ONNX Runtime could not start {wanted[0]}, only {', '.join(active)}; "
                "check the driver, or use provider cpu"
            )
        self._name = path.name
        self._turn = threading.Lock()
        self._graph: Any = graph
        self._output = graph.get_outputs()[0].name
        self._input = graph.get_inputs()[0].name
        provider = f"ONNX Runtime {ort.__version__}, {active[0].removesuffix('ExecutionProvider')}"
        self._info = facts_of_graph(path, graph, self._run, provider=provider)

    @property
    def info(self) -> SessionInfo:
        """What the session takes and gives."""
        return self._info

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Enlarge one batch; see `Session.run`."""
        try:
            return self._run(batch)
        except InferenceError:
            raise
        except Exception as error:
            shape = "x".join(map(str, batch.shape))
            raise InferenceError(
                f"{self._name} failed on a batch of {shape} ({_reason(error)}); "
                "if memory ran out, use a smaller tile"
            ) from error

    def slot(self) -> HostSlot:
        """Return a new slot; see `Session.slot`."""
        return HostSlot(self._info, lambda batch: Made(self.run(batch)), self._turn)

    def run_on_device(
        self, array: object, *, stream: object | None = None, out: object | None = None
    ) -> object:
        """See `Session.run_on_device`."""
        raise InferenceError(f"{self._name} runs on {self._info.provider}; run() takes what lies on a GPU")

    def close(self) -> None:
        """Release the graph; a second call does nothing."""
        self._graph = None

    def _run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        graph = self._graph
        if graph is None:
            raise InferenceError(f"the session of {self._name} is closed; open it again")
        out: npt.NDArray[Any] = np.asarray(graph.run([self._output], {self._input: batch})[0])
        return out


def _providers(available: list[str], wanted: tuple[str, ...] | None) -> list[str]:
    if wanted is None:
        return [name for name in PREFERRED if name in available]
    by_name = {name.removesuffix("ExecutionProvider").lower(): name for name in available}
    chosen = []
    for name in wanted:
        key = name.removesuffix("ExecutionProvider").lower()
        if key not in by_name:
            raise InferenceError(
                f"this ONNX Runtime has no provider {name!r}, only {', '.join(sorted(by_name))}; "
                "CUDA comes with: pip install 'esrgan-deploy[cuda]'"
            )
        chosen.append(by_name[key])
    return chosen


def _reason(error: Exception) -> str:
    # "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from ... failed:Protobuf parsing failed."
    text = one_line(error)
    return text.split(" : ", 2)[-1][:300] if text.startswith("[ONNXRuntimeError]") else text[:300]
