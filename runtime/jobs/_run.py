"""One run of a job: its items, what is told of them at its beginning and end, and whether they fit on the disk."""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from esrgan_deploy.runtime.jobs._enlarge import size_of
from esrgan_deploy.runtime.jobs._events import JobEvent, JobResult
from esrgan_deploy.runtime.jobs._inputs import JobItem
from esrgan_deploy.runtime.jobs._journal import Journal

__all__ = ["Run"]


class Run:
    """What one run has to do.

    Args:
        journal: Where its items stand.
        entered: Of each the item, its state and why, as `Journal.enter` returns them.
        tell: Takes what happens.

    Attributes:
        items: Those that are in the journal, by their keys there.
        sizes: ``(height, width)`` of those that are to be done, (0, 0) where it is not known.
    """

    def __init__(
        self,
        journal: Journal,
        entered: Sequence[tuple[JobItem, str, str]],
        *,
        tell: Callable[[JobEvent], None],
    ) -> None:
        self._journal = journal
        self._entered = [one for one in entered if one[1]]
        self._tell = tell
        self._told: set[str] = set()
        self.items = {
            journal.key(item): item for item, state, _ in self._entered if state not in ("refused", "skipped")
        }
        self.sizes = {
            journal.key(item): size_of(item.source) for item, state, _ in self._entered if state == "pending"
        }

    def tell(self, event: JobEvent) -> None:
        """Hand on what happened."""
        if event.event == "failed":
            self._told.add(str(event.source))
        self._tell(event)

    def begin(self, output: Path, scale: float) -> None:
        """Tell how the job stands: its figures, what failed before or cannot be begun, what is passed over."""
        standing = self._journal.standing()
        refused = self._number("refused")
        self.tell(
            JobEvent(
                event="begin", output=str(output), items=len(self._entered),
                pending=standing["pending"] + standing["running"], done=standing["done"],
                failed=standing["failed"] + refused, skipped=self._number("skipped"),
                megapixels=round(sum(height * width for height, width in self.sizes.values()) / 1e6, 3),
            )
        )  # fmt: skip
        for item, state, reason in self._entered:
            if state in ("refused", "failed", "skipped"):
                told = JobEvent(
                    event="skipped" if state == "skipped" else "failed",
                    source=str(item.source),
                    output=str(item.output),
                    reason=reason,
                )
                self.tell(told)
        need, free = self._need(scale), shutil.disk_usage(output).free
        if need > free:
            short = f"the outputs may take {need / 2**20:,.1f} MiB and {output} has {free / 2**20:,.1f} left"
            self.tell(
                JobEvent(event="note", reason=f"{short}; where it is full the job stops, and can go on later")
            )

    def end(self, made: int, pixels: int, seconds: float) -> JobResult:
        """Tell how the job stands now, and return it.

        Args:
            made: Items that this run did.
            pixels: Of their outputs.
            seconds: What it took.
        """
        standing, failures = self._journal.standing(), self._journal.failures()
        failed = []
        for item, state, reason in self._entered:
            why = reason if state == "refused" else failures.get(self._journal.key(item))
            if why is not None:
                source = str(item.source)
                failed.append((source, why))
                # Another run had it in hand.
                if source not in self._told:
                    self.tell(JobEvent(event="failed", source=source, output=str(item.output), reason=why))
        result = JobResult(
            done=standing["done"],
            made=made,
            skipped=self._number("skipped"),
            failed=tuple(failed),
            pending=standing["pending"] + standing["running"],
            megapixels=round(pixels / 1e6, 3),
            seconds=round(seconds, 3),
        )
        self.tell(
            JobEvent(
                event="end", items=len(self._entered), pending=result.pending, done=result.done, failed=len(failed),
                skipped=result.skipped, megapixels=result.megapixels, seconds=result.seconds,
            )
        )  # fmt: skip
        return result

    def _number(self, wanted: str) -> int:
        return sum(state == wanted for _, state, _ in self._entered)

    def _need(self, scale: float) -> float:
        # Bytes, rather too many: a larger picture of the same kind takes no more of them a pixel than the smaller one
        # does, and one that becomes a PNG no more than a byte a sample.
        need = 0.0
        for key, (height, width) in self.sizes.items():
            item = self.items[key]
            if item.source.suffix.lower() != item.output.suffix.lower():
                need += 3 * height * width * scale**2
            elif height:
                # It may be gone since.
                with contextlib.suppress(OSError):
                    need += item.source.stat().st_size * scale**2
        return need
