"""How well the queue keeps a device busy: frames through a session whose upload, compute and download only sleep.

    python -m esrgan_deploy.benchmarks.overlap [--stage 0.02] [--frames 60] [--slots 1 2 3 4] [--json FILE]

One lock stands for each of a GPU's two copy engines and for its multiprocessors, so that the three stages of one
frame follow each other and those of different frames overlap. A perfect queue takes one stage's time per frame; one
frame at a time takes three. It measures the queue, threads and locks included, and nothing of CUDA.
"""

import argparse
import json
import sys
import threading
import time
from fractions import Fraction
from typing import Any

from esrgan_deploy._console import STREAMS, Parser, at_least, between, one_line_errors, output_file, say
from esrgan_deploy._files import replaced_atomically

__all__ = ["main", "stages_per_frame"]

BAR = 1.15
"""Stage times per frame that three slots may take."""


@one_line_errors("overlap")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 1 where three slots take more than `BAR` stage times per frame."""
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.overlap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--stage", type=between(0.0001, 60), default=0.02, help="seconds of each stage (default: 0.02)"
    )
    parser.add_argument("--frames", type=at_least(1), default=60, help="frames of each run (default: 60)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="runs of each, in turns (default: 3)")
    parser.add_argument("--slots", type=at_least(1, most=STREAMS), nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)
    figures: dict[int, list[float]] = {slots: [] for slots in args.slots}
    for _ in range(args.rounds):
        for slots, values in figures.items():
            values.append(stages_per_frame(slots=slots, stage=args.stage, frames=args.frames))
    say(
        f"stages of {args.stage * 1e3:g} ms, {args.frames} frames; stage times per frame, {args.rounds} rounds"
    )
    say(f"{'slots':>5} {'median':>8} {'least':>8} {'most':>8}")
    for slots, values in figures.items():
        say(f"{slots:5} {sorted(values)[len(values) // 2]:8.3f} {min(values):8.3f} {max(values):8.3f}")
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            data = {"stage": args.stage, "frames": args.frames, "stages_per_frame": figures}
            temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    three = figures.get(3)
    return 1 if three and sorted(three)[len(three) // 2] > BAR else 0


def stages_per_frame(*, slots: int, stage: float, frames: int) -> float:
    """Stream frames through an `Upscaler` and return the time per frame over the time of one stage.

    The time runs from the first frame's submission to the last one's result, so the two stages by which the first
    fills the pipeline count as well.

    Args:
        slots: Batches in flight.
        stage: Seconds that each of the three stages sleeps.
        frames: How many.
    """
    import numpy as np

    from esrgan_deploy import Upscaler

    film = [np.zeros((8, 8, 3), np.uint8)] * frames
    with Upscaler(_SleepingSession(stage), streams=slots) as up:
        started = time.perf_counter()
        for _ in up.stream(film):
            pass
        spent = time.perf_counter() - started
    return spent / frames / stage


class _SleepingSession:
    """A session that enlarges nothing and takes its time; see `Session`."""

    def __init__(self, stage: float) -> None:
        import numpy as np

        from esrgan_deploy.runtime import SessionInfo

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
        """Return a new slot."""
        return _SleepingSlot(self)

    def run(self, batch: Any) -> Any:
        """Return the batch."""
        return batch

    def run_on_device(
        self, array: object, *, stream: object | None = None, out: object | None = None
    ) -> object:
        """Return the array."""
        return array

    def close(self) -> None:
        """Do nothing."""


class _SleepingSlot:
    """Three stages on a thread of their own, as on a stream; see `Slot`."""

    def __init__(self, session: _SleepingSession) -> None:
        self._session = session
        self._thread: threading.Thread | None = None
        self._batch: Any = None

    def prepare(self, shape: tuple[int, int, int]) -> Any:
        """Return a batch to fill."""
        import numpy as np

        self._batch = np.empty(self._session.info.batch_shape(*shape), np.uint8)
        return self._batch

    def start(self) -> None:
        """Begin the three stages."""
        self._thread = threading.Thread(target=self._stages)
        self._thread.start()

    def finish(self) -> Any:
        """Wait for them."""
        from esrgan_deploy.runtime import Made

        assert self._thread is not None
        self._thread.join()
        return Made(self._batch)

    def close(self) -> None:
        """Do nothing."""

    def _stages(self) -> None:
        for engine in self._session.engines:
            with engine:
                time.sleep(self._session.stage)


if __name__ == "__main__":
    sys.exit(main())
