"""ONNX Runtime as a session."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime._graph_facts import facts_of_graph
from esrgan_deploy.runtime._session import SessionInfo

__all__ = ["OnnxOptions", "OnnxSession"]

PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """How ONNX Runtime runs a graph.

    Attributes:
        providers: Execution providers in order of preference, by full name or in short (``"cpu"``,
            ``"cuda"``); None takes CUDA where it is present, and the CPU.
        threads: Threads of one operator on the CPU; None lets ONNX Runtime choose.
    """

    providers: tuple[str, ...] | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.providers is not None and not self.providers:
            raise ValueError("providers is empty; name at least one, or None to let the library choose")
        if self.threads is not None and self.threads < 1:
            raise ValueError(
                f"threads is {self.threads}; it is at least 1, or None to let the library choose"
            )


class OnnxSession:
    """An ``.onnx`` graph in ONNX Runtime, in either I/O form; see `Session` for the protocol.

    Raises:
        InferenceError: The file is no graph that this runtime can run, or a provider is not available.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, options: OnnxOptions | None = None) -> None:
        options = options or OnnxOptions()
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
