"""One batch in flight on a CUDA device in PyTorch. Not run on a GPU so far."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime.sessions import Array, BatchOutput, SessionInfo, check_size, output_shape

__all__ = ["TorchCudaSlot"]


class TorchCudaSlot:
    """Pinned buffers and a stream of its own; see `Slot` for the protocol.

    Args:
        info: Of the session.
        device: A CUDA device.
        forward: Enlarges a tensor on the current stream.
        translated: Makes errors of PyTorch those of this package, with a phrase for what was done.
    """

    def __init__(
        self,
        info: SessionInfo,
        device: torch.device,
        forward: Callable[[Tensor], Tensor],
        translated: Callable[[str], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._info, self._forward, self._translated = info, forward, translated
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._shape: tuple[int, int, int] | None = None
        self._batch: Tensor | None = None
        self._made: Tensor | None = None

    def prepare(self, shape: tuple[int, int, int]) -> Array:
        """Return the pinned batch to fill; see `Slot.prepare`."""
        if self._batch is None or shape != self._shape:
            check_size(self._info, shape)
            self._batch = self._made = None
            dtype = getattr(torch, self._info.dtype.name)
            with self._translated("pinned buffers"):
                self._batch = torch.empty(self._info.batch_shape(*shape), dtype=dtype, pin_memory=True)
                self._made = torch.empty(output_shape(self._info, shape), dtype=dtype, pin_memory=True)
            self._shape = shape
        batch: Array = self._batch.numpy()
        return batch

    def start(self) -> None:
        """Enqueue upload, inference and download; see `Slot.start`.

        Raises:
            InferenceError: It was not prepared, or the device refuses it.
        """
        if self._batch is None or self._made is None:
            raise InferenceError(f"a slot of {self._info.name} was started before it was prepared")
        with self._translated(f"a batch of {self._shape}"), torch.cuda.stream(self._stream):
            uploaded = self._batch.to(self._stream.device, non_blocking=True)
            self._made.copy_(self._forward(uploaded), non_blocking=True)
            self._done.record(self._stream)

    def finish(self) -> BatchOutput:
        """Wait for the batch; see `Slot.finish`.

        Raises:
            InferenceError: It was not prepared, or the batch failed on the device.
        """
        if self._made is None:
            raise InferenceError(f"a slot of {self._info.name} was asked for what it was not given")
        with self._translated(f"a batch of {self._shape}"):
            self._done.synchronize()
        return BatchOutput(self._made.numpy())

    def close(self) -> None:
        """Drop the buffers; a second call does nothing."""
        self._batch = self._made = None
