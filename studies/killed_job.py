"""Does a job survive being killed? SIGKILL at random points, and two processes on one job.

Cited by docs/jobs.md, "What was shown":

    python -m studies killed_job

Small pictures, some of them damaged, are enlarged three times by the command itself, each time into a folder of its
own: by one process that nobody disturbs; by one after another, each killed at a random point (during its start, or
some time after a random one of its outputs); and by two processes at once. The exit status is 1 unless all folders
hold the same byte for byte, and nothing else, all name the same failures, each process was really killed, and no
picture was made by both of the two.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._command_line import Parser, at_least
from esrgan_deploy.runtime import Picture, write_picture
from studies._shared import Figures
from studies._shared import table as as_table

SIDES = (9, 16, 12, 21)

# Seconds of the longest wait for the kill: of one that hits the start, and of one that hits the work.
START, WORK = 1.0, 0.05

RUN = "import sys; from esrgan_deploy.runtime._cli import main; sys.exit(main())"


def options(parser: Parser) -> None:
    parser.add_argument("--model", type=Path, help="default: the model that ships")
    parser.add_argument("--pictures", type=at_least(10), default=200, help="in all (default: 200)")
    parser.add_argument("--bad", type=at_least(0), default=10, help="of them damaged (default: 10)")
    parser.add_argument("--kills", type=at_least(1), default=30, help="(default: 30)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of pictures and points (default: 0)")


def run(args: argparse.Namespace) -> Figures:
    rng = random.Random(args.seed)  # noqa: S311 - points in time, no secrets
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _draw(place / "in", args.pictures, args.bad, args.seed)
        model = [] if args.model is None else ["--model", str(args.model.resolve())]
        started = time.monotonic()
        undisturbed = _Process(place, "undisturbed", model)
        undisturbed.end()
        alone = time.monotonic() - started
        runs = []
        for number in range(args.kills):
            victim = _Process(place, "killed", model)
            # Some before they have made anything; few enough of the rest that work is left for all.
            after = rng.randrange(args.pictures // (3 * args.kills) + 1)
            runs.append(victim.kill(after, rng.uniform(0, WORK if after or number % 3 else START)))
        last = _Process(place, "killed", model)
        last.end()
        two = [_Process(place, "two", model) for _ in range(2)]
        for one in two:
            one.end()
        made = [{event["output"] for event in one.events if event["event"] == "done"} for one in two]
        outputs = {name: _files(place / name) for name in ("undisturbed", "killed", "two")}
        journal = outputs["undisturbed"].keys() - {Path(name) for name in _names(undisturbed)}
        return {
            "pictures": args.pictures,
            "bad": args.bad,
            "killed": sum(one["killed"] for one in runs),
            "made_by_killed": [one["done"] for one in runs],
            "seconds_undisturbed": round(alone, 1),
            "status": {
                "undisturbed": undisturbed.status,
                "killed": last.status,
                "two": [o.status for o in two],
            },
            "outputs": {name: len(files) - 1 for name, files in outputs.items()},
            "other_files": sorted(map(str, journal)),
            "differing": {
                name: sum(
                    outputs[name].get(path) != content
                    for path, content in outputs["undisturbed"].items()
                    if path not in journal
                )
                for name in ("killed", "two")
            },
            "failed": {
                "undisturbed": len(undisturbed.failed),
                "killed": len(last.failed),
                "two": len(two[0].failed),
            },
            "same_failures": undisturbed.failed == last.failed == two[0].failed == two[1].failed,
            "made_by_each_of_two": [len(one) for one in made],
            "made_twice": len(made[0] & made[1]),
        }


def within(figures: Figures) -> bool:
    good = figures["pictures"] - figures["bad"]
    wanted = 3 if figures["bad"] else 0
    return bool(
        all(number == good for number in figures["outputs"].values())
        and not any(figures["differing"].values())
        and figures["same_failures"]
        and figures["failed"]["killed"] == figures["bad"]
        and figures["killed"] == len(figures["made_by_killed"])
        and figures["other_files"] == [".esrgan-job.sqlite"]
        and sum(figures["made_by_each_of_two"]) == good
        and figures["made_twice"] == 0
        and figures["status"] == {"undisturbed": wanted, "killed": wanted, "two": [wanted, wanted]}
    )


def table(figures: Figures) -> str:
    def row(name: str, runs: str, differing: object, failed: object) -> tuple[object, ...]:
        return (name, runs, figures["outputs"][name], differing, failed)

    each = " and ".join(map(str, figures["made_by_each_of_two"]))
    differing, failed = figures["differing"], figures["failed"]
    rows = [
        row("undisturbed", "1", 0, failed["undisturbed"]),
        row("killed", f"{figures['killed']} killed, 1 to its end", differing["killed"], failed["killed"]),
        row("two", f"2 at once, {each} by each", differing["two"], failed["two"]),
    ]
    return as_table(("folder", "runs", "outputs", "that differ", "failed"), rows)


class _Process:
    """The command on a folder, its events read as they come."""

    def __init__(self, place: Path, name: str, model: list[str]) -> None:
        command = [sys.executable, "-c", RUN, "in", "-o", name, "--json", "--threads", "1", *model]
        self.events: list[dict[str, Any]] = []
        self.status: int | None = None
        self._process = subprocess.Popen(
            command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def failed(self) -> set[tuple[str, str]]:
        """What it told of each that failed, now or before."""
        return {(one["source"], one["reason"]) for one in self.events if one["event"] == "failed"}

    def end(self) -> None:
        """Wait until it has ended."""
        self._reader.join()
        self.status = self._process.wait()

    def kill(self, after: int, delay: float) -> dict[str, Any]:
        """End it some time after it has made so many outputs, and return how many it had made, and whether it ran."""
        with self._news:
            self._news.wait_for(lambda: self._ended or self._done() >= after)
        time.sleep(delay)
        os.kill(self._process.pid, signal.SIGKILL)
        self.end()
        return {"done": self._done(), "killed": self.status == -signal.SIGKILL}

    def _done(self) -> int:
        return sum(event["event"] == "done" for event in self.events)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as told:
            for line in told:
                # The last one may be cut off by the kill.
                if line.endswith("\n"):
                    with self._news:
                        self.events.append(json.loads(line))
                        self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def _names(process: _Process) -> list[str]:
    return [
        str(Path(one["output"]).relative_to("undisturbed"))
        for one in process.events
        if one["event"] == "done"
    ]


def _files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _draw(folder: Path, number: int, bad: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    damaged = set(rng.choice(number, bad, replace=False).tolist())
    for i in range(number):
        path = folder / f"{i % 5}" / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = SIDES[i % len(SIDES)]
        write_picture(path, Picture(pixels=rng.integers(0, 256, (side, side + 3, 3), np.uint8)))
        if i in damaged:
            content = path.read_bytes()
            path.write_bytes((b"", content[: len(content) // 2], b"no picture", content[8:])[i % 4])
