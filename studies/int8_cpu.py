"""How fast is the INT8 graph for processors beside the fp32 graph, and how near are its pictures?

Cited by docs/quantisation.md, "The graph for processors":

    python -m studies int8_cpu --shape 1x96x96 --threads 2 --openvino --seconds 40 --calibration CID22

Both graphs are what esrgan-export makes, by default with --no-search: all that may be is quantised. Its loss is
measured on pictures that calibration has not seen. The two run in turns; a ratio is of one round.
The exit status is 1 where the processor has VNNI and ONNX Runtime is not 2.3 times as fast: without those
instructions integers are hardly faster than floats, and the ratio shows nothing.
"""

import argparse
import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from esrgan_deploy._command_line import Parser, between
from esrgan_deploy.benchmarks.measure import measure
from esrgan_deploy.runtime import SessionOptions, open_session
from studies._shared import Figures, cell, shape, spread, threads_option
from studies._shared import table as as_table

BAR = 2.3
PRECISIONS = ("fp32", "int8-cpu")


def options(parser: Parser) -> None:
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the model that ships")
    parser.add_argument(
        "--shape", type=shape, default="1x128x128", metavar="NxHxW", help="default: 1x128x128"
    )
    parser.add_argument(
        "--seconds", type=between(0.001, 86400), default=20.0, help="of measuring (default: 20)"
    )
    threads_option(parser)
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="HR pictures (default: drawn ones)")
    parser.add_argument(
        "--budget", type=between(0.001, 10), metavar="DB", help="search (default: quantise all that may be)"
    )
    parser.add_argument("--openvino", action="store_true", help="run both graphs in OpenVINO too")


def run(args: argparse.Namespace) -> Figures:
    from esrgan_deploy.export import ExportOptions, export_model
    from esrgan_deploy.export.quantisation import QuantiseOptions

    quantise = QuantiseOptions(
        calibration=args.calibration, search=args.budget is not None, budget=args.budget or 0.1
    )
    with tempfile.TemporaryDirectory(prefix="esrgan-int8-") as name:
        folder = Path(name) / "out"
        asked = ExportOptions(precisions=("int8-cpu",), plan=False, quantise=quantise)
        manifest = export_model(args.checkpoint, folder, asked)
        graph = manifest.artefact("model.int8-cpu.onnx")
        assert graph is not None
        return {
            "model": manifest.source,
            **graph.quantised,
            "verified": graph.verified,
            "vnni": has_vnni(),
            "shape": "x".join(map(str, args.shape)),
            "threads": args.threads,
            "seconds": _times([folder / "model.onnx", folder / graph.file], args),
        }


def table(figures: Figures) -> str:
    vnni = {True: "with VNNI", False: "without VNNI, so that no bar is held", None: "VNNI unknown"}
    lost, fidelity = (figures["measured"].get(key) for key in ("loss_db", "to_fp32_db"))
    lines = [
        f"{figures['model']}, {figures['shape']}, {figures['environment']['cpu']}, {vnni[figures['vnni']]}",
        f"{figures['convolutions']} of {figures['of']} convolutions quantised, "
        f"{figures['share']:.1%} of the multiply-adds; {figures['pictures']}",
        f"on unseen pictures {lost:+.3f} dB lost, {fidelity:.2f} dB to fp32, "
        f"{'verified' if figures['verified'] else 'NOT VERIFIED'}",
        "",
    ]
    rows = []
    for runtime, by in figures["seconds"].items():
        cells = [cell(spread([1e3 * value for value in by[precision]]), ".2f") for precision in PRECISIONS]
        rows.append((runtime, *cells, cell(spread(by["fp32"], by["int8-cpu"]), ".2f")))
    return "\n".join([*lines, as_table(("runtime", "fp32 ms", "int8-cpu ms", "times as fast"), rows)])


def within(figures: Figures) -> bool:
    by = figures["seconds"]["onnxruntime"]
    return not figures["vnni"] or spread(by["fp32"], by["int8-cpu"])["median"] >= BAR


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Return whether the processor multiplies bytes with VNNI; None where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split()}
    return bool(flags & {"avx512_vnni", "avx_vnni"}) if flags else None


def _times(paths: list[Path], args: argparse.Namespace) -> dict[str, dict[str, tuple[float, ...]]]:
    n, h, w = args.shape
    batch = np.random.default_rng(0).random((n, 3, h, w), np.float32)
    with contextlib.ExitStack() as stack:
        runs: list[Callable[[], object]] = []
        # Measured in turns: spinning threads of one would keep the cores from the other.
        how = SessionOptions(providers=("cpu",), threads=args.threads, spin=False)
        for path in paths:
            session = stack.enter_context(contextlib.closing(open_session(path, how)))
            runs.append(functools.partial(session.run, batch))
        if args.openvino:
            from esrgan_deploy.benchmarks.peers import in_openvino

            runs += [in_openvino(path, batch, args.threads) for path in paths]
        values = [timing.values for timing in measure(runs, seconds=args.seconds)]
    runtimes = ["onnxruntime", "openvino"][: len(values) // 2]
    return {
        runtime: dict(zip(PRECISIONS, values[2 * place : 2 * place + 2], strict=True))
        for place, runtime in enumerate(runtimes)
    }
