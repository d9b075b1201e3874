"""The command ``esrgan-bench``."""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esrgan_deploy._console import (
    STREAMS,
    THREADS,
    Parser,
    at_least,
    note,
    one_line_errors,
    output_file,
    say,
    show,
)
from esrgan_deploy.benchmarks._options import BenchOptions, ReportOptions
from esrgan_deploy.benchmarks._sweep import parse_axis, parse_shape

if TYPE_CHECKING:
    from esrgan_deploy.benchmarks._schema import Results

__all__ = ["main"]

_EPILOG = """\
sweeps: every combination of the axes is measured, everything of one combination in turns.
  shape=1x64x64,1x128x128   batches, NxHxW in LR pixels
  batch=1,2,4               pictures at once, in place of N
  streams=1,2,3             batches in flight, for the throughput
  tile=0,128,256            one picture of --shape through the Upscaler, cut into tiles of that edge; 0 is uncut
  example: esrgan-bench out/model.fp16.plan --sweep batch=1,2,4 streams=1,2,3

timings: p50, p95 and p99 are of one batch at a time, host array to host array, upload and download included; with
  batches in flight the throughput stands beside them, and on a GPU the device's own time by CUDA events.

exit status: 0; 1 when something cannot be measured or compared, or an artefact became slower than --compare allows;
  2 for a wrong flag.
"""


@one_line_errors("esrgan-bench")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        options, report = _fields(BenchOptions, args), _fields(ReportOptions, args)
    except ValueError as error:
        parser.error(str(error))
    if report.json is not None and not _may_replace(report.json):
        parser.error(f"--json {report.json}: that file is there and holds no results; give another name")
    saved = [path for path in args.models if path.suffix.lower() == ".json"]
    if saved and len(args.models) > 1:
        parser.error(f"{saved[0]} holds results; give it alone, or give artefacts")
    command = shlex.join(["esrgan-bench", *(sys.argv[1:] if argv is None else argv)])
    return _run(args.models, options, report, command)


def _run(models: list[Path], options: BenchOptions, report: ReportOptions, command: str) -> int:
    from esrgan_deploy.benchmarks._compare import check_machine
    from esrgan_deploy.benchmarks._html import require_report
    from esrgan_deploy.benchmarks._machine import describe_machine
    from esrgan_deploy.benchmarks._schema import load_results, save_results
    from esrgan_deploy.benchmarks._table import table

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
    from esrgan_deploy.benchmarks._compare import compare, describe_changes

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
    from esrgan_deploy.benchmarks._seams_report import seams_table

    for seams in results.seams.values():
        tell(seams_table(seams))


def _save_html(results: "Results", path: Path) -> None:
    from esrgan_deploy._files import replaced_atomically
    from esrgan_deploy.benchmarks._html import html_report

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


def _fields(options: Callable[..., Any], args: argparse.Namespace) -> Any:
    # One flag for each field, by the same name: what is not given keeps the field's own default.
    names = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    return options(**{name: value for name in names if (value := getattr(args, name)) is not None})


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="esrgan-bench",
        description="Measure artefacts of esrgan-export: speed and memory, with the parity of the same file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="+",
        type=Path,
        metavar="MODEL",
        help=".onnx, .plan or .pth; several are measured in turns. Or one .json of --json, which is shown again",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--shape",
        type=_as_usage(parse_shape),
        metavar="NxHxW",
        help="batch in LR pixels (default: 1x256x256)",
    )
    what.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="how long at each point, warm-ups not counted (default: 10)",
    )
    what.add_argument(
        "--sweep",
        action=_Sweep,
        nargs="+",
        metavar="AXIS=V,V",
        help="shape, batch, streams or tile; see below",
    )
    what.add_argument(
        "--streams",
        type=at_least(1, most=STREAMS),
        metavar="N",
        help="batches in flight (default: the session's own)",
    )
    what.add_argument("--peers", type=_names, metavar="NAME,NAME", help=f"also measure: {', '.join(_PEERS)}")
    what.add_argument("--quality", type=Path, metavar="DIR", help="PSNR and SSIM on DIR/LR against DIR/HR")
    what.add_argument(
        "--seams",
        action="store_true",
        default=None,
        help="largest difference from the untiled picture by halo",
    )
    what.add_argument(
        "--no-peaks",
        dest="peaks",
        action="store_false",
        default=None,
        help="leave out what the machine itself can do (saves some seconds)",
    )
    how = parser.add_argument_group("how to run it")
    how.add_argument(
        "--threads",
        type=at_least(1, most=THREADS),
        metavar="N",
        help="threads on the CPU (default: the library's choice)",
    )
    how.add_argument(
        "--device",
        type=at_least(0),
        metavar="N",
        help="CUDA device, in CUDA's own order (default: 0); the report says its name and PCI bus id",
    )
    how.add_argument(
        "--provider",
        dest="providers",
        action=_Tuple,
        metavar="NAME",
        help="ONNX Runtime execution provider: cpu, cuda, …; may be given again",
    )
    how.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="of a .pth in PyTorch (default: fp32)"
    )
    how.add_argument(
        "--trust",
        action="store_true",
        default=None,
        help="load a plan that no manifest vouches for; a plan is code",
    )
    out = parser.add_argument_group("what to do with it")
    out.add_argument(
        "--json", type=output_file, metavar="FILE", help="write every raw value and the environment"
    )
    out.add_argument(
        "--html", type=output_file, metavar="FILE", help="write a report with plots (extra report)"
    )
    out.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="exit 1 if something became slower since then"
    )
    out.add_argument(
        "--threshold", type=float, metavar="SHARE", help="how much slower is a failure (default: 0.05)"
    )
    return parser


_PEERS = ("torch", "torch-compile", "onnxruntime", "openvino", "ncnn")


class _Sweep(argparse.Action):
    """Collects axes over one or more ``--sweep``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            axes = tuple(parse_axis(text) for text in values)
        except ValueError as error:
            parser.error(f"argument --sweep: {error}")
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest) or ()), *axes))


class _Tuple(argparse.Action):
    """Collects the values of a flag that is given more than once."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest) or ()), values))


def _as_usage(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in _PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_PEERS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
