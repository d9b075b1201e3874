"""A slot over something that computes a batch in one blocking call."""

import contextlib
from collections.abc import Callable
from typing import Any

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime.sessions._checks import new_batch
from esrgan_deploy.runtime.sessions._protocol import Array, BatchOutput, Parts, SessionInfo

__all__ = ["HostSlot"]


class HostSlot:
    """Buffers in ordinary memory; see `Slot` for the protocol.

    Args:
        info: Of the session.
        compute: Takes an input batch and returns what was made of it; raises InferenceError.
        turn: What is held while it computes: a lock, as two at once would only slow each other down.
        parts: Opens what `PartsSlot.parts` is.
    """

    def __init__(
        self,
        info: SessionInfo,
        compute: Callable[[Array], BatchOutput],
        turn: contextlib.AbstractContextManager[Any],
        parts: Callable[[], Parts] | None = None,
    ) -> None:
        self._info, self._compute, self._turn, self._parts = info, compute, turn, parts
        self._batch: Array | None = None
        self._made: BatchOutput | None = None

    @property
    def parts(self) -> Parts:
        """What runs the parts of the graph; see `PartsSlot.parts`."""
        assert self._parts is not None
        return self._parts()

    def prepare(self, shape: tuple[int, int, int]) -> Array:
        """Return the batch to fill; see `Slot.prepare`.

        Raises:
            InferenceError: The session does not take that shape.
            OutOfMemoryError: The batch does not fit into memory.
        """
        wanted = self._info.batch_shape(*shape)
        self._made = None
        if self._batch is None or self._batch.shape != wanted:
            # The old buffer is let go of first: both at once may be what does not fit.
            self._batch = None
            self._batch = new_batch(self._info, shape)
        return self._batch

    def start(self) -> None:
        """Compute the batch, and wait for a turn to do so.

        Raises:
            InferenceError: It was not prepared, or it failed.
        """
        if self._batch is None:
            raise InferenceError(f"a slot of {self._info.name} was started before it was prepared")
        with self._turn:
            self._made = self._compute(self._batch)

    def finish(self) -> BatchOutput:
        """Return what was made; see `Slot.finish`.

        Raises:
            InferenceError: Nothing was started.
        """
        if self._made is None:
            raise InferenceError(f"a slot of {self._info.name} was asked for what it was not given")
        return self._made

    def close(self) -> None:
        """Drop the buffers."""
        self._batch = self._made = None
