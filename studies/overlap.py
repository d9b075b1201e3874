"""How busy does the queue keep a device? Frames through a session whose three stages only sleep.

Cited by docs/performance.md, "Overlap":

    python -m studies overlap

One lock stands for each of a GPU's two copy engines and for its multiprocessors, so that upload, computing and
download of one frame follow each other and those of different frames overlap. A perfect queue takes one stage's time
per frame; one frame at a time takes three. It measures the queue, threads and locks included, and nothing of CUDA.
The exit status is 1 where three slots take more than 1.15 stage times per frame.
"""

import argparse
import statistics
import threading
import time
from fractions import Fraction
from typing import Any

import numpy as np

from esrgan_deploy._command_line import Parser, at_least, between
from esrgan_deploy._console import STREAMS
from esrgan_deploy.runtime import BatchOutput, SessionInfo, Upscaler
from studies._shared import Figures
from studies._shared import table as as_table

BAR = 1.15


def options(parser: Parser) -> None:
    parser.add_argument(
        "--stage", type=between(0.0001, 60), default=0.02, help="seconds of each stage (default: 0.02)"
    )
    parser.add_argument("--frames", type=at_least(1), default=60, help="frames of each run (default: 60)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="runs of each, in turns (default: 3)")
    parser.add_argument("--slots", type=at_least(1, most=STREAMS), nargs="+", default=[1, 2, 3, 4])


def run(args: argparse.Namespace) -> Figures:
    found: dict[str, list[float]] = {str(slots): [] for slots in args.slots}
    for _ in range(args.rounds):
        for slots, values in found.items():
            values.append(_stages_per_frame(int(slots), args.stage, args.frames))
    return {"stage": args.stage, "frames": args.frames, "stages_per_frame": found}


def table(figures: Figures) -> str:
    rows = [
        (slots, *(f"{of(values):.3f}" for of in (statistics.median, min, max)))
        for slots, values in figures["stages_per_frame"].items()
    ]
    head = f"stages of {figures['stage'] * 1e3:g} ms, {figures['frames']} frames; stage times per frame\n\n"
    return head + as_table(("slots", "median", "least", "most"), rows)


def within(figures: Figures) -> bool:
    three = figures["stages_per_frame"].get("3")
    return three is None or statistics.median(three) <= BAR


def _stages_per_frame(slots: int, stage: float, frames: int) -> float:
    # From the first frame's submission to the last one's result: the two stages that fill the pipeline count as well.
    film = [np.zeros((8, 8, 3), np.uint8)] * frames
    with Upscaler(_SleepingSession(stage), streams=slots) as up:
        started = time.perf_counter()
        for _ in up.stream(film):
            pass
        return (time.perf_counter() - started) / frames / stage


class _SleepingSession:
    """A session that enlarges nothing and takes its time; see `Session`."""

    def __init__(self, stage: float) -> None:
        self.stage = stage
        self.engines = tuple(threading.Lock() for _ in range(3))
        self.info = SessionInfo(
            name="a session that sleeps",
            form="uint8",
            dtype=np.dtype(np.uint8),
            in_channels=3,
            out_channels=3,
            scale=Fraction(1),
            provider="sleep",
            slots=3,
        )

    def slot(self) -> "_SleepingSlot":
        return _SleepingSlot(self)

    def run(self, batch: Any) -> Any:
        return batch

    def run_on_device(
        self, array: object, *, stream: object | None = None, out: object | None = None
    ) -> object:
        return array

    def close(self) -> None:
        pass


class _SleepingSlot:
    """Three stages on a thread of their own, as on a stream; see `Slot`."""

    def __init__(self, session: _SleepingSession) -> None:
        self._session = session
        self._thread: threading.Thread | None = None
        self._batch: Any = None

    def prepare(self, shape: tuple[int, int, int]) -> Any:
        self._batch = np.empty(self._session.info.batch_shape(*shape), np.uint8)
        return self._batch

    def start(self) -> None:
        self._thread = threading.Thread(target=self._stages)
        self._thread.start()

    def finish(self) -> BatchOutput:
        assert self._thread is not None
        self._thread.join()
        return BatchOutput(self._batch)

    def close(self) -> None:
        pass

    def _stages(self) -> None:
        for engine in self._session.engines:
            with engine:
                time.sleep(self._session.stage)
