"""One net in several graph forms: kernels, declared memory traffic, and time.

    python -m esrgan_deploy.benchmarks.graph_forms [checkpoint] [--quantised]

TensorRT for RTX builds each as static fp16 plans on any machine, and its builder logs every kernel with the tensors
it reads and writes. The sum of their bytes per input pixel is exactly repeatable. It is what the compiler declares,
not a time: caches are not in it. Times are taken with ONNX Runtime on the processor, fp32, in turns, which says
nothing of a GPU; where there is an NVIDIA GPU, the plans are timed on it as well.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from esrgan_deploy._console import THREADS, Parser, at_least, between, one_line_errors, output_file, say
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy._flavour import gpu_is_usable
from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks._forms_quantised import quantised_table, traffic_of_quantised
from esrgan_deploy.benchmarks._machine import describe_machine
from esrgan_deploy.benchmarks._measure import Timing, measure

__all__ = ["main", "traffic_of_forms"]

CPU_SIDE = 48
"""Side of the picture that the processor is timed with, at most: it is hundreds of times as slow as a GPU."""


@one_line_errors("graph_forms")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.graph_forms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, help="default: an RRDB of 2 blocks with random weights"
    )
    parser.add_argument(
        "--side",
        type=at_least(1, most=2**15),
        default=128,
        help="side of the picture in pixels (default: 128)",
    )
    parser.add_argument(
        "--seconds",
        type=between(0, 86400),
        default=30.0,
        help="how long to time, 0 for not at all (default: 30)",
    )
    parser.add_argument(
        "--quantised", action="store_true", help="build int8 and fp8 as well, in several places"
    )
    parser.add_argument(
        "--threads", type=at_least(1, most=THREADS), metavar="N", help="threads of ONNX Runtime"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)
    figures = traffic_of_forms(
        args.checkpoint,
        side=args.side,
        seconds=args.seconds,
        threads=args.threads,
        quantised=args.quantised,
    )
    say(_table(figures, args.side))
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def traffic_of_forms(
    checkpoint: Path | None = None,
    *,
    side: int = 128,
    seconds: float = 0.0,
    threads: int | None = None,
    quantised: bool = False,
) -> dict[str, Any]:
    """Build one net in each form and return what each declares and takes.

    Args:
        checkpoint: A checkpoint; None makes an RRDB of 2 blocks, 64 features, with random weights.
        side: Height and width of the picture in pixels.
        seconds: How long to time all forms together, on each device; 0 leaves the times out.
        threads: Threads of ONNX Runtime; None lets it choose.
        quantised: Build it in int8 and fp8 as well.

    Returns:
        ``{"net": …, "tensorrt": …, "difference": {"flat": 0.0, …}, "largest_output": …,
        "forms": {"flat": {"kernels", "bytes_per_pixel"}, …}, "quantised": …, "times": {"processor": …,
        "gpu": …}}``; a difference is of the fp32 outputs, and ``quantised`` of `traffic_of_quantised`, or None.
        A time is None where it was not taken, else ``{"on": …, "forms": {"flat": {"seconds": [one for each
        round], "of_flat": …, "low": …, "high": …}}}`` with the median and the quartiles of the ratio to flat,
        round by round: below 1 is faster.

    Raises:
        EngineBuildError: TensorRT cannot build it.
        MissingDependencyError: TensorRT or torch is not installed.
    """
    import numpy as np
    import torch

    from esrgan_deploy._spec import ModelSpec
    from esrgan_deploy.engines import BuildOptions, ShapeRange, declared_bytes_per_pixel, engine_from_onnx
    from esrgan_deploy.export._checkpoint import load_checkpoint
    from esrgan_deploy.export._graph import clone, save, to_bytes
    from esrgan_deploy.export._ort import run, session_of
    from esrgan_deploy.export._precision import to_precision
    from esrgan_deploy.export._rewrite import fold_scales, nest_concats
    from esrgan_deploy.export._rrdbnet import RRDBNet
    from esrgan_deploy.export._source import describe_spec
    from esrgan_deploy.export._trace import trace

    if checkpoint is None:
        spec = ModelSpec(
            architecture="rrdbnet",
            scale=4,
            in_channels=3,
            out_channels=3,
            features=64,
            blocks=2,
            growth=32,
            source_sha256="",
        )
        torch.manual_seed(0)
        module: torch.nn.Module = RRDBNet(spec).eval().requires_grad_(False)
    else:
        loaded = load_checkpoint(checkpoint)
        spec, module = loaded.spec, loaded.module()
    flat = trace(module, spec)
    nested, folded = clone(flat), clone(flat)
    nest_concats(nested)
    nest_concats(folded)
    fold_scales(folded)
    graphs = {"flat": flat, "nested": nested, "nested, 0.2 folded": folded}
    picture = np.random.default_rng(0).random((1, spec.in_channels, 32, 32), np.float32)
    outputs = [run(session_of(to_bytes(graph)), picture)[0].astype(float) for graph in graphs.values()]
    forms, tensorrt, gpu = {}, "", None
    with tempfile.TemporaryDirectory(prefix="esrgan-forms-") as folder:
        for i, (name, graph) in enumerate(graphs.items()):
            path = Path(folder) / f"{i}.onnx"
            save(to_precision(graph, "fp16"), path)
            options = BuildOptions(shapes=ShapeRange.fixed((1, side, side)))
            built = engine_from_onnx(path, path.with_suffix(".plan"), options, expect_precision="fp16")
            tensorrt = f"{built.flavour} {built.version}"
            forms[name] = {
                "kernels": len(built.layers),
                "bytes_per_pixel": declared_bytes_per_pixel(built.layers, side * side),
            }
        if seconds > 0 and gpu_is_usable():
            gpu = _times_on_gpu(
                dict(zip(graphs, sorted(Path(folder).glob("*.plan")), strict=True)), side, seconds
            )
        written = traffic_of_quantised(spec, module, folded, Path(folder), side=side) if quantised else None
    return {
        "net": describe_spec(spec),
        "tensorrt": tensorrt,
        "difference": {
            name: float(np.abs(outputs[0] - output).max())
            for name, output in zip(graphs, outputs, strict=True)
        },
        "largest_output": float(np.abs(outputs[0]).max()),
        "forms": forms,
        "quantised": written,
        "times": {
            "processor": _times_on_processor(
                {name: to_bytes(graph) for name, graph in graphs.items()},
                min(side, CPU_SIDE),
                seconds,
                threads,
            ),
            "gpu": gpu,
        },
    }


def _times_on_processor(
    graphs: dict[str, bytes], side: int, seconds: float, threads: int | None
) -> dict[str, Any] | None:
    if seconds <= 0:
        return None
    import numpy as np

    ort = require("onnxruntime", extra="cpu")
    settings = ort.SessionOptions()
    if threads is not None:
        settings.intra_op_num_threads = threads
    sessions = [
        ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"]) for graph in graphs.values()
    ]
    source = sessions[0].get_inputs()[0]
    batch = np.random.default_rng(0).random((1, source.shape[1], side, side), np.float32)

    def runner(session: Any) -> Callable[[], object]:
        return lambda: session.run(None, {source.name: batch})

    timings = measure([runner(session) for session in sessions], seconds=seconds, most_warmups=4)
    used = f"ONNX Runtime {ort.__version__}, fp32, {side}x{side}, threads {threads or 'all'}"
    return {
        "on": f"{describe_machine()['cpu']}, {used}",
        "forms": _compared(graphs, timings),
    }


def _times_on_gpu(plans: dict[str, Path], side: int, seconds: float) -> dict[str, Any]:
    import numpy as np

    from esrgan_deploy.runtime import SessionOptions, open_session

    # Built a moment ago in a folder of this process: there is no manifest, and none is needed.
    sessions = [open_session(plan, SessionOptions(trust=True)) for plan in plans.values()]
    try:
        info = sessions[0].info
        batch = np.random.default_rng(0).random(info.batch_shape(1, side, side)).astype(info.dtype)

        def runner(session: Any) -> Callable[[], object]:
            return lambda: session.run(batch)

        timings = measure([runner(session) for session in sessions], seconds=seconds, most_warmups=4)
        return {"on": f"{info.provider}, {side}x{side}, copies included", "forms": _compared(plans, timings)}
    finally:
        for session in sessions:
            session.close()


def _compared(names: Iterable[str], timings: Sequence[Timing]) -> dict[str, Any]:
    compared = {}
    for name, timing in zip(names, timings, strict=True):
        ratios = [one / flat for one, flat in zip(timing.values, timings[0].values, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        compared[name] = {"seconds": list(timing.values), "of_flat": middle, "low": low, "high": high}
    return compared


def _table(figures: dict[str, Any], side: int) -> str:
    flat = figures["forms"]["flat"]
    lines = [
        f"{figures['net']}, fp16, {side}x{side}, {figures['tensorrt']}",
        f"{'form':22} {'kernels':>8} {'bytes/LR px':>12} {'of flat':>8} {'largest fp32 difference':>24}",
    ]
    for name, form in figures["forms"].items():
        share = form["bytes_per_pixel"] / flat["bytes_per_pixel"]
        differs = figures["difference"][name]
        lines.append(
            f"{name:22} {form['kernels']:8} {form['bytes_per_pixel']:12,.0f} {share:8.1%} {differs:24.1e}"
        )
    if figures["quantised"] is not None:
        lines += quantised_table(
            figures["quantised"], figures["forms"]["nested, 0.2 folded"]["bytes_per_pixel"]
        )
    for device, times in figures["times"].items():
        if times is None:
            lines.append(f"time on the {device}: not taken")
            continue
        lines.append(f"time over flat, round by round, median (quartiles), on the {device}: {times['on']}")
        lines += [
            f"{name:22} {form['of_flat']:8.3f} ({form['low']:.3f} to {form['high']:.3f}), "
            f"median {statistics.median(form['seconds']) * 1e3:.1f} ms of {len(form['seconds'])}"
            for name, form in times["forms"].items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
