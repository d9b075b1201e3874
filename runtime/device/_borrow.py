"""Arrays and streams of other libraries, taken by protocol: nothing of theirs is imported."""

import ctypes
import dataclasses
import math
from typing import Any

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime.device._dlpack import read_dlpack
from esrgan_deploy.runtime.device._driver import libcuda

__all__ = [
    "ForeignArray",
    "borrow_array",
    "stream_handle",
]

# What `DLDeviceType` of dlpack.h calls memory that the processor reads: kDLCPU and kDLCUDAHost; and memory that lies
# on an NVIDIA device: kDLCUDA and kDLCUDAManaged.
ON_HOST = (1, 3)
ON_CUDA = (2, 13)
KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
LEGACY_DEFAULT = (0, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class ForeignArray:
    """Someone else's memory, C-contiguous, borrowed for as long as this object lives.

    Attributes:
        pointer: Address of the first element.
        shape: Elements along each axis.
        dtype: As numpy spells it, such as ``"float16"``; or ``"bfloat16"``.
        device: Ordinal of the CUDA device that holds it; -1 for the processor's memory.
        owner: What keeps the memory alive.
        read_only: Whether its owner forbids writing.
        stream: Stream that the owner may still be filling it on (``__cuda_array_interface__`` version 3), to be
            waited for on the device before the memory is touched; None where there is nothing to wait for. An array
            taken by DLPack was ordered by its owner against the stream that `borrow_array` was given.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    owner: object = dataclasses.field(repr=False)
    read_only: bool = False
    stream: int | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int("".join(filter(str.isdigit, self.dtype)) or 8) // 8

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.itemsize


def borrow_array(obj: object, *, stream: int | None = None) -> ForeignArray:
    """Find out where an array lies, without a copy.

    Taken are ``__cuda_array_interface__`` (versions 2 and 3: PyTorch, CuPy, PyCUDA, Numba), numpy's
    ``__array_interface__``, and DLPack.

    Args:
        obj: The array.
        stream: Handle of the stream that will work on it; the owner of a DLPack array makes it wait for what the
            owner has under way. None where the array is in the processor's memory.

    Raises:
        InferenceError: It has none of the protocols, is not C-contiguous, or its owner refuses.
    """
    if isinstance(obj, ForeignArray):
        return obj
    cuda = _protocol(obj, "__cuda_array_interface__")
    if isinstance(cuda, dict):
        return _from_interface(obj, cuda, device=_device_of(obj, cuda))
    host = _protocol(obj, "__array_interface__")
    if isinstance(host, dict):
        return _from_interface(obj, host, device=-1)
    if hasattr(obj, "__dlpack__"):
        return _from_dlpack(obj, stream)
    raise InferenceError(
        f"{_kind(obj)} is no array that can be borrowed; give one with __cuda_array_interface__, DLPack or "
        "__array_interface__, such as a tensor of PyTorch or an array of CuPy, PyCUDA or numpy"
    )


def stream_handle(obj: object, *, allow_default: bool = False) -> int:
    """Return the address of a stream.

    Args:
        obj: A handle, something with ``__cuda_stream__`` (a method, in early versions an attribute, that gives
            version and handle), or a stream of PyTorch (``cuda_stream``), CuPy (``ptr``) or PyCUDA (``handle``).
        allow_default: Whether the legacy default stream is taken. Everything else on the device waits for it, and
            TensorRT synchronises the device on it.

    Raises:
        InferenceError: It is no stream, or the legacy default one.
    """
    handle = _handle(obj)
    if handle is None:
        raise InferenceError(
            f"{_kind(obj)} is no stream; give an integer handle, something with __cuda_stream__, or a stream of "
            "PyTorch, CuPy or PyCUDA"
        )
    if handle in LEGACY_DEFAULT and not allow_default:
        raise InferenceError(
            f"the stream is {handle}, CUDA's legacy default, which everything else on the device waits for; give "
            "one that you made, such as torch.cuda.Stream(), cupy.cuda.Stream(non_blocking=True) or "
            "pycuda.driver.Stream()"
        )
    return handle


def _from_interface(obj: object, interface: dict[str, Any], *, device: int) -> ForeignArray:
    # numpy's and CUDA's interfaces share their keys; only CUDA's has a stream.
    data = interface.get("data")
    if data is None or interface.get("mask") is not None:
        raise InferenceError(f"{_kind(obj)} has a mask, or its memory is not to be had; give a plain array")
    shape = tuple(int(size) for size in interface["shape"])
    dtype = _dtype_of(str(interface["typestr"]), obj)
    array = ForeignArray(
        pointer=int(data[0]),
        shape=shape,
        dtype=dtype,
        device=device,
        owner=obj,
        read_only=bool(data[1]),
        stream=None if interface.get("stream") is None else int(interface["stream"]),
    )
    _check_contiguous(obj, shape, interface.get("strides"), array.itemsize)
    return array


def _from_dlpack(obj: Any, stream: int | None) -> ForeignArray:
    try:
        kind, ordinal = obj.__dlpack_device__()
        if int(kind) not in ON_HOST + ON_CUDA:
            raise InferenceError(
                f"{_kind(obj)} lies on DLPack device type {int(kind)}; taken are the processor's memory (1, 3) "
                "and CUDA's (2, 13)"
            )
        on_host = int(kind) in ON_HOST
        tensor = read_dlpack(obj, stream=None if on_host else stream)
    except InferenceError:
        raise
    except Exception as error:
        # Each library refuses in its own way: PyTorch a tensor with a gradient, numpy a read-only one of old.
        raise InferenceError(f"{_kind(obj)} cannot be borrowed ({one_line(error)})") from error
    array = ForeignArray(
        pointer=tensor.pointer,
        shape=tensor.shape,
        dtype=tensor.dtype,
        device=-1 if on_host else int(ordinal),
        owner=(obj, tensor.capsule),
        read_only=tensor.read_only,
    )
    strides = tensor.strides
    in_bytes = None if strides is None else tuple(step * array.itemsize for step in strides)
    _check_contiguous(obj, array.shape, in_bytes, array.itemsize)
    return array


def _check_contiguous(
    obj: object, shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int
) -> None:
    if strides is None or 0 in shape:
        return
    expected = itemsize
    for size, step in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        # An axis of one element is never stepped along.
        if size != 1 and step != expected:
            raise InferenceError(
                f"{_kind(obj)} of shape {shape} is not C-contiguous (strides {tuple(strides)} bytes); make it so "
                "first, with .contiguous() or ascontiguousarray()"
            )
        expected *= size


def _dtype_of(typestr: str, obj: object) -> str:
    order, letter, size = typestr[0], typestr[1:2], typestr[2:]
    if order == ">":
        raise InferenceError(f"{_kind(obj)} is big-endian ({typestr}); give little-endian samples")
    if letter == "b":
        return "bool"
    if letter == "V" and str(getattr(obj, "dtype", "")).endswith("bfloat16"):
        # It has no letter there; PyTorch and ml_dtypes write two bytes of void.
        return "bfloat16"
    if letter not in KINDS or not size.isdigit():
        raise InferenceError(f"{_kind(obj)} holds {typestr!r}; give uint8, float16, bfloat16 or float32")
    return f"{KINDS[letter]}{8 * int(size)}"


def _device_of(obj: Any, interface: dict[str, Any]) -> int:
    # The interface does not name the device. DLPack does, where the object has it too; else the driver knows.
    if hasattr(obj, "__dlpack_device__"):
        return int(obj.__dlpack_device__()[1])
    pointer = int(interface["data"][0])
    ordinal = _device_of_address(pointer)
    if ordinal is None:
        raise InferenceError(
            f"the driver knows no device that {_kind(obj)} at {pointer:#x} lies on; its memory may be freed"
        )
    return ordinal


def _device_of_address(pointer: int) -> int | None:
    driver = libcuda()
    if driver is None:
        # Whoever made the array has no driver either, so nothing will compute on it; the session says so.
        return 0
    device_ordinal, ordinal = 9, ctypes.c_int(-1)  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    status = driver.cuPointerGetAttribute(ctypes.byref(ordinal), device_ordinal, ctypes.c_uint64(pointer))
    return ordinal.value if status == 0 and ordinal.value >= 0 else None


def _handle(obj: Any) -> int | None:
    if isinstance(obj, bool):
        return None
    if isinstance(obj, int):
        return obj if obj >= 0 else None
    protocol = _protocol(obj, "__cuda_stream__")
    if protocol is not None:
        pair = protocol() if callable(protocol) else protocol
        version, handle = pair
        if int(version) != 0:
            raise InferenceError(f"{_kind(obj)} has version {version} of __cuda_stream__; known is 0")
        return int(handle)
    for name in ("cuda_stream", "ptr", "handle"):
        value = getattr(obj, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _protocol(obj: object, name: str) -> Any:
    try:
        return getattr(obj, name, None)
    except Exception as error:
        # PyTorch raises RuntimeError for a tensor that needs a gradient, TypeError for one that is sparse.
        raise InferenceError(f"{_kind(obj)} cannot be borrowed ({one_line(error)})") from error


def _kind(obj: object) -> str:
    kind = type(obj)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
