"""A job: inputs, a folder for their outputs, and the journal in it."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esrgan_deploy._errors import MediaError
from esrgan_deploy._files import owned_file
from esrgan_deploy.runtime.jobs._events import JobEvent, JobResult
from esrgan_deploy.runtime.jobs._inputs import JobItem, items_of
from esrgan_deploy.runtime.jobs._journal import Journal
from esrgan_deploy.runtime.jobs._run import Run
from esrgan_deploy.runtime.jobs._work import Work
from esrgan_deploy.runtime.pictures import MAX_PIXELS

if TYPE_CHECKING:
    from esrgan_deploy.runtime import Upscaler

__all__ = ["Job"]


class Job:
    """Folders and lists of pictures, each enlarged once, whatever ends the process in between.

    ```python
    job = Job(["photographs"], "enlarged")
    with Upscaler() as up:
        result = job.run(up, on_event=print)
    for source, reason in result.failed: ...
    ```

    Beside the outputs lies a journal, ``.esrgan-job.sqlite``: the same job goes on where one ended, and several
    processes share one. One file that cannot be done stops no other.

    Args:
        inputs: Files, folders (with those in them; their structure is kept), and patterns such as
            ``photographs/**/*.jpg``.
        output: A folder, which is made. An output has its input's name; a suffix that is not written becomes
            ``.png``.
        include: Patterns, such as ``*.jpg`` or ``2024/*``, of which an input's name, or its path below its folder,
            must match one; empty takes what has the suffix of a picture.
        exclude: Patterns of which neither may match one.
        skip_existing: Whether an output that is there before the job counts as done; else its item fails.
        force: Whether it is replaced, and whether outputs that the journal has of another model or other options are
            made again.
        retry_failed: Whether those that failed are tried again, and nothing else. Without it they are again when
            their file has changed.
        max_pixels: See `read_picture`.

    Attributes:
        output: The folder.
    """

    def __init__(
        self,
        inputs: Sequence[str | Path],
        output: str | Path,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        skip_existing: bool = False,
        force: bool = False,
        retry_failed: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.output = Path(output)
        self._inputs = tuple(Path(path) for path in inputs)
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        self._skip_existing = skip_existing
        self._force = force
        self._retry_failed = retry_failed
        self._max_pixels = max_pixels
        self._stopped = threading.Event()

    def look(self) -> list[tuple[JobItem, str, str]]:
        """Return of each item how it stands and why, and change nothing.

        Returns:
            ``(item, state, reason)`` in order; the state is ``"pending"``, ``"running"`` (in a run that may be dead),
            ``"done"``, ``"failed"``, ``"skipped"``, ``"refused"`` where it cannot be begun, or empty where
            ``retry_failed`` leaves it out.

        Raises:
            MediaError: There is nothing to do, ``output`` is an input, or the journal cannot be read.
        """
        journal = Journal(self.output, write=False)
        try:
            return self._enter(journal)
        finally:
            journal.close()

    def changes(self, upscaler: "Upscaler") -> list[str]:
        """Return what differs from how the journal's outputs were made, ``"tile: 64, was 'auto'"``; mostly nothing.

        Raises:
            MediaError: The journal cannot be read.
            OSError: The model's file is gone.
        """
        journal = Journal(self.output, write=False)
        try:
            before = journal.settings()
        finally:
            journal.close()
        return [] if before is None else _differences(before, upscaler.settings)

    def run(
        self,
        upscaler: "Upscaler",
        *,
        remake: bool = False,
        on_event: Callable[[JobEvent], None] = lambda event: None,
    ) -> JobResult:
        """Work off what is left, and wait for what other processes have in hand.

        Args:
            upscaler: Enlarges; it stays open.
            remake: Whether what the journal has of another model or other options, see `changes`, is made again.
            on_event: Takes what happens, from several threads but one at a time.

        Raises:
            DeviceLostError: No device is left. What was in hand is left for another run, as with the errors below.
            MediaError: There is nothing to do, ``output`` is an input or cannot be written, the disk is full, or the
                journal is of another model or other options and neither ``force`` nor ``remake`` is on.
            OSError: ``output`` cannot be written.
        """
        started = time.monotonic()
        differences = self.changes(upscaler)
        if differences and not (self._force or remake):
            raise MediaError(
                f"{self.output} was begun with another model or options ({'; '.join(differences)}); give those "
                "again, give another folder with -o, or give --force to make all of it again"
            )
        items = self._items()
        self._make_output()
        with owned_file(self.output) as owner:
            journal = Journal(self.output)
            try:
                settings = upscaler.settings
                journal.adopt(settings)
                run = Run(journal, self._enter(journal, items), tell=on_event)
                run.begin(self.output, float(upscaler.info.scale))
                work = Work(
                    journal, run.items, run.sizes, upscaler, max_pixels=self._max_pixels, tell=run.tell,
                    settings_sha256=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
                )  # fmt: skip
                work.run(owner.name, self._stopped)
                return run.end(work.made, work.pixels, time.monotonic() - started)
            finally:
                journal.close()

    def stop(self) -> None:
        """End the run after the items in hand; from any thread."""
        self._stopped.set()

    def _items(self) -> list[JobItem]:
        return items_of(self._inputs, self.output, include=self._include, exclude=self._exclude)

    def _enter(self, journal: Journal, items: list[JobItem] | None = None) -> list[tuple[JobItem, str, str]]:
        items = self._items() if items is None else items
        entered = iter(
            journal.enter(
                [item for item in items if not item.refusal],
                force=self._force,
                skip_existing=self._skip_existing,
                retry_failed=self._retry_failed,
            )
        )
        return [(item, "refused", item.refusal) if item.refusal else next(entered) for item in items]

    def _make_output(self) -> None:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MediaError(
                f"{self.output} cannot be made a folder ({error.strerror}); give another with -o"
            ) from error


def _differences(before: dict[str, object], now: dict[str, object]) -> list[str]:
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if "model" in names:
        # That its digest is another goes without saying.
        names.remove("model_sha256")
    return [f"{name}: {_short(now.get(name))}, was {_short(before.get(name))}" for name in names]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:13]}…'"
