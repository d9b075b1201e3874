"""Several items in hand at once, so that one is read and one written while a third is computed."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from esrgan_deploy._errors import DeviceLostError, MissingDependencyError
from esrgan_deploy.runtime.device import processor_memory
from esrgan_deploy.runtime.jobs._enlarge import HANDLERS, is_full, reason_of
from esrgan_deploy.runtime.jobs._events import JobEvent
from esrgan_deploy.runtime.jobs._inputs import JobItem
from esrgan_deploy.runtime.jobs._journal import Journal
from esrgan_deploy.runtime.jobs._rows import Stamp

if TYPE_CHECKING:
    from esrgan_deploy.runtime import Upscaler

__all__ = ["Work"]

IN_HAND = 3

# Seconds between two looks at what another run has in hand.
PAUSE = 0.25

# Bytes of a pixel that has most: four channels of 16 bits.
PIXEL = 8


class Work:
    """The items of one run, worked off.

    Args:
        journal: Where they are claimed.
        items: By their keys there.
        sizes: Their heights and widths, as far as they are known.
        upscaler: Enlarges them.
        settings_sha256: Digest of what decides how they look.
        max_pixels: See `Job`.
        tell: Takes what happens, from one thread at a time.
    """

    def __init__(
        self,
        journal: Journal,
        items: Mapping[bytes, JobItem],
        sizes: Mapping[bytes, tuple[int, int]],
        upscaler: "Upscaler",
        *,
        settings_sha256: str,
        max_pixels: int,
        tell: Callable[[JobEvent], None],
    ) -> None:
        self.made = 0
        self.pixels = 0
        self._journal = journal
        self._items = items
        self._sizes = sizes
        self._upscaler = upscaler
        self._settings = settings_sha256
        self._max_pixels = max_pixels
        self._tell = tell
        self._gate = _Gate()
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def run(self, owner: str, stopped: threading.Event) -> None:
        """Work off what nobody else has, and wait for what others have in hand, until all is settled or stopped.

        Args:
            owner: Name of the file that this process holds.
            stopped: Set from outside to end after the items in hand.

        Raises:
            MediaError: The disk is full, or the journal cannot be written.
            DeviceLostError: No device is left.
        """
        while True:
            self._all_hands(owner, stopped)
            if self._error is not None:
                raise self._error
            if stopped.is_set():
                return
            for key in self._journal.take_back():
                if key in self._items:
                    source = str(self._items[key].source)
                    self._say(JobEvent(event="note", source=source, reason="taken over of a run that died"))
            standing = self._journal.standing()
            if not standing["pending"]:
                if not standing["running"]:
                    return
                stopped.wait(PAUSE)

    def _all_hands(self, owner: str, stopped: threading.Event) -> None:
        # Daemons: after a second Ctrl-C nobody waits for them.
        threads = [
            threading.Thread(target=self._hand, args=(owner, stopped), daemon=True, name=f"esrgan-job-{i}")
            for i in range(IN_HAND)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                # With a limit, so that a signal is heard on every system.
                thread.join(1.0)

    def _hand(self, owner: str, stopped: threading.Event) -> None:
        try:
            while not stopped.is_set() and self._error is None:
                claimed = self._journal.claim(owner)
                if claimed is None:
                    return
                key, attempts = claimed
                height, width = self._sizes.get(key, (0, 0))
                need = height * width * PIXEL * (1 + math.ceil(self._upscaler.info.scale**2))
                with self._gate.room(need):
                    self._one(key, attempts)
        except BaseException as error:
            self._error = self._error or error

    def _one(self, key: bytes, attempts: int) -> None:
        item = self._items[key]
        source, output, size = str(item.source), str(item.output), self._sizes.get(key, (0, 0))
        self._say(JobEvent(event="running", source=source, output=output, size=size))
        if attempts:
            self._say(JobEvent(event="note", source=source, reason="a run died with it in hand: again"))
        started = time.monotonic()
        stamp = None
        try:
            stamp = Stamp.of(item.source)
            made = HANDLERS[item.kind](item, self._upscaler, self._max_pixels)
        except (DeviceLostError, MissingDependencyError):
            # What follows would fail as well.
            self._journal.give_back(key)
            raise
        except Exception as error:
            if is_full(error):
                self._journal.give_back(key)
                raise
            reason = reason_of(error, item.source)
            self._journal.fail(key, reason, stamp)
            self._say(JobEvent(event="failed", source=source, output=output, size=size, reason=reason))
            return
        self._journal.finish(key, made, self._settings)
        with self._lock:
            self.made += 1
            self.pixels += made.made_size[0] * made.made_size[1]
        seconds = round(time.monotonic() - started, 3)
        self._say(
            JobEvent(
                event="done", source=source, output=output, size=made.size, output_size=made.made_size,
                seconds=seconds, notes=made.notes,
            )
        )  # fmt: skip

    def _say(self, event: JobEvent) -> None:
        with self._lock:
            self._tell(event)


class _Gate:
    """Lets as many in as half of the free memory holds, or one alone."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._left = processor_memory().free_bytes // 2
        self._inside = 0

    @contextlib.contextmanager
    def room(self, need: int) -> Iterator[None]:
        """Wait until there is room for so many bytes, and hold it."""
        with self._turn:
            self._turn.wait_for(lambda: self._inside == 0 or need <= self._left)
            self._inside += 1
            self._left -= need
        try:
            yield
        finally:
            with self._turn:
                self._inside -= 1
                self._left += need
                self._turn.notify_all()
