"""How fast the INT8 graph for processors is beside the fp32 graph, in the same run, and how near its pictures are.

    python -m esrgan_deploy.benchmarks.int8_cpu [CHECKPOINT] [--shape 1x128x128] [--seconds 20] [--threads N]
        [--calibration DIR] [--budget DB] [--openvino] [--json FILE]

Both graphs are what esrgan-export makes, by default with --no-search: all that may be is quantised. Its loss is
measured on pictures that calibration has not seen. The two run in turns; a ratio is of one round.
The exit status is 1 where the processor has VNNI and ONNX Runtime is not 2.3 times as fast: without those
instructions integers are hardly faster than floats, and the ratio shows nothing.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from esrgan_deploy._console import THREADS, Parser, at_least, between, one_line_errors, output_file, say
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy._optional import require
from esrgan_deploy.benchmarks._machine import describe_machine
from esrgan_deploy.benchmarks._measure import UNSTABLE, measure, paired_ratio
from esrgan_deploy.benchmarks._sweep import parse_shape

__all__ = ["BAR", "has_vnni", "main", "write_graphs"]

BAR = 2.3
"""How many times as fast as fp32 INT8 has to be where there is VNNI."""


@one_line_errors("int8_cpu")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 1 where the processor has VNNI and the median ratio is under `BAR`."""
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.int8_cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the model that ships")
    parser.add_argument("--shape", default="1x128x128", metavar="NxHxW", help="default: 1x128x128")
    parser.add_argument(
        "--seconds", type=between(0.001, 86400), default=20.0, help="of measuring (default: 20)"
    )
    parser.add_argument("--threads", type=at_least(1, most=THREADS), help="default: let the runtime choose")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="HR pictures (default: drawn ones)")
    parser.add_argument(
        "--budget", type=between(0.001, 10), metavar="DB", help="search (default: quantise all that may be)"
    )
    parser.add_argument("--openvino", action="store_true", help="run both graphs in OpenVINO too")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)
    try:
        shape = parse_shape(args.shape)
    except ValueError as error:
        parser.error(f"--shape: {error}")
    with tempfile.TemporaryDirectory(prefix="esrgan-int8-") as name:
        facts, paths = write_graphs(args.checkpoint, Path(name) / "out", args.calibration, args.budget)
        figures: dict[str, Any] = {
            **facts,
            "machine": describe_machine(),
            "vnni": has_vnni(),
            "shape": args.shape,
            "threads": args.threads,
            "seconds": _times(paths, shape, args),
        }
    _report(figures)
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    ratio = paired_ratio(*(figures["seconds"]["onnxruntime"][kind] for kind in ("fp32", "int8-cpu")))[1]
    return 1 if figures["vnni"] and ratio < BAR else 0


def write_graphs(
    checkpoint: Path | None, folder: Path, calibration: Path | None, budget: float | None = None
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Export the fp32 and the INT8 graph of a checkpoint.

    Args:
        checkpoint: None for the model that ships.
        folder: Where to.
        calibration: Folder of HR pictures; None for drawn ones.
        budget: What the search may lose in dB; None quantises all that may be.

    Returns:
        What was quantised and what it loses on pictures that calibration has not seen, and the files by precision.
    """
    from esrgan_deploy.export import ExportOptions, export_model
    from esrgan_deploy.export.quantisation._options import QuantiseOptions

    quantise = QuantiseOptions(calibration=calibration, search=budget is not None, budget=budget or 0.1)
    options = ExportOptions(precisions=("int8-cpu",), plan=False, quantise=quantise)
    manifest = export_model(checkpoint, folder, options)
    graph = manifest.artefact("model.int8-cpu.onnx")
    assert graph is not None
    facts = {"model": manifest.source, **graph.quantised, "verified": graph.verified}
    return facts, {"fp32": folder / "model.onnx", "int8-cpu": folder / graph.file}


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Return whether the processor multiplies bytes with VNNI; None where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split()}
    return bool(flags & {"avx512_vnni", "avx_vnni"}) if flags else None


def _times(
    paths: dict[str, Path], shape: tuple[int, ...], args: argparse.Namespace
) -> dict[str, dict[str, tuple[float, ...]]]:
    import numpy as np

    n, h, w = shape
    batch = np.random.default_rng(0).random((n, 3, h, w), np.float32)
    opened = {"onnxruntime": _open_ort}
    if args.openvino:
        opened["openvino"] = lambda path, threads: _OpenVino(path, threads, list(batch.shape))
    runs = {
        (runtime, kind): open_(path, args.threads)
        for runtime, open_ in opened.items()
        for kind, path in paths.items()
    }
    calls = [lambda session=session: session.run(None, {"input": batch}) for session in runs.values()]
    timings = dict(zip(runs, measure(calls, seconds=args.seconds), strict=True))
    return {runtime: {kind: timings[runtime, kind].values for kind in paths} for runtime in opened}


def _open_ort(path: Path, threads: int | None) -> Any:
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # As the runtime opens graphs that are measured in turns: the threads of one leave the cores to the other.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _OpenVino:
    """OpenVINO behind the call of ONNX Runtime."""

    def __init__(self, path: Path, threads: int | None, shape: list[int]) -> None:
        ov = require("openvino", extra="peers")
        core = ov.Core()
        model = core.read_model(str(path))
        model.reshape({model.inputs[0].get_any_name(): shape})
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(self, outputs: None, inputs: dict[str, Any]) -> Any:
        """Enlarge a batch."""
        return self._request.infer({0: inputs["input"]}, share_inputs=True, share_outputs=True)[0]


def _report(figures: dict[str, Any]) -> None:
    from esrgan_deploy.benchmarks._measure import Timing

    vnni = {True: "with VNNI", False: "without VNNI", None: "VNNI unknown"}[figures["vnni"]]
    say(f"{figures['model']}, {figures['shape']}, {figures['machine']['cpu']}, {vnni}")
    say(
        f"{figures['convolutions']} of {figures['of']} convolutions quantised, "
        f"{figures['share']:.1%} of the multiply-adds; {figures['pictures']}"
    )
    lost, fidelity = (figures["measured"].get(key) for key in ("loss_db", "to_fp32_db"))
    verified = "verified" if figures["verified"] else "NOT VERIFIED"
    say(f"on unseen pictures {lost:+.3f} dB lost, {fidelity:.2f} dB to fp32, {verified}")
    for runtime, kinds in figures["seconds"].items():
        for kind, values in kinds.items():
            timing = Timing(warmups=(), values=tuple(values))
            noisy = ", unstable" if timing.spread > UNSTABLE else ""
            say(f"{runtime:12} {kind:9} {timing.median:8.4f} s, spread {timing.spread:.0%}{noisy}")
        low, middle, high = paired_ratio(kinds["fp32"], kinds["int8-cpu"])
        say(f"{runtime:12} int8-cpu is {middle:.2f} times as fast (quartiles {low:.2f} to {high:.2f})")
    if not figures["vnni"]:
        say(f"the {BAR:g} times that are asked for hold for processors with VNNI and are not judged here")


if __name__ == "__main__":
    sys.exit(main())
