"""What the studies share: types of options, statistics of rounds, a table, a net, and a process of one's own."""

import argparse
import multiprocessing
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ParamSpec, TypeVar

from esrgan_deploy._command_line import Parser, at_least
from esrgan_deploy._console import THREADS
from esrgan_deploy._errors import BenchmarkError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.benchmarks._options import parse_shape

__all__ = ["Figures", "apart", "cell", "rrdbnet", "shape", "size", "spread", "table", "threads_option"]

Figures = dict[str, Any]
"""What a study found, fit for JSON."""

P = ParamSpec("P")
T = TypeVar("T")


def threads_option(parser: Parser, default: int | None = None) -> None:
    """Add ``--threads``."""
    parser.add_argument(
        "--threads",
        type=at_least(1, most=THREADS),
        default=default,
        metavar="N",
        help=f"of ONNX Runtime (default: {default or 'let it choose'})",
    )


def shape(text: str) -> tuple[int, int, int]:
    """Be the `type` of an option that takes ``NxHxW`` or ``HxW``.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    try:
        return parse_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def size(text: str) -> tuple[int, int]:
    """Be the `type` of an option that takes ``HxW``.

    Raises:
        argparse.ArgumentTypeError: It is not.
    """
    if text.lower().count("x") != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 480x640")
    return shape(text)[1:]


def spread(values: Sequence[float], over: Sequence[float] | None = None) -> dict[str, float]:
    """Return ``{"median", "low", "high"}`` with the quartiles, of values or of their ratio round by round."""
    if over is not None:
        values = [one / other for one, other in zip(values, over, strict=True)]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def cell(found: dict[str, float], form: str) -> str:
    """Return a `spread` for a table."""
    return f"{found['median']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table that is Markdown and reads well in a terminal: the first column to the left, numbers right."""
    cells = [list(heads), *([str(one) for one in row] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = [
        [row[0].ljust(widths[0]), *(one.rjust(width) for one, width in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module in a process of its own, whose peak of memory is then its own.

    Raises:
        BenchmarkError: The process ended.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise BenchmarkError(
                f"the process of {function.__name__} ended before its work; memory may have run out"
            ) from error


def rrdbnet(blocks: int) -> tuple[ModelSpec, Any]:
    """Return an RRDBNet x4 of Real-ESRGAN's width, 64 features and growth 32, with random weights."""
    import torch

    from esrgan_deploy.export.nets import RRDBNet

    spec = ModelSpec(
        architecture="rrdbnet",
        scale=4,
        in_channels=3,
        out_channels=3,
        features=64,
        blocks=blocks,
        growth=32,
        source_sha256="",
    )
    torch.manual_seed(0)
    return spec, RRDBNet(spec).eval().requires_grad_(False)
