r"""What do quantised graphs lose, ours and those of other quantisers? On the same pictures, side by side.

Cited by docs/quantisation.md, "Results":

    python -m studies quantisation --reference out/model.onnx --graph int8=out/model.int8.onnx \
        --sets Set5/x4 BSD100/x4 Kodak24 --panned 1 --peers onnxruntime,modelopt --calibration CID22

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
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from esrgan_deploy._command_line import Parser, at_least
from esrgan_deploy._console import OptionError, note, one_line
from esrgan_deploy._errors import BenchmarkError, InferenceError
from esrgan_deploy._files import sha256_of
from studies._shared import Figures, threads_option
from studies._shared import table as as_table
from studies.quantisation.graphs import FP32, Opened, opened
from studies.quantisation.judge import Pan, Upscale, judge, name_of, pictures_of, remembered
from studies.quantisation.peers import MODELOPT_PYTHON, PEERS, PeerGraph, peer_graphs

HEADS = ("method", "quantised", "loss dB", "SSIM", "PSNR to fp32", "shift", "worst tile", "flicker")
LEGEND = (
    "loss: mean over pictures of PSNR-Y of fp32 less that of the method, both against the truth; above 0 is worse. "
    "SSIM: change of SSIM-Y against the truth. PSNR to fp32: dB over all 8-bit RGB samples. shift: mean signed "
    "error of the channel that is farthest off, in levels. worst tile: PSNR to fp32 of the worst 64x64 pixels. "
    "flicker: standard deviation of the error over a pan, in levels. quantised: share of the multiply-adds."
)


def options(parser: Parser) -> None:
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
    parser.add_argument("--peers", type=_peers, default=[], help=f"comma-separated, of {', '.join(PEERS)}")
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
    threads_option(parser)


def run(args: argparse.Namespace) -> Figures:
    names = [name_of(folder) for folder in args.sets]
    if len(set(names)) < len(names):
        raise OptionError(f"--sets {', '.join(names)}: give each set once")
    if len(dict(args.graph)) < len(args.graph):
        raise OptionError("--graph gives one name twice; run with --graph NAME=ONNX")
    with (
        tempfile.TemporaryDirectory(prefix="esrgan-peers-") as folder,
        opened(args.reference, threads=args.threads) as fine,
    ):
        if fine.arithmetic != FP32:
            raise BenchmarkError(
                f"{args.reference} computes in {fine.arithmetic}; the reference is the fp32 graph"
            )
        sets = {
            name: pictures_of(folder, fine.scale, most=args.pictures)
            for name, folder in zip(names, args.sets, strict=True)
        }
        reference, pan = remembered(fine.upscale), Pan() if args.panned else None
        peers: list[PeerGraph] = []
        calibration = ""
        if args.peers:
            crops, calibration = _crops(args, fine)
            peers = peer_graphs(
                args.peers,
                args.reference,
                crops,
                Path(folder),
                modelopt_python=args.modelopt_python,
                threads=args.threads,
            )

        def judged(upscale: Upscale, arithmetic: str, pan: Pan | None = None) -> dict[str, Any]:
            how: dict[str, Any] = {"scale": fine.scale, "arithmetic": arithmetic, "pan": pan}
            return {
                name: judge(pictures, reference, upscale, on=name, panned=args.panned, **how)
                for name, pictures in sets.items()
            }

        def row(name: str, path: Path) -> dict[str, Any]:
            note(f"judging {name}")
            with opened(path, threads=args.threads) as graph:
                if graph.scale != fine.scale:
                    raise BenchmarkError(
                        f"{path} enlarges {graph.scale} times, the reference {fine.scale} times"
                    )
                return {
                    "name": name,
                    "sha256": sha256_of(path),
                    "arithmetic": graph.arithmetic,
                    "share": dataclasses.asdict(graph.share),
                    "sets": judged(graph.upscale, graph.arithmetic, pan),
                }

        itself = judged(reference, FP32)
        methods = [row(name, path) for name, path in args.graph]
        methods += [_row_of_peer(peer, row) for peer in peers]
    return {
        "schema": 1,
        "reference": {"name": args.reference.name, "sha256": sha256_of(args.reference), "arithmetic": FP32},
        "sets": {
            name: {"pictures": len(sets[name]), "psnr_y": one["psnr_y"], "ssim_y": one["ssim_y"]}
            for name, one in itself.items()
        },
        "pan": pan and {**dataclasses.asdict(pan), "pictures": args.panned},
        "calibration": calibration,
        "methods": methods,
    }


def table(figures: Figures) -> str:
    reference, calibration = figures["reference"], figures["calibration"]
    peers = f"; peers calibrated on {calibration}" if calibration else ""
    lines = [f"against {reference['name']} in {reference['arithmetic']}{peers}"]
    for name, one in figures["sets"].items():
        truth = ""
        if one["psnr_y"] is not None:
            truth = f", fp32 {float(one['psnr_y']):.3f} dB PSNR-Y, SSIM-Y {_signed(one['ssim_y'], '.4f')}"
        rows = [_cells(method, name) for method in figures["methods"]]
        lines += ["", f"**{name}: {one['pictures']} pictures{truth}**", "", as_table(HEADS, rows)]
    return "\n".join([*lines, "", *(f"- {_noted(method)}" for method in figures["methods"]), "", LEGEND])


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.rpartition("=")
    return (name, Path(path)) if equals else (Path(path).stem, Path(path))


def _peers(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return names


def _crops(args: argparse.Namespace, fine: Opened) -> tuple[list[Any], str]:
    from esrgan_deploy.export.quantisation.calibration import calibration_pictures

    chosen = calibration_pictures(
        args.calibration, channels=3, scale=fine.scale, multiple=fine.multiple, fit=args.crops
    )
    return list(chosen.fit), f"{chosen.description} (SHA-256 {chosen.digest[:12]})"


def _row_of_peer(peer: PeerGraph, row: Callable[[str, Path], dict[str, Any]]) -> dict[str, Any]:
    # One that has no graph, or whose graph does not run, keeps its line.
    if peer.path is None:
        return {"name": peer.name, "left_out": peer.why}
    try:
        return row(peer.name, peer.path)
    except (BenchmarkError, InferenceError) as error:
        return {"name": peer.name, "left_out": one_line(error)[:200]}


def _cells(method: dict[str, Any], name: str) -> Sequence[str]:
    if "sets" not in method:
        return (method["name"], *("–",) * (len(HEADS) - 1))
    found = method["sets"][name]
    to = found["to_reference"]
    return (
        method["name"],
        f"{method['share']['macs']:.1%}",
        _signed(found["loss"], "+.3f"),
        _signed(found["ssim_change"], "+.4f"),
        f"{float(to['psnr']):.2f}",
        _signed(max(to["bias"], key=abs), "+.3f"),
        f"{float(to['worst_tile']['psnr']):.1f}",
        _signed(found["flicker"], ".3f"),
    )


def _noted(method: dict[str, Any]) -> str:
    if "left_out" in method:
        return f"{method['name']}: left out, {method['left_out']}"
    share = method["share"]
    kinds = " and ".join(f"{number} with {kind} inputs" for kind, number in share["formats"].items())
    # Of a deep net hundreds of names are left: the first part of a name is enough.
    heads = Counter(left.partition(".")[0] for left in share["left"])
    rest = ", ".join(f"{number} in {head}" if number > 1 else head for head, number in heads.items())
    which = f"{share['quantised']} of {share['convolutions']} convolutions quantised"
    if share["quantised"]:
        which += f" ({kinds})" + (f", all but {rest}" if rest else "")
    return f"{method['name']}: {which}; {method['arithmetic']}"


def _signed(value: Any, form: str) -> str:
    return "–" if value is None else f"{float(value):{form}}"
