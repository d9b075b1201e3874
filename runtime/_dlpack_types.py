"""The one structure that every DLPack capsule holds (dlpack.h, https://dmlc.github.io/dlpack)."""

import ctypes

__all__ = ["DLTensor"]


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
