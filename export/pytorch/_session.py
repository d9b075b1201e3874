"""A checkpoint that PyTorch runs."""

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError
from esrgan_deploy.export.checkpoints import Checkpoint
from esrgan_deploy.export.pytorch._slot import TorchCudaSlot
from esrgan_deploy.runtime.device import ForeignArray, borrow_array, fault_of, gpu_label, stream_handle
from esrgan_deploy.runtime.sessions import (
    SLOTS_ON_GPU,
    BatchOutput,
    HostSlot,
    SessionInfo,
    SessionOptions,
    Slot,
    check_batch,
    check_output,
)

__all__ = ["TorchSession"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LEGACY_DEFAULT = (0, 1)

# The switch for TF32 belongs to the process; sessions of several threads would restore each other's.
_tf32 = threading.Lock()


class TorchSession:
    """The net of a checkpoint in the float form; see `Session` for the protocol.

    In bf16, which numpy does not have, it takes and gives float32 and rounds at both ends; `run_on_device` takes
    bfloat16 as well, and then gives it.

    Args:
        checkpoint: The net.
        options: Device, precision, whether to compile it, and threads, which PyTorch has for the process as a whole.
        name: For messages.

    Raises:
        InferenceError: There is no such device, or the net does not enlarge pictures or not in that precision.
    """

    def __init__(self, checkpoint: Checkpoint, options: SessionOptions, *, name: str) -> None:
        spec, precision = checkpoint.spec, options.precision or "fp32"
        known = {"fp32": True, "fp16": spec.supports_half, "bf16": spec.supports_bfloat16}
        if not known[precision]:
            raise InferenceError(
                f"{name} ({spec.architecture}) is not known to work in {precision}; use fp32"
            )
        if spec.in_channels != spec.out_channels or spec.in_channels not in (1, 3):
            raise InferenceError(
                f"{name} makes {spec.out_channels} channels of {spec.in_channels}; "
                "a picture is 3 to 3 (RGB) or 1 to 1 (gray)"
            )
        self._device = _device(options)
        self._dtype = DTYPES[precision]
        # Tensor Cores want it; in fp32 another layout means other sums, and then it is no reference any more.
        self._layout = torch.contiguous_format if precision == "fp32" else torch.channels_last
        self._turn = threading.Lock()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._name = name
        with self._translated("loading"):
            # The overloads of PyTorch do not know of a layout as a variable.
            net: Any = checkpoint.module().to(self._device, self._dtype)
            net = net.to(memory_format=self._layout)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        self._net: Callable[[Tensor], Tensor] | None = torch.compile(net) if options.compile else net
        where = "CPU"
        if self._device.type == "cuda":
            where = gpu_label(options.device, torch.cuda.get_device_name(self._device))
        self._info = SessionInfo(
            name=name,
            form="float",
            dtype=np.dtype(np.float16 if precision == "fp16" else np.float32),
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            scale=Fraction(spec.scale),
            size_multiple=spec.size_multiple,
            provider=f"PyTorch {torch.__version__}, {where}{', compiled' if options.compile else ''}",
            spec=spec,
            precision=precision,
            device=-1 if self._device.index is None else self._device.index,
            slots=2 if self._device.index is None else SLOTS_ON_GPU,
        )

    @property
    def info(self) -> SessionInfo:
        """What the session takes and gives."""
        return self._info

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Enlarge one batch; see `Session.run`."""
        with self._turn:
            return self._make(batch).batch

    def slot(self) -> Slot:
        """Return a new slot; see `Session.slot`."""
        self._open_net()
        if self._device.type == "cuda":
            with self._translated("a slot"):
                return TorchCudaSlot(self._info, self._device, self._forward, self._translated)
        return HostSlot(self._info, self._make, self._turn)

    def run_on_device(
        self, array: object, *, stream: object | None = None, out: object | None = None
    ) -> object:
        """See `Session.run_on_device`; returns a tensor, or ``out``.

        Raises:
            InferenceError: The array does not fit, a stream is given where there is none, or it failed.
        """
        self._open_net()
        if self._device.type == "cuda":
            return self._run_on_cuda(array, stream, out)
        if stream is not None:
            raise InferenceError(
                f"{self._name} runs on the processor, where there are no streams; leave stream out"
            )
        batch, target = self._checked(array, out, None)
        with self._turn, self._translated(_sides(batch.shape)):
            made = self._forward(_tensor_at(batch))
            if target is None:
                return made
            _tensor_at(target).copy_(made)
        return out

    def close(self) -> None:
        """Release the net; a second call does nothing."""
        self._net = None

    def _run_on_cuda(self, array: object, stream: object | None, out: object | None) -> object:
        with torch.cuda.device(self._device):
            # PyTorch computes on the legacy default stream as on any other.
            lent = _own(self._device) if stream is None else _lent(stream, self._device)
            batch, target = self._checked(array, out, lent.cuda_stream or 1)
            with self._translated(_sides(batch.shape)), torch.cuda.stream(lent):
                for borrowed in (batch, target):
                    if borrowed is not None and borrowed.stream is not None:
                        lent.wait_stream(_lent(borrowed.stream, self._device))
                made = self._forward(_tensor_of(array, batch, self._device))
                if target is not None:
                    _tensor_of(out, target, self._device).copy_(made)
                if stream is None:
                    lent.synchronize()
        return made if target is None else out

    def _checked(
        self, array: object, out: object | None, stream: int | None
    ) -> tuple[ForeignArray, ForeignArray | None]:
        taken = (self._info.dtype.name, *(("bfloat16",) if self._dtype == torch.bfloat16 else ()))
        batch = borrow_array(array, stream=stream)
        nhw = check_batch(batch, self._info, dtypes=taken)
        if out is None:
            return batch, None
        target = borrow_array(out, stream=stream)
        check_output(target, self._info, nhw, dtype=batch.dtype, batch=batch)
        return batch, target

    def _make(self, batch: npt.NDArray[Any]) -> BatchOutput:
        with self._translated(_sides(batch.shape)):
            made = self._forward(_tensor_at(borrow_array(batch)).to(self._device))
            return BatchOutput(made.cpu().numpy())

    def _forward(self, batch: Tensor) -> Tensor:
        """Enlarge a batch that is on the device; the result has its dtype."""
        net = self._open_net()
        with torch.no_grad(), self._without_tf32():
            made: Tensor = net(batch.to(self._dtype, memory_format=self._layout))
            return made.to(batch.dtype).contiguous()

    @contextlib.contextmanager
    def _without_tf32(self) -> Iterator[None]:
        if self._device.type != "cuda" or self._dtype != torch.float32:
            yield
            return
        # Not by allow_tf32: PyTorch refuses to read it where the host program set fp32_precision.
        convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        with _tf32:
            before = convolutions.fp32_precision
            convolutions.fp32_precision = "ieee"
            try:
                yield
            finally:
                convolutions.fp32_precision = before

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except InferenceError:
            raise
        except Exception as error:
            # torch.OutOfMemoryError and torch.AcceleratorError are told by their texts, as those of the
            # processor's memory are, which have no type; the compiler's have many.
            kind = fault_of(str(error))
            raise kind(
                f"{self._name} failed on {what} ({one_line(error)[:300]}); if memory ran out, use a smaller tile"
            ) from error

    def _open_net(self) -> Callable[[Tensor], Tensor]:
        if self._net is None:
            raise InferenceError(f"the session of {self._name} is closed; open it again")
        return self._net


def _device(options: SessionOptions) -> torch.device:
    first = (options.providers or ("",))[0].removesuffix("ExecutionProvider").lower()
    count = torch.cuda.device_count() if first != "cpu" and torch.cuda.is_available() else 0
    if count == 0 and first == "cuda":
        raise InferenceError("PyTorch finds no CUDA device; check the driver, or use provider cpu")
    if count and options.device >= count:
        found = ", ".join(gpu_label(one, torch.cuda.get_device_name(one)) for one in range(count))
        raise InferenceError(f"there is no cuda:{options.device}; visible are {found}, in CUDA's own order")
    return torch.device("cuda", options.device) if count else torch.device("cpu")


def _own(device: torch.device) -> torch.cuda.Stream:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    # A tensor that was made without a thought of streams is made on this one.
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _lent(stream: object, device: torch.device) -> torch.cuda.Stream:
    if isinstance(stream, torch.cuda.Stream):
        return stream
    handle = stream_handle(stream, allow_default=True)
    if handle in LEGACY_DEFAULT:
        return torch.cuda.default_stream(device)
    lent: torch.cuda.Stream = torch.cuda.ExternalStream(handle, device)  # type: ignore[no-untyped-call]
    return lent


def _tensor_at(array: ForeignArray) -> Tensor:
    """Return a tensor over memory of the processor, without a copy; whoever calls keeps the array."""
    # By its address, because PyTorch warns of numpy arrays that are read-only, and nothing is written here.
    memory = (ctypes.c_ubyte * array.nbytes).from_address(array.pointer)
    return torch.frombuffer(memory, dtype=getattr(torch, array.dtype)).reshape(array.shape)


def _tensor_of(obj: Any, array: ForeignArray, device: torch.device) -> Tensor:
    """Return a tensor over memory of the device, without a copy."""
    if isinstance(obj, Tensor):
        return obj
    if array.dtype == "bfloat16":
        shared: Tensor = from_dlpack(obj)
        return shared
    return torch.as_tensor(obj, device=device)


def _sides(shape: tuple[int, ...]) -> str:
    return f"a batch of {'x'.join(map(str, shape))}"
