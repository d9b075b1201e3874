"""What runs a graph: one protocol, its options, and what is known of a session."""

import dataclasses
from fractions import Fraction
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import THREADS
from esrgan_deploy._spec import UNBOUNDED, Form, ModelSpec
from esrgan_deploy.runtime.sessions._parts import PartsInfo

__all__ = [
    "PEAKS",
    "SLOTS_ON_GPU",
    "Array",
    "BatchOutput",
    "Parts",
    "PartsSlot",
    "Session",
    "SessionInfo",
    "SessionOptions",
    "Slot",
    "Trunk",
]

Array = npt.NDArray[Any]

PEAKS = (1, 255)
"""What white may be at the ends of a graph."""

# One batch that is uploaded, one that is computed, one that is downloaded.
SLOTS_ON_GPU = 3


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
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``, where it is known; else empty.
        computes: ``"bf16"`` or ``"fp16"`` where it computes in less than that, as `SessionOptions.precision` asked;
            else empty.
        slots: Batches that are worth having in flight at once.
        at_once: Batches that a processor computes at the same time, on a share of its cores each.
        device: Ordinal of the CUDA device that computes; -1 for the processor, and for what has its memory.
        watched: Whether each batch comes with its `BatchOutput.health`.
        most_in_parts: Largest ``(1, H, W)`` that a slot takes, be it beyond `max_shape`: the trunk of the net in one
            piece, and its tail in tiles. None where it cannot.
        parts: What is known of the parts that lie beside the graph, where they can be run here; see `PartsSlot`.
    """

    name: str
    form: Form
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
    computes: str = ""
    slots: int = 2
    at_once: int = 1
    device: int = -1
    watched: bool = False
    most_in_parts: tuple[int, int, int] | None = None
    parts: PartsInfo | None = None

    def batch_shape(self, number: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the shape of an input batch in this session's form."""
        if self.form == "uint8":
            return (number, height, width, self.in_channels)
        return (number, self.in_channels, height, width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How an artefact is opened; what does not concern its kind is not looked at.

    Attributes:
        device: Ordinal of the CUDA device.
        providers: What runs an ``.onnx`` graph: ONNX Runtime execution providers in order of preference, by full name
            or in short (``"cpu"``, ``"cuda"``, ``"tensorrt"``); or one of ``"openvino"``, ``"openvino:GPU"``, … and
            ``"auto"``, which on a processor takes the fastest that holds here; None takes CUDA where it is present,
            and the CPU, in ONNX Runtime.
        threads: Threads of one operator on the CPU; None lets the library choose.
        streams: Batches that OpenVINO computes at once, on a share of the cores each; None is one, on all.
        trust: Whether a plan may be loaded that no manifest vouches for. A plan is code.
        rebuild: ``"auto"`` rebuilds a plan that does not fit this machine from the ONNX graph beside it.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"`` of a checkpoint that PyTorch runs, or of a graph that OpenVINO
            runs; None means fp32, of a graph its own.
        compile: Whether PyTorch compiles the net (``torch.compile``).
        cuda_graph: Whether a plan's work for one batch is captured once and launched as one CUDA graph.
        spin: Whether ONNX Runtime's threads on the CPU wait for the next batch by spinning, for a second and more:
            a little faster where nothing else runs, and much slower for whatever does.
        range: White at the ends of an ``.onnx`` that others made: 1, 255, or ``(1, 255)`` of its input and output;
            None measures it on a few greys.
        layout: Its layout, ``"NCHW"`` or ``"NHWC"``; None reads it from its shape, or tries.
        output_name: Which of its outputs is the picture; None takes the one that is larger than its input.
    """

    device: int = 0
    providers: tuple[str, ...] | None = None
    threads: int | None = None
    streams: int | None = None
    trust: bool = False
    rebuild: Literal["never", "auto"] = "never"
    precision: Literal["fp32", "fp16", "bf16"] | None = None
    compile: bool = False
    cuda_graph: bool = True
    spin: bool = True
    range: int | tuple[int, int] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    output_name: str | None = None

    def __post_init__(self) -> None:
        if self.device < 0:
            raise ValueError(f"device is {self.device}; it is 0 or more, in CUDA's own order")
        if self.providers is not None and not self.providers:
            raise ValueError("providers is empty; name at least one, or None to let the library choose")
        if self.threads is not None and not (type(self.threads) is int and 1 <= self.threads <= THREADS):
            raise ValueError(
                f"threads is {self.threads!r}; it is 1 to {THREADS} here, or None to let the library choose"
            )
        if self.streams is not None and self.streams < 1:
            raise ValueError(f"streams is {self.streams}; it is at least 1, or None for the usual number")
        if self.rebuild not in ("never", "auto"):
            raise ValueError(f"rebuild is {self.rebuild!r}; it is 'never' or 'auto'")
        if self.precision not in (None, "fp32", "fp16", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; it is 'fp32', 'fp16', 'bf16' or None")
        ends = self.range if isinstance(self.range, tuple) else (self.range, self.range)
        if self.range is not None and (len(ends) != 2 or any(end not in PEAKS for end in ends)):
            raise ValueError(
                f"range is {self.range!r}; white is 1 or 255, or a pair of these, of the input and of the output"
            )
        if self.layout not in (None, "NCHW", "NHWC"):
            raise ValueError(f"layout is {self.layout!r}; it is 'NCHW', 'NHWC' or None")

    @property
    def describes(self) -> bool:
        """Whether it says what a graph takes and gives, which only one that others made leaves open."""
        return (self.range, self.layout, self.output_name) != (None, None, None)


@dataclasses.dataclass(frozen=True)
class BatchOutput:
    """What a session made of one batch.

    Attributes:
        batch: The output in the session's form; uint8 in the uint8 form, floating in the float form. Valid until
            its slot is prepared or started again, and not written to.
        health: ``(N, 3)`` float32 where the graph watches itself, else None. For each picture the mean of the
            output before it is clipped (NaN or infinite as soon as one sample is), the spread (largest less
            smallest sample) of the output after clipping to 0..1, and the spread of the input in 0..1.
    """

    batch: Array
    health: Array | None = None


class Trunk(Protocol):
    """The trunk on its way down one picture: it keeps the rows that the next strip needs."""

    def advance(self, rows: Array, bounds: Array) -> Array:
        """Feed new rows and return those of the map that are finished.

        Args:
            rows: ``(1, C, h, W)`` or ``(1, h, W, C)``, in the session's form and dtype.
            bounds: int64, see ``Strips.bounds``.

        Returns:
            ``(1, features, h', W / step)``; h' may be 0.

        Raises:
            InferenceError: It failed; `OutOfMemoryError` can be answered with lower strips.
        """


class Parts(Protocol):
    """Runs the parts of one graph. Used by several threads, a picture by one of them."""

    @property
    def info(self) -> PartsInfo:
        """What is known of them."""

    def trunk(self, width: int) -> Trunk:
        """Begin a picture of so many columns."""

    def tail(self, features: Array, picture: Array | None) -> BatchOutput:
        """Make pixels of a piece of the map.

        Args:
            features: ``(1, features, h, w)``, contiguous.
            picture: The same piece of the picture in the session's form, where `PartsInfo.picture` says so.

        Returns:
            The output in the session's form; its `BatchOutput.health`, where the graph watches itself, lacks the
            spread of the input: ``(1, 2)``.

        Raises:
            InferenceError: It failed.
        """


class Slot(Protocol):
    """One batch in flight, with the buffers that it needs. Used by one thread at a time, any thread.

    The order is prepare, start, finish, as often as wanted. Several slots of a session run side by side.
    """

    def prepare(self, shape: tuple[int, int, int]) -> Array:
        """Return the input batch to fill, for ``(N, H, W)``: C-contiguous, in the session's form and dtype.

        What it holds is undefined. The same buffers serve again where the shape did not change.

        Raises:
            InferenceError: The shape is outside the session's range.
            OutOfMemoryError: The buffers do not fit.
        """

    def start(self) -> None:
        """Begin upload, inference and download; returns before they end where the device works by itself.

        Raises:
            InferenceError: The device refused; `OutOfMemoryError` and `DeviceLostError` can be answered.
        """

    def finish(self) -> BatchOutput:
        """Wait for the batch that was started and return it.

        Raises:
            InferenceError: It failed; as in `start`.
        """

    def close(self) -> None:
        """Release the buffers; a second call does nothing. Must work on a lost device too."""


class PartsSlot(Slot, Protocol):
    """A slot of a session whose `SessionInfo.parts` is there."""

    @property
    def parts(self) -> Parts:
        """What runs the parts of the graph.

        Raises:
            InferenceError: They cannot be opened.
        """


class Session(Protocol):
    """Runs one fixed-shape batch; tiling, batching, order and files belong to what lies above it."""

    @property
    def info(self) -> SessionInfo:
        """What the session takes and gives."""

    def slot(self) -> Slot:
        """Return a new slot. Close it before the session.

        Raises:
            InferenceError: The session is closed, or the device refused.
        """

    def run(self, batch: Array) -> Array:
        """Enlarge one batch and wait for it.

        Args:
            batch: C-contiguous, of the shape and dtype that `info` states; may be reused after the call.

        Returns:
            The output batch in the same form. Its dtype is uint8 in the uint8 form and a floating one in the
            float form. It is valid until the next call and is not written to.

        Raises:
            InferenceError: The run failed, or the session is closed.
        """

    def run_on_device(
        self, array: object, *, stream: object | None = None, out: object | None = None
    ) -> object:
        """Enqueue one batch that is on the device already, without a copy and without waiting.

        Args:
            array: ``(N, H, W, C)`` uint8 or ``(N, C, H, W)`` floating, as `info` states, C-contiguous, with
                ``__cuda_array_interface__`` or DLPack. It must stay alive and unchanged until the stream got here.
            stream: What orders the work: an integer handle, anything with ``__cuda_stream__``, a PyTorch, CuPy or
                PyCUDA stream. None is a stream of the session's own, which is waited for. A new array keeps the
                object until it is freed on that stream; whoever gives a bare handle keeps the stream for as long.
            out: Where the result goes, of the output's shape and dtype; None makes an array.

        Returns:
            ``out``, or a new array that has ``__cuda_array_interface__`` and DLPack (a tensor, from PyTorch).

        Raises:
            InferenceError: Device, dtype, layout or shape do not fit. Nothing was enqueued then.
        """

    def close(self) -> None:
        """Release what the session holds; a second call does nothing."""
