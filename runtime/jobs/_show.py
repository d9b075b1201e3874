"""How a job is shown: a bar on a terminal, plain lines elsewhere, or JSON."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from esrgan_deploy._console import note, say
from esrgan_deploy.runtime.jobs._events import JobEvent

__all__ = ["shown"]

Tell = Callable[[JobEvent], None]


@contextlib.contextmanager
def shown(command: str, *, json: bool) -> Iterator[Tell]:
    """Yield what takes the events of a job and shows them.

    On a terminal (of stderr) that is a bar with the items, megapixels of output a second, the time left and the file
    in hand; elsewhere a line on stdout for each that is done. What failed is a line on stderr either way.

    Args:
        command: In front of the lines on stderr.
        json: Whether each event is printed on stdout as it is instead.
    """
    if json:
        yield lambda event: say(event.as_json())
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar(command) as tell:
            yield tell
    else:
        yield _Lines(command)


class _Lines:
    """A line for each item."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._settled = self._items = 0

    def __call__(self, event: JobEvent) -> None:
        if event.event == "begin":
            self._items = event.items or 0
            self._settled = self._items - (event.pending or 0)
        elif event.event == "done":
            self._settled += 1
            say(f"[{self._settled}/{self._items}] {_made(event)}")
        elif event.event == "failed":
            self._settled += event.size is not None
        _aside(self._command, event)


@contextlib.contextmanager
def _bar(command: str) -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    fields = TextColumn("{task.fields[items]}, {task.fields[speed]:.2f} MP/s,")
    columns = (TaskProgressColumn(), BarColumn(), fields, TimeRemainingColumn(), "left")
    file = TextColumn("{task.fields[file]}", markup=False)
    console = Console(stderr=True)
    with Progress(*columns, file, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", items="", speed=0.0, file="", total=None)
        settled = items = 0
        pixels = 0
        started = time.monotonic()

        def tell(event: JobEvent) -> None:
            nonlocal settled, items, pixels, started
            if event.event == "begin":
                items, started = event.items or 0, time.monotonic()
                settled = items - (event.pending or 0)
                bar.update(task, total=event.megapixels or None, items=f"{settled} of {items}")
            elif event.event == "running":
                # What it is called is shown, not obeyed: no markup, and a byte that is no UTF-8 replaced.
                bar.update(task, file=(event.source or "").encode(errors="replace").decode())
            elif event.event in ("done", "failed") and event.size is not None:
                settled += 1
                height, width = event.output_size or (0, 0)
                pixels += height * width
                speed = pixels / 1e6 / max(time.monotonic() - started, 1e-9)
                bar.update(
                    task,
                    advance=event.size[0] * event.size[1] / 1e6,
                    items=f"{settled} of {items}",
                    speed=speed,
                )
            _aside(command, event)

        yield tell


def _aside(command: str, event: JobEvent) -> None:
    where = f"{event.source}: " if event.source else ""
    if event.event == "failed":
        note(f"{command}: {where}{event.reason}")
    elif event.event == "note":
        note(f"{command}: note: {where}{event.reason}")
    for text in event.notes or ():
        note(f"{command}: note: {where}{text}")


def _made(event: JobEvent) -> str:
    (height, width), (tall, wide) = event.size or (0, 0), event.output_size or (0, 0)
    return f"{event.output}: {width}x{height} -> {wide}x{tall}, {event.seconds:.1f} s"
