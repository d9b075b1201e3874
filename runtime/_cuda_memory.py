"""Pinned memory, device memory, and memory that a stream allocates and frees. Not run on a GPU so far.

Each object owns one allocation, keeps its device's context until that is freed, is closed as often as one likes, and
when it is collected at the latest.
"""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy.runtime._cuda import call
from esrgan_deploy.runtime._cuda_device import Device

__all__ = ["DeviceBuffer", "PinnedBuffer", "StreamBuffer"]


class PinnedBuffer:
    """Page-locked memory of the processor, which the device copies from and to by itself.

    Views of it outlive it: the memory is freed when the buffer is closed and the last view is gone, so that a result
    which a caller kept is never an address of nothing.

    Args:
        device: Whose context the memory belongs to; current in the calling thread.
        size: Bytes.

    Raises:
        OutOfMemoryError: So much cannot be pinned.
    """

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        self.pointer = int(call("cuMemHostAlloc", size, 0))
        self._memory: Any = (ctypes.c_ubyte * size).from_address(self.pointer)
        device.releases(self._memory, "cuMemFreeHost", self.pointer)

    def view(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the front of the memory as an array, C-contiguous."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._memory, dtype, count).reshape(shape)

    def close(self) -> None:
        """Free the memory as soon as nothing looks at it any more; a second call does nothing."""
        self._memory = None


class DeviceBuffer:
    """Memory of the device, aligned to 256 bytes as the driver does it.

    Args:
        device: Its context is current in the calling thread.
        size: Bytes.

    Raises:
        OutOfMemoryError: There is not so much free.
    """

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        self.pointer = int(call("cuMemAlloc", size))
        self._end = device.releases(self, "cuMemFree", self.pointer)

    def close(self) -> None:
        """Free the memory, once the device is done with it; a second call does nothing."""
        self._end()


class StreamBuffer:
    """Memory of the device, allocated and freed in a stream's order: neither waits for anything.

    Args:
        device: Its context is current in the calling thread.
        size: Bytes.
        stream: Handle of the stream.
        owner: Keeps the stream alive until the memory is freed; None where its maker promised to.

    Raises:
        OutOfMemoryError: There is not so much free.
    """

    def __init__(self, device: Device, size: int, stream: int, owner: object = None) -> None:
        self.size = size
        self.stream = stream
        self.pointer = int(call("cuMemAllocAsync", size, stream))
        self._device = device
        self._end = device.releases(self, "cuMemFreeAsync", self.pointer, stream, keep=owner)

    def close(self) -> None:
        """Free the memory when the stream gets there; a second call does nothing."""
        self._end()

    def close_idle(self) -> None:
        """Free the memory now, whose last use is known to be over: the stream itself may be gone."""
        if self._end.detach() is not None:
            self._device.discard("cuMemFree", self.pointer)
            self._device.close()
