"""A DLPack capsule, read through its C structure (dlpack.h 1.0, https://dmlc.github.io/dlpack)."""

import ctypes
import dataclasses
from typing import Any

from esrgan_deploy.runtime._dlpack_types import DLTensor

__all__ = ["DlpackTensor", "read_dlpack"]

# DLDataTypeCode.
KINDS = {0: "int", 1: "uint", 2: "float", 5: "complex"}
BFLOAT, BOOL = 4, 6
READ_ONLY = 1


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DlpackTensor:
    """What a capsule says.

    Attributes:
        pointer: Address of the first element.
        shape: Elements along each axis.
        strides: Steps in elements; None where it is C-contiguous.
        dtype: As numpy spells it, or ``"bfloat16"``.
        read_only: Whether writing is forbidden.
        capsule: Keeps the memory alive; never consumed, so its owner's destructor runs when it is dropped.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    read_only: bool
    capsule: object = dataclasses.field(repr=False)


def read_dlpack(obj: Any, *, stream: int | None) -> DlpackTensor:
    """Ask an object for its capsule and read it.

    Args:
        obj: Something with ``__dlpack__``.
        stream: What the owner orders its work against; None of memory that no stream works on.

    Raises:
        ValueError: The capsule is of a kind that is not known.
        Exception: Whatever the owner raises to refuse.
    """
    try:
        capsule = obj.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:
        # From before DLPack 1.0.
        capsule = obj.__dlpack__(stream=stream)
    name = _name(capsule)
    if name == b"dltensor_versioned":
        versioned = ctypes.cast(_pointer(capsule, name), ctypes.POINTER(_Versioned)).contents
        if versioned.major != 1:
            raise ValueError(f"its DLPack version is {versioned.major}.{versioned.minor}; known are 0 and 1")
        return _read(versioned.tensor, capsule, read_only=bool(versioned.flags & READ_ONLY))
    if name == b"dltensor":
        # The tensor is the front of the structure; the capsule's own destructor releases it.
        tensor = ctypes.cast(_pointer(capsule, name), ctypes.POINTER(DLTensor)).contents
        return _read(tensor, capsule, read_only=False)
    raise ValueError(f"its DLPack capsule is called {name!r}; known are 'dltensor' and 'dltensor_versioned'")


def _read(tensor: DLTensor, capsule: object, *, read_only: bool) -> DlpackTensor:
    axes = range(tensor.ndim)
    return DlpackTensor(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(int(tensor.shape[axis]) for axis in axes),
        strides=tuple(int(tensor.strides[axis]) for axis in axes) if tensor.strides else None,
        dtype=_dtype(tensor.code, tensor.bits, tensor.lanes),
        read_only=read_only,
        capsule=capsule,
    )


def _dtype(code: int, bits: int, lanes: int) -> str:
    if lanes == 1:
        if code == BFLOAT and bits == 16:
            return "bfloat16"
        if code == BOOL:
            return "bool"
        if code in KINDS:
            return f"{KINDS[code]}{bits}"
    raise ValueError(f"its DLPack type is code {code} with {bits} bits and {lanes} lanes, which is not known")


def _name(capsule: object) -> bytes:
    get = ctypes.pythonapi.PyCapsule_GetName
    get.restype, get.argtypes = ctypes.c_char_p, [ctypes.py_object]
    name: bytes | None = get(capsule)
    return name or b""


def _pointer(capsule: object, name: bytes) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address: int = get(capsule, name)
    return address
