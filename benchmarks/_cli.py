"""The command ``esrgan-bench``."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esrgan_deploy._command_line import option, read_options
from esrgan_deploy._console import note, one_line_errors, say, show
from esrgan_deploy.benchmarks._options import BenchOptions, ReportOptions

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks.record import Results

__all__ = ["main"]

_EPILOG = """\
example:
  esrgan-bench out/model.fp16.plan out/model.fp16.onnx --sweep batch=1,2,4 streams=1,2,3 --html report.html

sweeps: every combination of the axes is measured, everything of one combination in turns.
  shape=1x64x64,1x128x128   batches, NxHxW in LR pixels
  batch=1,2,4               pictures at once, in place of N
  streams=1,2,3             batches in flight, for the throughput
  tile=0,128,256            one picture of --shape through the Upscaler, cut into tiles of that edge; 0 is uncut

timings: p50, p95 and p99 are of one batch at a time, host array to host array, upload and download included; with
  batches in flight the throughput stands beside them, and on a GPU the device's own time by CUDA events.

exit status: 0; 1 when something cannot be measured or compared, or an artefact became slower than --compare allows;
  2 for a wrong flag.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Command:
    """Measure artefacts of esrgan-export: speed and memory, with the parity of the same file."""

    models: tuple[Path, ...] = option(
        positional=True,
        nargs="+",
        metavar="MODEL",
        help=".onnx, .plan or .pth; several are measured in turns. Or one .json of --json, which is shown again",
    )
    options: BenchOptions = dataclasses.field(default_factory=BenchOptions)
    report: ReportOptions = dataclasses.field(default_factory=ReportOptions)

    def __post_init__(self) -> None:
        if self.report.json is not None and not _may_replace(self.report.json):
            raise ValueError(
                f"--json {self.report.json}: that file is there and holds no results; give another name"
            )
        saved = [path for path in self.models if path.suffix.lower() == ".json"]
        if saved and len(self.models) > 1:
            raise ValueError(f"{saved[0]} holds results; give it alone, or give artefacts")


@one_line_errors("esrgan-bench")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = read_options(_Command, argv, prog="esrgan-bench", epilog=_EPILOG)
    typed = shlex.join(["esrgan-bench", *(sys.argv[1:] if argv is None else argv)])
    return _run(command.models, command.options, command.report, typed)


def _run(models: Sequence[Path], options: BenchOptions, report: ReportOptions, command: str) -> int:
    from esrgan_deploy.benchmarks.measure import describe_machine
    from esrgan_deploy.benchmarks.record import check_machine, load_results, save_results
    from esrgan_deploy.benchmarks.report import require_report, table

    if report.html is not None:
        # Before minutes of measuring, not after them.
        require_report()
    old = load_results(report.compare) if report.compare else None
    if models[0].suffix.lower() == ".json":
        results = load_results(models[0])
    else:
        if old is not None and report.compare is not None:
            check_machine(old, describe_machine(), report.compare)
        from esrgan_deploy.benchmarks._bench import bench

        results = bench(models, options, command=command)
    # The files first: what was measured is not lost because nobody can read the table.
    if report.json is not None:
        save_results(results, report.json)
    if report.html is not None:
        _save_html(results, report.html)
    written = [path for path in (report.json, report.html) if path is not None]
    tell = say if written else show
    tell(table(results))
    _print_seams(results, tell)
    for path in written:
        say(f"wrote {path}")
    return _compared(old, results, report) if old is not None else 0


def _compared(old: "Results", results: "Results", report: ReportOptions) -> int:
    from esrgan_deploy.benchmarks.record import compare, describe_changes

    path = report.compare or Path()
    changes = compare(old, results, path, report.threshold)
    say(describe_changes(changes, old, results, path))
    slower = list(dict.fromkeys(change.row.name for change in changes if change.failed))
    if slower:
        verb = "is" if len(slower) == 1 else "are"
        note(
            f"esrgan-bench: {', '.join(slower)} {verb} slower than in {path} by more than {report.threshold:.0%}, "
            "beyond the noise"
        )
    return 1 if slower else 0


def _print_seams(results: "Results", tell: Callable[[str], None]) -> None:
    if not results.seams:
        return
    from esrgan_deploy.benchmarks.report import seams_table

    for seams in results.seams.values():
        tell(seams_table(seams))


def _save_html(results: "Results", path: Path) -> None:
    from esrgan_deploy._files import replaced_atomically
    from esrgan_deploy.benchmarks.report import html_report

    text = html_report(results)
    with replaced_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _may_replace(path: Path) -> bool:
    # `--json out/model.json` would replace the manifest of what is measured.
    if not path.exists() or path.stat().st_size == 0:
        return True
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(data, dict) and "results" in data


if __name__ == "__main__":
    sys.exit(main())
