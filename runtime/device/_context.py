"""A CUDA context that is joined or retained. Not run on a GPU so far."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime.device._driver import call, gpu_label, quietly

__all__ = ["Device"]

# One for each device, for all sessions of the process.
_EXCLUSIVE: dict[int, threading.RLock] = {}


class Device:
    """A device and the context in which everything of a session lives.

    Joins the context that is current in the constructing thread, whoever made it, where it is one of the wanted
    device; else retains the device's primary context, which PyTorch, CuPy and the CUDA runtime use.

    It is counted: whoever keeps it longer than its maker calls `retain` once and `close` once, and the context is
    released with the last of them.

    `exclusive` is held by a thread that captures a graph, and by each that does what breaks the captures of other
    threads: waiting for the whole context, and making contexts, CUDA's or TensorRT's. What the host program does is
    not kept apart, so that a capture may be broken all the same.

    Args:
        ordinal: In CUDA's own order, among the visible devices.

    Raises:
        InferenceError: There is no driver or no such device, or it refuses.
    """

    def __init__(self, ordinal: int) -> None:
        call("cuInit", 0)
        count = int(call("cuDeviceGetCount"))
        if ordinal >= count:
            found = ", ".join(gpu_label(one) for one in range(count)) or "none"
            raise InferenceError(f"there is no cuda:{ordinal}; visible are {found}, in CUDA's own order")
        self.ordinal = ordinal
        self._lock = threading.Lock()
        self.exclusive = _EXCLUSIVE.setdefault(ordinal, threading.RLock())
        self._holders = 1
        current = int(call("cuCtxGetCurrent"))
        self.joined = bool(current) and int(call("cuCtxGetDevice")) == ordinal
        self._handle = int(call("cuDeviceGet", ordinal))
        with self.exclusive:
            self.context = current if self.joined else int(call("cuDevicePrimaryCtxRetain", self._handle))

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """Make the context current in this thread for the block, and whatever was current again after it.

        The thread may be the caller's, who goes on with a context of his own.

        Raises:
            InferenceError: The driver refuses, or the context is released.
        """
        if not self._holders:
            raise InferenceError(f"the context of cuda:{self.ordinal} is released; open the session again")
        before = int(call("cuCtxGetCurrent"))
        if before == self.context:
            yield
            return
        call("cuCtxSetCurrent", self.context)
        try:
            yield
        finally:
            quietly("cuCtxSetCurrent", before)

    def memory(self) -> tuple[int, int]:
        """Return the bytes of the device's memory that are free, and all of them.

        Raises:
            InferenceError: The driver refuses.
        """
        with self.bound():
            free, total = call("cuMemGetInfo")
        return int(free), int(total)

    def synchronize(self) -> None:
        """Wait for everything that was enqueued in the context.

        Raises:
            InferenceError: Something of it failed.
        """
        with self.bound(), self.exclusive:
            call("cuCtxSynchronize")

    def retain(self) -> "Device":
        """Keep the context until one more `close`, and return this device.

        Raises:
            InferenceError: It was released already.
        """
        with self._lock:
            if not self._holders:
                raise InferenceError(
                    f"the context of cuda:{self.ordinal} is released; open the session again"
                )
            self._holders += 1
        return self

    def close(self) -> None:
        """Let go of the context; the last to do so releases it, if it was not joined."""
        with self._lock:
            ended = self._holders == 1
            self._holders = max(0, self._holders - 1)
        if ended and not self.joined:
            quietly("cuDevicePrimaryCtxRelease", self._handle)

    def discard(self, name: str, *arguments: object) -> None:
        """Call a function that releases something in the context, whatever comes of it."""
        with contextlib.suppress(InferenceError), self.bound():
            quietly(name, *arguments)
            return
        # The context cannot be bound. What was never asked for is certainly kept.
        quietly(name, *arguments)

    def releases(
        self, owner: object, name: str, *arguments: object, keep: object = None
    ) -> "weakref.finalize[..., Any]":
        """Keep the context for an object, and return what releases that object: once, called or when it is collected.

        Args:
            owner: The object.
            name: Of the driver's function that releases it.
            arguments: Of that function.
            keep: What has to live until then.
        """
        end = weakref.finalize(owner, self.retain()._release, name, arguments, keep)
        # Not at exit: by then the driver may be gone, and the system takes everything back anyway.
        end.atexit = False
        return end

    def _release(self, name: str, arguments: tuple[object, ...], _keep: object) -> None:
        self.discard(name, *arguments)
        self.close()
