"""What runs a graph: one protocol, and the choice of who answers to it."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.runtime._cuda import cuda_device_count
from esrgan_deploy.runtime._tiling import UNBOUNDED

__all__ = ["Session", "SessionInfo", "open_session"]

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")
PLANS = (".plan", ".engine", ".trt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """What does not change while a session is open.

    Attributes:
        name: Name of the file, for messages.
        form: ``"float"``: ``(N, C, H, W)`` RGB 0..1 in ``dtype``; ``"uint8"``: ``(N, H, W, C)`` RGB 0..255.
        dtype: Of the input: float32, float16 or uint8.
        in_channels: 3 for RGB, 1 for gray.
        out_channels: The same number; a net that changes it is refused.
        scale: Output pixels per input pixel and axis; a side of H becomes ``floor(H * scale)``.
        size_multiple: Height and width of a batch must be multiples of this.
        min_shape: Smallest ``(N, H, W)`` of a batch.
        max_shape: Largest ``(N, H, W)`` of a batch; equal to ``min_shape`` where the graph is fixed.
        provider: What computes, in words.
        spec: The model, where the graph carries it; None of a foreign one.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``, where the graph carries it; else empty.
    """

    name: str
    form: Literal["float", "uint8"]
    dtype: np.dtype[Any]
    in_channels: int
    out_channels: int
    scale: Fraction
    size_multiple: int = 1
    min_shape: tuple[int, int, int] = (1, 1, 1)
    max_shape: tuple[int, int, int] = (UNBOUNDED, UNBOUNDED, UNBOUNDED)
    provider: str
    spec: ModelSpec | None = None
    precision: str = ""

    def batch_shape(self, number: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the shape of an input batch in this session's form."""
        if self.form == "uint8":
            return (number, height, width, self.in_channels)
        return (number, self.in_channels, height, width)


class Session(Protocol):
    """Runs one fixed-shape batch; tiling, batching, order and files belong to what lies above it."""

    @property
    def info(self) -> SessionInfo:
        """What the session takes and gives."""

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Enlarge one batch.

        Args:
            batch: C-contiguous, of the shape and dtype that `info` states; may be reused after the call.

        Returns:
            The output batch in the same form. Its dtype is uint8 in the uint8 form and a floating one in the
            float form. It is valid until the next call and is not written to.

        Raises:
            InferenceError: The run failed, or the session is closed.
        """

    def close(self) -> None:
        """Release what the session holds; a second call does nothing."""


def open_session(
    path: str | Path, *, providers: Sequence[str] | None = None, threads: int | None = None
) -> Session:
    """Open an artefact with what can run it.

    Args:
        path: An ``.onnx`` graph (ONNX Runtime runs it) or a TensorRT ``.plan``.
        providers: ONNX Runtime execution providers in order of preference, by full name or ``"cpu"``,
            ``"cuda"``, …; None takes CUDA where it is present, and the CPU.
        threads: Threads of one operator on the CPU; None lets ONNX Runtime choose.

    Raises:
        InferenceError: There is no such file, it is of no known kind, or it cannot be run here.
        MissingDependencyError: The package that runs it is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise InferenceError(f"there is no file {path}; give an .onnx or .plan that esrgan-export wrote")
    if path.is_dir():
        raise InferenceError(f"{path} is a folder; give the artefact in it, such as {path / 'model.onnx'}")
    if suffix in CHECKPOINTS:
        raise InferenceError(
            f"{path} is a checkpoint, not a graph. Run: esrgan-export {path} -o out, then use out/model.onnx"
        )
    if suffix in PLANS:
        return _open_plan(path)
    if suffix != ".onnx":
        raise InferenceError(f"{path} ends in {suffix or 'no suffix'}; a model ends in .onnx or .plan")
    from esrgan_deploy.runtime._session_onnx import OnnxOptions, OnnxSession

    order = None if providers is None else tuple(providers)
    return OnnxSession(path, OnnxOptions(providers=order, threads=threads))


def _open_plan(path: Path) -> Session:
    if cuda_device_count() == 0:
        raise InferenceError(
            f"{path} is a TensorRT plan and no NVIDIA GPU is to be found here; "
            f"{_onnx_beside(path)} on this machine"
        )
    from esrgan_deploy.runtime._session_plan import PlanSession

    return PlanSession(path)


def _onnx_beside(plan: Path) -> str:
    # model.fp16.plan was built from model.fp16.onnx, and model.onnx is the same net in float32.
    for candidate in (plan.with_suffix(".onnx"), plan.with_name(plan.name.split(".")[0] + ".onnx")):
        if candidate.is_file():
            return f"use {candidate}"
    return "use the .onnx that the plan was built from"
