"""A DLPack capsule over memory of one's own (dlpack.h, https://dmlc.github.io/dlpack)."""

import atexit
import ctypes
import itertools
from typing import Any

from esrgan_deploy.runtime._dlpack_types import DLTensor

__all__ = ["dlpack_capsule"]

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
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
