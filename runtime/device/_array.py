"""What a session leaves on the device: an array that other libraries take without a copy. Not run on a GPU so far."""

import math
from typing import Any

import numpy as np

from esrgan_deploy._errors import DeviceLostError, InferenceError
from esrgan_deploy.runtime.device._context import Device
from esrgan_deploy.runtime.device._dlpack import dlpack_capsule
from esrgan_deploy.runtime.device._resources import Event, StreamBuffer

__all__ = ["DeviceArray"]

KDLCUDA = 2
LEGACY_DEFAULT = 1


class DeviceArray:
    """An array on a CUDA device, C-contiguous, with ``__cuda_array_interface__`` (version 3) and DLPack.

    The memory is freed in the order of the stream that filled it, when the array and everything that was made of it
    by DLPack is gone. Whoever works on it on another stream keeps it until that work is over.

    Attributes:
        shape: Elements along each axis.
        dtype: Of the elements.
        device: Ordinal of the CUDA device.
        pointer: Address of the first element.
        stream: Handle of the stream that fills it.
    """

    def __init__(
        self, device: Device, memory: StreamBuffer, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.device, self.pointer, self.stream = device.ordinal, memory.pointer, memory.stream
        self._cuda, self._memory = device, memory

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Shape, type, address and stream; https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            # 0 is forbidden there, as it may mean two streams.
            "stream": self.stream or LEGACY_DEFAULT,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's type of the device, 2 for CUDA, and its ordinal."""
        return (KDLCUDA, self.device)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Return a capsule over the same memory, after having ordered it against the consumer's stream.

        Args:
            stream: The consumer's; None is the legacy default stream (1), -1 orders nothing.
            max_version: Not looked at: a capsule from before version 1 is what every consumer takes.
            dl_device: Where it is wanted; only where it is.
            copy: True is refused.

        Raises:
            BufferError: A copy or another device is asked for.
            ValueError: The stream is 0, which DLPack forbids for CUDA.
            InferenceError: The driver refuses.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError(
                f"the array stays on cuda:{self.device}, without a copy; ask for copy=None there"
            )
        if stream == 0:
            raise ValueError(
                "stream is 0; DLPack has 1 for CUDA's legacy default stream and 2 for the thread's"
            )
        self._order(LEGACY_DEFAULT if stream is None else stream)
        return dlpack_capsule(
            self.pointer, self.shape, self.dtype.name, device=self.__dlpack_device__(), owner=self
        )

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name}, device={self.device})"

    def _order(self, consumer: int) -> None:
        if consumer in (-1, self.stream):
            return
        try:
            with self._cuda.bound():
                event = Event(self._cuda)
                try:
                    event.record(self.stream)
                    event.order(consumer)
                finally:
                    # The driver keeps it until the consumer got past it.
                    event.close()
        except DeviceLostError:
            raise
        except InferenceError as error:
            raise InferenceError(
                f"the stream {consumer} cannot wait for the one that fills the array: {error}"
            ) from error
