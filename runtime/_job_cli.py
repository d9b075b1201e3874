"""What esrgan-upscale does with folders and lists."""

import contextlib
import dataclasses
import glob
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from esrgan_deploy._command_line import option
from esrgan_deploy._console import note, say
from esrgan_deploy._errors import MediaError
from esrgan_deploy.runtime.jobs import is_folder

if TYPE_CHECKING:
    from esrgan_deploy.runtime import Job, JobResult, Upscaler

__all__ = ["JobOptions", "agreed", "is_job", "list_job", "run_job"]

# What a script tells from a command that could not be run at all.
SOME_FAILED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What concerns folders and lists alone."""

    skip_existing: bool = option(
        False,
        group="folders and lists",
        help="pass over an input whose output is there; without this and --force it fails",
    )
    retry_failed: bool = option(False, help="do those again that failed before, and nothing else")
    dry_run: bool = option(False, help="list what would be done, and do nothing")
    include: tuple[str, ...] = option(
        (),
        metavar="PATTERN[,...]",
        help="what to take from folders, such as '*.jpg,2024/*', by name or path below the folder (default: what "
        "has the suffix of a picture)",
    )
    exclude: tuple[str, ...] = option((), metavar="PATTERN[,...]", help="what to leave out, likewise")
    json: bool = option(False, help="print one event a line as JSON; docs/jobs.md lists them")


def is_job(inputs: Sequence[Path], output: str | None) -> bool:
    """Return whether a command line speaks of a folder or a list, and not of one file that becomes another."""
    if output is not None and (output.endswith(("/", os.sep)) or is_folder(Path(output))):
        return True
    (first, *more) = inputs
    return bool(more) or is_folder(first) or (glob.has_magic(str(first)) and not os.path.lexists(first))


def list_job(job: "Job", *, json: bool) -> int:
    """Say what a job would do, and return the exit status."""
    from esrgan_deploy.runtime import JobEvent

    counts: dict[str, int] = {}
    for item, state, reason in job.look():
        state = state or "passed over"
        counts[state] = counts.get(state, 0) + 1
        if json:
            kind = {"pending": "pending", "running": "running", "done": "done", "skipped": "skipped"}
            event = JobEvent(
                event=kind.get(state, "failed"),  # type: ignore[arg-type]
                source=str(item.source),
                output=str(item.output),
                reason=reason or None,
            )
            say(event.as_json())
        elif state == "pending":
            say(f"{item.source} -> {item.output}")
        else:
            say(f"{item.source}: {state}{': ' * bool(reason)}{reason}")
    if not json:
        say(", ".join(f"{number} {state}" for state, number in counts.items()) + "; nothing was done")
    return 0


def run_job(job: "Job", upscaler: "Upscaler", *, remake: bool, command: str, json: bool) -> int:
    """Run a job, show it, and return the exit status: 3 where some failed."""
    from esrgan_deploy.runtime.jobs import shown

    with _asked_to_stop(job, command), shown(command, json=json) as tell:
        result = job.run(upscaler, remake=remake, on_event=tell)
    if not json:
        _sum_up(job, result, command)
    if result.pending:
        note(f"{command}: stopped; {result.pending} are left, and the same command goes on with them")
        return 130
    return SOME_FAILED if result.failed else 0


def agreed(job: "Job", upscaler: "Upscaler") -> bool:
    """Ask whether to make all of a job again that was begun otherwise; False without a question where it was not.

    Raises:
        MediaError: The answer is no.
    """
    changes = job.changes(upscaler)
    if not changes:
        return False
    if sys.stdin is None or sys.stderr is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        # The job refuses, and says what to do.
        return False
    note(f"{job.output} was begun with another model or options: {'; '.join(changes)}")
    sys.stderr.write("Make all of it again with these? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise MediaError(f"{job.output} was left as it is; give its options again, or another folder with -o")
    return True


@contextlib.contextmanager
def _asked_to_stop(job: "Job", command: str) -> Iterator[None]:
    """End after the items in hand at the first Ctrl-C, and at once at the second."""

    def heard(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        job.stop()
        note(f"{command}: ends after the pictures in hand; Ctrl-C again ends it at once")

    try:
        before = signal.signal(signal.SIGINT, heard)
    except ValueError:
        # In another thread than the main one nothing is heard.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _sum_up(job: "Job", result: "JobResult", command: str) -> None:
    speed = result.megapixels / max(result.seconds, 1e-9)
    say(
        f"{job.output}: {result.done} done ({result.made} now), {len(result.failed)} failed, "
        f"{result.skipped} skipped; {result.megapixels:.2f} megapixels in {result.seconds:.1f} s, {speed:.2f} MP/s"
    )
    for source, reason in result.failed:
        note(f"{command}: failed: {source}: {reason}")
