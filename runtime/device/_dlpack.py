"""DLPack (dmlc/dlpack, dlpack.h) in both directions: arrays that are read, and arrays that are lent."""

import atexit
import ctypes
import dataclasses
import itertools
from typing import Any

__all__ = ["DLTensor", "DlpackTensor", "dlpack_capsule", "read_dlpack"]


class DLTensor(ctypes.Structure):
    """``DLTensor``: address, device, axes and dtype of a tensor; ``code`` is a ``DLDataTypeCode``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


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
    name = _get_name(capsule) or b""
    if name == b"dltensor_versioned":
        versioned = ctypes.cast(_get_pointer(id(capsule), name), ctypes.POINTER(_Versioned)).contents
        if versioned.major != 1:
            raise ValueError(f"its DLPack version is {versioned.major}.{versioned.minor}; known are 0 and 1")
        return _read(versioned.tensor, capsule, read_only=bool(versioned.flags & READ_ONLY))
    if name == b"dltensor":
        # The tensor is the front of the structure; the capsule's own destructor releases it.
        tensor = ctypes.cast(_get_pointer(id(capsule), name), ctypes.POINTER(DLTensor)).contents
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


NAME = b"dltensor"
# DLDataTypeCode of dlpack.h.
CODES = {"uint8": (1, 8), "float16": (2, 16), "float32": (2, 32), "bfloat16": (4, 16)}


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


# What a consumer still holds, by the address of its structure: it has only that address to give back.
_held: dict[int, tuple[Any, ...]] = {}


def dlpack_capsule(
    pointer: int, shape: tuple[int, ...], dtype: str, *, device: tuple[int, int], owner: object
) -> object:
    """Return a capsule named ``dltensor``, which `torch.from_dlpack` and its like consume.

    Args:
        pointer: Address of the first element; the memory is C-contiguous.
        shape: Elements along each axis.
        dtype: ``"uint8"``, ``"float16"``, ``"bfloat16"`` or ``"float32"``.
        device: DLPack's device type and the ordinal, ``(2, 0)`` for the first CUDA device.
        owner: Kept until the consumer, or the capsule that nobody consumed, is gone.
    """
    code, bits = CODES[dtype]
    axes = ctypes.c_int64 * len(shape)
    # Written out, although DLPack takes NULL for C-contiguous: not every consumer does.
    steps = [*itertools.accumulate(reversed(shape[1:]), lambda step, size: step * size, initial=1)][::-1]
    sizes, strides = axes(*shape), axes(*steps)
    tensor = DLTensor(pointer, *device, len(shape), code, bits, 1, sizes, strides, 0)
    managed = _Managed(tensor, None, _release)
    address = ctypes.addressof(managed)
    _held[address] = (managed, sizes, strides, owner)
    return _new_capsule(address, NAME, _destroy)


def _forget(address: int) -> None:
    _held.pop(address, None)


def _drop(capsule: int) -> None:
    # A consumer renames what it took over, and calls the deleter itself.
    if _is_valid(capsule, NAME):
        _forget(_get_pointer(capsule, NAME))


_release, _destroy = _Deleter(_forget), _Destructor(_drop)


@atexit.register
def _let_go() -> None:
    # Consumers in cycles outlive this module, and would call a function, and read a structure, that are freed by
    # then. Both stay to the end of the process, which takes the memory back.
    for held in (_release, _destroy, *_held.values()):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
    for managed, *_ in _held.values():
        managed.deleter = _Deleter()


# Prototypes of their own: the functions of ctypes.pythonapi are shared with whoever else sets their types.
_get_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# In a destructor the capsule is nothing that may be referred to: its address stands for it.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
