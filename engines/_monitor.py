"""What is heard of TensorRT while it builds, and how a build is stopped."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from esrgan_deploy._flavour import Flavour

__all__ = ["BuildLog", "Progress", "Stop", "progress_monitor", "stopped_by_ctrl_c"]

Progress = Callable[[str, int, int], None]


class BuildLog:
    """A listener that keeps the few messages of a build that are read again, of tens of thousands."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""
        self.bytes: dict[str, int] = {}

    def __call__(self, severity: str, message: str) -> None:
        """Take a message from TensorRT."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
        elif severity == "WARNING":
            self.warnings.append(message)
        elif message.startswith("Layers:"):
            self.layers = message
        elif message.startswith(("Total Activation Memory: ", "Total Weights Memory: ")):
            what, _, amount = message.partition(": ")
            with contextlib.suppress(ValueError):
                self.bytes[what] = int(amount.split()[0])


class Stop:
    """Whether a build is to end early, and with which exception."""

    def __init__(self) -> None:
        self.reason: BaseException | None = None

    def ask(self, reason: BaseException) -> None:
        """Ask for the end; the first reason is kept."""
        self.reason = self.reason or reason

    def raise_if_asked(self) -> None:
        """Raise the reason, if there is one."""
        if self.reason is not None:
            raise self.reason


@contextlib.contextmanager
def stopped_by_ctrl_c() -> Iterator[Stop]:
    """Turn Ctrl-C inside the block into a request to stop, which the block has to look at.

    A KeyboardInterrupt raised inside one of TensorRT's callbacks would have to travel through C++. Python
    runs signal handlers between bytecodes of the main thread alone: elsewhere, or where the program
    handles Ctrl-C itself, everything stays as it is.

    Yields:
        What the block asks, now and then, whether it is to stop.
    """
    stop = Stop()

    def handler(_number: int, _frame: FrameType | None) -> None:
        stop.ask(KeyboardInterrupt())

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def progress_monitor(flavour: Flavour, stop: Stop, progress: Progress | None) -> Any:
    """Return an ``IProgressMonitor`` that reports to ``progress(phase, step, total)`` and stops when asked.

    What `progress` raises stops the build as well. The caller keeps the object alive until the build is over.
    """
    base = flavour.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.totals[phase] = steps
            self.report(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self.report(phase, step + 1)
            return stop.reason is None and flavour.logger.raised is None

        def phase_finish(self, phase: str) -> None:
            return None

        def report(self, phase: str, step: int) -> None:
            if progress is None or stop.reason is not None:
                return
            try:
                progress(phase, step, self.totals.get(phase, 0))
            # Nothing may travel through TensorRT's frames; it is raised after the build.
            except BaseException as error:
                stop.ask(error)

    return Monitor()
