"""What a job tells while it runs, and what it returns."""

import dataclasses
import json
from typing import Any, Literal

__all__ = ["JobEvent", "JobResult"]

Kind = Literal["begin", "running", "done", "failed", "skipped", "note", "end"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One thing that happened; what does not concern its kind is None.

    Attributes:
        event: ``"begin"``, once; of each item ``"running"`` and then ``"done"`` or ``"failed"``, or ``"failed"`` or
            ``"skipped"`` at once; ``"note"`` for what is worth knowing; ``"end"``, once.
        source: The item's input.
        output: What is written for it; of ``"begin"`` the folder.
        reason: Why it failed or was skipped, or what the note says; one line.
        size: ``(height, width)`` of the input.
        output_size: ``(height, width)`` of the output.
        seconds: What the item took, or the run.
        notes: What was left out of the output, one sentence each.
        items: Items in all.
        pending: Of them, those not yet done by anyone.
        done: Those that are done, now or earlier.
        failed: Those that failed.
        skipped: Those whose output was there.
        megapixels: Of the outputs that this run made; of ``"begin"``, of the inputs that it is to read.
    """

    event: Kind
    source: str | None = None
    output: str | None = None
    reason: str | None = None
    size: tuple[int, int] | None = None
    output_size: tuple[int, int] | None = None
    seconds: float | None = None
    notes: tuple[str, ...] | None = None
    items: int | None = None
    pending: int | None = None
    done: int | None = None
    failed: int | None = None
    skipped: int | None = None
    megapixels: float | None = None

    def as_json(self) -> str:
        r"""Return it as one line of JSON in ASCII, without what is None.

        A byte of a name that is no UTF-8 is a lone surrogate, ``\udc80`` to ``\udcff``, as `os.fsencode` takes it.
        """
        given: dict[str, Any] = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return json.dumps(given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobResult:
    """How a job stands after a run.

    Attributes:
        done: Items whose output is there, from this run, an earlier or another one.
        made: Those of this run.
        skipped: Items whose output was there before the job.
        failed: ``(source, reason)`` of each that failed, in the order of the items.
        pending: Items that are left, of a run that was stopped.
        megapixels: Of the outputs that this run made.
        seconds: What the run took.
    """

    done: int
    made: int
    skipped: int
    failed: tuple[tuple[str, str], ...]
    pending: int
    megapixels: float
    seconds: float
