"""A job: inputs, a folder for their outputs, and the journal in it."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esrgan_deploy._errors import MediaError
from esrgan_deploy._files import owned_file
from esrgan_deploy.runtime.jobs._enlarge import size_of
from esrgan_deploy.runtime.jobs._events import JobEvent, JobResult
from esrgan_deploy.runtime.jobs._inputs import JobItem, items_of
from esrgan_deploy.runtime.jobs._journal import Journal
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
            ``"done"``, ``"failed"``, ``"skipped"``, or ``"refused"`` where it cannot be begun.

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
        self, upscaler: "Upscaler", *, on_event: Callable[[JobEvent], None] = lambda event: None
    ) -> JobResult:
        """Work off what is left, and wait for what other processes have in hand.

        Args:
            upscaler: Enlarges; it stays open.
            on_event: Takes what happens, from several threads but one at a time.

        Raises:
            DeviceLostError: No device is left. What was in hand is left for another run, as with the errors below.
            MediaError: There is nothing to do, ``output`` is an input or cannot be written, the disk is full, or the
                journal is of another model or other options and ``force`` is off.
        """
        started = time.monotonic()
        differences = self.changes(upscaler)
        if differences and not self._force:
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
                journal.take_back()
                entered = self._enter(journal, items)
                return self._run(journal, upscaler, entered, owner.name, started, on_event)
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

    def _run(
        self,
        journal: Journal,
        upscaler: "Upscaler",
        entered: list[tuple[JobItem, str, str]],
        owner: str,
        started: float,
        tell: Callable[[JobEvent], None],
    ) -> JobResult:
        items = {
            journal.key(item): item for item, state, _ in entered if state not in ("refused", "skipped", "")
        }
        todo = [(journal.key(item), item) for item, state, _ in entered if state == "pending"]
        sizes = {key: size_of(item.source) for key, item in todo}
        skipped = [(item, reason) for item, state, reason in entered if state == "skipped"]
        refused = {str(item.source): reason for item, state, reason in entered if state == "refused"}
        earlier = {
            str(item.source): reason for item, state, reason in entered if state in ("refused", "failed")
        }
        standing = journal.standing()
        tell(
            JobEvent(
                event="begin", output=str(self.output), items=len(items) + len(skipped) + len(refused),
                pending=standing["pending"] + standing["running"], done=standing["done"],
                failed=standing["failed"] + len(refused), skipped=len(skipped),
                megapixels=sum(height * width for height, width in sizes.values()) / 1e6,
            )
        )  # fmt: skip
        for source, reason in earlier.items():
            tell(JobEvent(event="failed", source=source, reason=reason))
        for item, reason in skipped:
            tell(JobEvent(event="skipped", source=str(item.source), output=str(item.output), reason=reason))
        if short := self._short_of_space(todo, sizes, upscaler):
            tell(JobEvent(event="note", reason=short))
        digest = hashlib.sha256(json.dumps(upscaler.settings, sort_keys=True).encode()).hexdigest()
        work = Work(
            journal, items, sizes, upscaler, settings_sha256=digest, max_pixels=self._max_pixels, tell=tell
        )  # fmt: skip
        work.run(owner, self._stopped)
        standing = journal.standing()
        failures = journal.failures()
        failed = {str(items[key].source): reason for key, reason in failures.items()} | refused
        result = JobResult(
            done=standing["done"],
            made=work.made,
            skipped=len(skipped),
            failed=tuple(
                (str(i.source), failed[str(i.source)]) for i, _, _ in entered if str(i.source) in failed
            ),
            pending=standing["pending"] + standing["running"],
            megapixels=work.pixels / 1e6,
            seconds=time.monotonic() - started,
        )
        tell(
            JobEvent(
                event="end", items=len(items) + len(skipped) + len(refused), pending=result.pending,
                done=result.done, failed=len(result.failed), skipped=result.skipped,
                megapixels=round(result.megapixels, 3), seconds=round(result.seconds, 3),
            )
        )  # fmt: skip
        return result

    def _short_of_space(
        self,
        todo: list[tuple[bytes, JobItem]],
        sizes: dict[bytes, tuple[int, int]],
        upscaler: "Upscaler",
    ) -> str:
        # A larger picture of the same kind takes at most as many bytes a pixel; where the kind changes, at most a
        # byte a sample.
        need = 0.0
        for key, item in todo:
            height, width = sizes[key]
            if item.source.suffix.lower() == item.output.suffix.lower() and height:
                need += item.source.stat().st_size * float(upscaler.info.scale) ** 2
            else:
                need += height * width * 3 * float(upscaler.info.scale) ** 2
        free = shutil.disk_usage(self.output).free
        if need <= free:
            return ""
        return (
            f"the outputs may take {need / 2**30:.1f} GiB and {self.output} has {free / 2**30:.1f}; "
            "where it is full the job ends and can go on later"
        )

    def _make_output(self) -> None:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MediaError(
                f"{self.output} cannot be made a folder ({error.strerror}); give another with -o"
            ) from error


def _differences(before: dict[str, object], now: dict[str, object]) -> list[str]:
    return [
        f"{name}: {now.get(name)!r}, was {before.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
