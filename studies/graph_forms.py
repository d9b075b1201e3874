"""Which form of one net is best? Kernels, declared memory traffic, and time.

Cited by docs/performance.md, "Declared memory traffic of the graph forms", and docs/quantisation.md, "Declared
bytes":

    python -m studies graph_forms --seconds 60 --threads 1
    python -m studies graph_forms --quantised --seconds 0

TensorRT for RTX builds each as static fp16 plans on any machine, and its builder logs every kernel with the tensors
it reads and writes. The sum of their bytes per input pixel is exactly repeatable. It is what the compiler declares,
not a time: caches are not in it. Times are taken with ONNX Runtime on the processor, fp32, in turns, which says
nothing of a GPU; where there is an NVIDIA GPU, the plans are timed on it as well.
"""

import argparse
import contextlib
import functools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._command_line import Parser, at_least, between
from esrgan_deploy._flavour import gpu_is_usable
from esrgan_deploy.benchmarks.measure import measure
from esrgan_deploy.engines import BuildOptions, ShapeRange, declared_bytes_per_pixel, engine_from_onnx
from esrgan_deploy.runtime import SessionOptions, open_session
from studies._shared import Figures, rrdbnet, spread, threads_option
from studies._shared import table as as_table

CPU_SIDE = 48
"""Side of the picture that the processor is timed with, at most: it is hundreds of times as slow as a GPU."""


def options(parser: Parser) -> None:
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
        "--seconds", type=between(0, 86400), default=30.0, help="of timing, 0 for none (default: 30)"
    )
    parser.add_argument(
        "--quantised", action="store_true", help="build int8 and fp8 as well, in several places"
    )
    threads_option(parser)


def run(args: argparse.Namespace) -> Figures:
    from esrgan_deploy.export import describe_spec, load_checkpoint
    from esrgan_deploy.export.graphs import (
        clone,
        fold_scales,
        form_for_plans,
        nest_concats,
        save,
        to_precision,
        trace,
    )

    if args.checkpoint is None:
        spec, module = rrdbnet(2)
    else:
        loaded = load_checkpoint(args.checkpoint)
        spec, module = loaded.spec, loaded.module()
    flat = trace(module, spec)
    nested, folded = clone(flat), clone(flat)
    nest_concats(nested)
    nest_concats(folded)
    fold_scales(folded)
    planned = clone(folded)
    form_for_plans(planned, "fp16")
    graphs = {"flat": flat, "nested": nested, "nested, 0.2 folded": folded, "for plans": planned}
    picture = np.random.default_rng(0).random((1, spec.in_channels, 32, 32), np.float32)
    figures: Figures = {"net": describe_spec(spec), "side": args.side, "forms": {}}
    with tempfile.TemporaryDirectory(prefix="esrgan-forms-") as folder:
        files: dict[str, Path] = {}
        plans: dict[str, Path] = {}
        for name, graph in graphs.items():
            files[name] = Path(folder) / f"{len(files)}.onnx"
            save(graph, files[name])
            plans[name] = files[name].with_suffix(".plan")
            half = files[name].with_suffix(".fp16.onnx")
            save(to_precision(graph, "fp16"), half)
            built, figures["forms"][name] = _built(half, plans[name], args.side, "fp16")
            figures["tensorrt"] = f"{built.flavour} {built.version}"
        cpu = SessionOptions(providers=("cpu",), threads=args.threads, spin=False)
        outputs = {}
        for name, file in files.items():
            with contextlib.closing(open_session(file, cpu)) as session:
                outputs[name] = session.run(picture).astype(float)
        flat_output = outputs["flat"]
        figures["difference"] = {
            name: float(np.abs(output - flat_output).max()) for name, output in outputs.items()
        }
        figures["largest_output"] = float(np.abs(flat_output).max())
        figures["quantised"] = (
            _quantised(spec, module, folded, Path(folder), args) if args.quantised else None
        )
        figures["times"] = {"processor": None, "gpu": None}
        if args.seconds > 0:
            figures["times"]["processor"] = _times(files, cpu, min(args.side, CPU_SIDE), args.seconds)
            if gpu_is_usable():
                # Built a moment ago in a folder of this process: there is no manifest, and none is needed.
                trusted = SessionOptions(trust=True)
                figures["times"]["gpu"] = _times(plans, trusted, args.side, args.seconds)
    return figures


def table(figures: Figures) -> str:
    forms = figures["forms"]
    lines = [f"{figures['net']}, fp16, {figures['side']}x{figures['side']}, {figures['tensorrt']}", ""]
    flat = forms["flat"]["bytes_per_pixel"]
    rows: list[tuple[object, ...]] = [
        (name, form["kernels"], f"{form['bytes_per_pixel']:,.0f}", f"{form['bytes_per_pixel'] / flat:.1%}",
         f"{figures['difference'][name]:.1e}")
        for name, form in forms.items()
    ]  # fmt: skip
    lines.append(as_table(("form", "kernels", "bytes per LR pixel", "of flat", "fp32 difference"), rows))
    if figures["quantised"] is not None:
        fp16 = forms["for plans"]["bytes_per_pixel"]
        rows = [
            (name, f"{form['share']:.1%}", form["kernels"], f"{form['bytes_per_pixel']:,.0f}",
             f"{form['bytes_per_pixel'] / fp16:.1%}",
             ", ".join(f"{count} {dtype}" for dtype, count in form["convolutions"].items()))
            for name, form in figures["quantised"].items()
        ]  # fmt: skip
        heads = ("graph", "multiply-adds", "kernels", "bytes per LR pixel", "of fp16", "convolutions")
        lines += ["", as_table(heads, rows)]
    for device, times in figures["times"].items():
        if times is None:
            lines += ["", f"time on the {device}: not taken"]
            continue
        rows = [
            (name, f"{form['of_flat']:.3f} ({form['low']:.3f} to {form['high']:.3f})",
             f"{statistics.median(form['seconds']) * 1e3:.1f}", len(form["seconds"]))
            for name, form in times["forms"].items()
        ]  # fmt: skip
        lines += ["", as_table((f"on the {device}: {times['on']}", "of flat", "median ms", "rounds"), rows)]
    return "\n".join(lines)


def _built(graph: Path, plan: Path, side: int, precision: str) -> tuple[Any, dict[str, Any]]:
    shapes = ShapeRange.fixed((1, side, side))
    built = engine_from_onnx(graph, plan, BuildOptions(shapes=shapes), expect_precision=precision)
    declared = declared_bytes_per_pixel(built.layers, side * side)
    return built, {"kernels": len(built.layers), "bytes_per_pixel": declared}


def _times(files: dict[str, Path], how: SessionOptions, side: int, seconds: float) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(contextlib.closing(open_session(file, how))) for file in files.values()
        ]
        info = sessions[0].info
        batch = np.random.default_rng(0).random(info.batch_shape(1, side, side)).astype(info.dtype)
        runs = [functools.partial(session.run, batch) for session in sessions]
        timings = measure(runs, seconds=seconds, most_warmups=4)
    forms = {}
    for name, timing in zip(files, timings, strict=True):
        found = spread(timing.values, timings[0].values)
        forms[name] = {"seconds": timing.values, "of_flat": found["median"]}
        forms[name] |= {key: found[key] for key in ("low", "high")}
    return {"on": f"{info.provider}, {side}x{side}, threads {how.threads or 'all'}", "forms": forms}


def _quantised(
    spec: Any, module: Any, folded: Any, folder: Path, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Build the net quantised in several ways.

    The steps themselves change no kernel, so those of the activations are one number and not calibrated.
    """
    from esrgan_deploy.export.graphs import (
        Recipe,
        clone,
        form_for_plans,
        quantise,
        save,
        to_precision,
        weight_steps,
    )
    from esrgan_deploy.export.nets import layers

    found = layers(spec)
    forms: dict[str, dict[str, Any]] = {}
    for kind, per in ((kind, per) for kind in ("fp8", "int8") for per in ("tensor", "channel")):
        weights = {
            layer.name: weight_steps(
                module.get_submodule(layer.name).weight.numpy(), layer, kind, per_channel=per == "channel"
            )
            for layer in found
        }
        recipe = Recipe(
            formats=dict.fromkeys(weights, kind),
            activations={layer.group: 2.0**-6 for layer in found},
            weights=weights,
        )
        for where, names in _places(found).items():
            graph, path = clone(folded), folder / f"q{len(forms)}.onnx"
            done = quantise(graph, found, recipe.only(names))
            form_for_plans(graph, kind)
            save(to_precision(graph, "fp16"), path)
            built, form = _built(path, path.with_suffix(".plan"), args.side, kind)
            forms[f"{kind}, per {per}, {where}"] = {**form, "convolutions": built.dtypes, "share": done.share}
    return forms


def _places(found: Any) -> dict[str, list[str]]:
    body = [layer.name for layer in found if layer.place == "body"]
    tail = [layer.name for layer in found if layer.place == "tail"]
    places = {"body": body}
    if tail:
        # The last of the tail writes the most for a convolution that is left in fp16.
        places[f"body and tail but {tail[-1]}"] = [*body, *tail[:-1]]
        places["body and tail"] = [*body, *tail]
        # What follows an enlargement is a transposed convolution in fp16, and a wide one in 8 bits.
        places["body and tail but conv_up"] = [
            *body,
            *(name for name in tail if not name.startswith("conv_up")),
        ]
    return {**places, "all": [layer.name for layer in found]}
