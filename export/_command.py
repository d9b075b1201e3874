"""What ``esrgan-export`` does once its arguments are known to be good."""

import argparse
import shlex
import time
from pathlib import Path

from esrgan_deploy._console import OptionError, note, say, show
from esrgan_deploy._errors import EngineBuildError, ExportError
from esrgan_deploy._manifest import Manifest
from esrgan_deploy.engines import BuildOptions, ShapeRange, explain
from esrgan_deploy.export._artefacts import refuse_breaches
from esrgan_deploy.export._export import MANIFEST, export_model
from esrgan_deploy.export._names import OFFICIAL, folder_name
from esrgan_deploy.export._options import PROCESSOR, ExportOptions
from esrgan_deploy.export._quantised_explain import explain_quantised
from esrgan_deploy.export._report import parity_table
from esrgan_deploy.export.quantisation._options import QuantiseOptions

__all__ = ["run"]

_GIB = 2**30


def run(args: argparse.Namespace) -> int:
    """Export, print the proof, and return the exit status.

    Raises:
        EsrganDeployError: The export was refused, or an artefact is not verified.
        OptionError: An option has a value that is not allowed.
    """
    if args.list:
        for name, release in OFFICIAL.items():
            show(f"{name:32} {release.size / 2**20:5.1f} MiB")
        return 0
    try:
        options = _options(args)
        size = None if args.explain is None else _size(args.explain)
    except (ValueError, ExportError, EngineBuildError) as error:
        raise OptionError(str(error)) from error
    folder = args.output or Path(folder_name(args.model))
    started = time.perf_counter()
    # Progress goes to stderr, so that the table alone can be piped.
    manifest = export_model(args.model, folder, options, say=note)
    say(parity_table(manifest.artefacts))
    say(_summary(manifest, folder, time.perf_counter() - started))
    if size is not None:
        graphs = [artefact for artefact in manifest.artefacts if artefact.kind == "onnx"]
        for graph in graphs[1:] or graphs:
            if graph.precision != PROCESSOR:
                show(explain(folder / graph.file, options.build, *size))
            if graph.quantised:
                show(explain_quantised(folder, graph, manifest))
    refuse_breaches(manifest.artefacts, folder / MANIFEST)
    return 0


def _options(args: argparse.Namespace) -> ExportOptions:
    build: dict[str, object] = {
        "flavour": args.flavour,
        "version_compatible": args.version_compatible,
        "aux_streams": args.aux_streams,
        "timing_cache": args.timing_cache,
        "optimization_level": args.optimization_level,
    }
    if args.shapes is not None:
        build["shapes"] = ShapeRange.parse(args.shapes)
    for name in ("workspace", "memory_limit"):
        value = getattr(args, name)
        if value is not None:
            build[name] = int(value * _GIB)
    if args.compute_capabilities:
        build["compute_capabilities"] = tuple(part.strip() for part in args.compute_capabilities.split(","))
    if args.hardware_compatibility:
        build["hardware_compatibility"] = args.hardware_compatibility
    return ExportOptions(
        precisions=tuple(dict.fromkeys(args.precision or ("fp16",))),
        quantise=QuantiseOptions(
            calibration=args.calibration,
            budget=args.budget,
            method=args.method,
            per_channel=None if args.weights is None else args.weights == "per-channel",
            equalise=args.equalise,
            parts=args.parts,
            remainders=args.remainders,
            rounding=args.rounding,
            search=args.search,
        ),
        form=args.form,
        watchdog=args.watchdog,
        opset=args.opset,
        outscale=args.outscale,
        images=args.images,
        plan=args.plan,
        build=BuildOptions(**build),  # type: ignore[arg-type]
        scale=args.scale,
        denoise_strength=args.denoise_strength,
        denoise_with=args.denoise_with,
        offline=args.offline,
        range=args.range,
        layout=args.layout,
        output_name=args.output_name,
        force=args.force,
    )


def _size(text: str) -> tuple[int, int]:
    shape = ShapeRange.parse(text).opt
    return shape[1], shape[2]


def _summary(manifest: Manifest, folder: Path, seconds: float) -> str:
    lines = [f"in {folder} after {seconds:.0f} s:"]
    for artefact in manifest.artefacts:
        state = {True: "verified", False: "NOT VERIFIED", None: artefact.note or "not run here"}[
            artefact.verified
        ]
        lines.append(f"  {artefact.file:28} {artefact.size / 2**20:7.2f} MiB  {state}")
    lines.append(f"  {MANIFEST:28}               what each of them is, and these figures")
    # ONNX Runtime has no bf16 convolution on a processor, and what is not verified is nothing to go on with.
    graphs = [a for a in manifest.artefacts if a.kind == "onnx" and a.precision != "bf16" and a.verified]
    if graphs:
        model = shlex.quote(str(folder / graphs[-1].file))
        lines.append(f"next: esrgan-upscale picture.png -o enlarged.png --model {model}")
    return "\n".join(lines)
