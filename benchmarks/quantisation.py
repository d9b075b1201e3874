r"""Quantised graphs and other quantisers, judged side by side on the same pictures.

    python -m esrgan_deploy.benchmarks.quantisation --reference out/model.onnx \
        --graph int8=out/model.int8.onnx --graph fp8=out/model.fp8.onnx --sets Set5/x4 BSD100/x4 Kodak24 \
        --peers onnxruntime,modelopt --calibration HR-PICTURES --modelopt-python modelopt/bin/python

A set is a folder that holds LR and HR, which pair by name; of any other folder the pictures are HR, and LR is made
of them with antialiased bicubic. Graphs in half precision are computed with every tensor really rounded. Peers work
on the reference with their own defaults, calibrated on the crops that `esrgan-export --calibration DIR` chooses.

nvidia-modelopt pins versions that exclude this package's own, so that it lives in an environment of its own:

    python -m venv modelopt
    modelopt/bin/pip install numpy onnx onnxruntime torch
    modelopt/bin/pip install --no-deps nvidia-modelopt onnx-graphsurgeon onnxslim onnxscript onnx-ir lief tqdm \
        nvidia-ml-py
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from esrgan_deploy._console import THREADS, Parser, at_least, one_line_errors, output_file, say
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy._judge import Pan
from esrgan_deploy.benchmarks._quantisation_bench import compare
from esrgan_deploy.benchmarks._quantisation_graphs import opened
from esrgan_deploy.benchmarks._quantisation_peers import MODELOPT_PYTHON, PEERS, PeerGraph, peer_graphs
from esrgan_deploy.benchmarks._quantisation_table import markdown, text

__all__ = ["main"]


@one_line_errors("quantisation")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _arguments(argv)
    pan = Pan() if args.panned else None
    peers: list[PeerGraph] = []
    calibration = ""
    with tempfile.TemporaryDirectory(prefix="esrgan-peers-") as folder:
        if args.peers:
            crops, calibration = _calibration(args)
            peers = peer_graphs(
                args.peers,
                args.reference,
                crops,
                Path(folder),
                modelopt_python=args.modelopt_python,
                threads=args.threads,
                say=_say,
            )
        figures = compare(
            args.reference,
            dict(args.graph),
            args.sets,
            peers=peers,
            pictures=args.pictures,
            pan=pan,
            panned=args.panned,
            threads=args.threads,
            say=_say,
        )
    figures["calibration"] = calibration
    figures["command"] = shlex.join(["python", "-m", "esrgan_deploy.benchmarks.quantisation", *args.given])
    say(text(figures))
    _write(args.json, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    _write(args.markdown, markdown(figures))
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m esrgan_deploy.benchmarks.quantisation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="ONNX", help="the fp32 graph, float form"
    )
    parser.add_argument(
        "--graph",
        action="append",
        default=[],
        type=_named,
        metavar="NAME=ONNX",
        help="what is judged; any number",
    )
    parser.add_argument("--sets", nargs="+", type=Path, required=True, metavar="DIR", help="see above")
    parser.add_argument(
        "--pictures", type=at_least(1), metavar="N", help="the first N of each set (default: all)"
    )
    parser.add_argument("--peers", default="", help=f"comma-separated, of {', '.join(PEERS)}")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="HR pictures that peers calibrate on")
    parser.add_argument("--crops", type=at_least(1), default=32, help="how many crops of them (default: 32)")
    parser.add_argument(
        "--modelopt-python",
        type=Path,
        metavar="PATH",
        help=f"the interpreter that has nvidia-modelopt (default: the variable {MODELOPT_PYTHON})",
    )
    parser.add_argument(
        "--panned",
        type=at_least(0),
        default=2,
        metavar="N",
        help="pictures of each set to pan over (default: 2)",
    )
    parser.add_argument(
        "--threads", type=at_least(1, most=THREADS), metavar="N", help="threads of ONNX Runtime"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=output_file, metavar="FILE", help="write the tables as Markdown")
    args = parser.parse_args(argv)
    args.peers = [name for name in args.peers.split(",") if name]
    args.given = sys.argv[1:] if argv is None else argv
    if len(dict(args.graph)) < len(args.graph):
        parser.error("--graph gives one name twice; run with --graph NAME=ONNX")
    return args


def _named(text_: str) -> tuple[str, Path]:
    name, equals, path = text_.rpartition("=")
    return (name, Path(path)) if equals else (Path(path).stem, Path(path))


def _calibration(args: argparse.Namespace) -> tuple[list[Any], str]:
    from esrgan_deploy.export.quantisation._pictures import calibration_pictures

    with opened(args.reference, threads=args.threads) as fine:
        scale, multiple = fine.scale, fine.multiple
    chosen = calibration_pictures(
        args.calibration, channels=3, scale=scale, multiple=multiple, fit=args.crops
    )
    return list(chosen.fit), f"{chosen.description} (SHA-256 {chosen.digest[:12]})"


def _write(path: Path | None, content: str) -> None:
    if path is not None:
        with replaced_atomically(path) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
