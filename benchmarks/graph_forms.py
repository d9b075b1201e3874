"""Declared memory traffic of one net in several graph forms, on any machine: no GPU is needed.

    python -m esrgan_deploy.benchmarks.graph_forms [checkpoint]

TensorRT for RTX builds each as static fp16 plans, and its builder logs every kernel with the tensors it reads
and writes. The sum of their bytes per input pixel is exactly repeatable. It is what the compiler declares, not
a time: caches are not in it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from esrgan_deploy._console import one_line_errors
from esrgan_deploy._files import replaced_atomically

__all__ = ["main", "traffic_of_forms"]


@one_line_errors("graph_forms")
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m esrgan_deploy.benchmarks.graph_forms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, help="default: an RRDB of 2 blocks with random weights"
    )
    parser.add_argument("--side", type=int, default=128, help="side of the picture in pixels (default: 128)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)
    figures = traffic_of_forms(args.checkpoint, side=args.side)
    flat = figures["forms"]["flat"]
    print(f"{figures['net']}, fp16, {args.side}x{args.side}, {figures['tensorrt']}")
    print(f"{'form':18} {'kernels':>8} {'bytes/LR px':>12} {'of flat':>8} {'largest fp32 difference':>24}")
    for name, form in figures["forms"].items():
        share = form["bytes_per_pixel"] / flat["bytes_per_pixel"]
        differs = figures["difference"][name]
        print(f"{name:18} {form['kernels']:8} {form['bytes_per_pixel']:12,.0f} {share:8.1%} {differs:24.1e}")
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def traffic_of_forms(checkpoint: Path | None = None, *, side: int = 128) -> dict[str, Any]:
    """Build one net in each form and return what each declares.

    Args:
        checkpoint: A checkpoint; None makes an RRDB of 2 blocks, 64 features, with random weights.
        side: Height and width of the picture in pixels.

    Returns:
        ``{"net": …, "tensorrt": …, "difference": {"flat": 0.0, …},
        "forms": {"flat": {"kernels", "bytes_per_pixel"}, …}}``; a difference is of the fp32 outputs.

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
    forms, tensorrt = {}, ""
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
    return {
        "net": describe_spec(spec),
        "tensorrt": tensorrt,
        "difference": {
            name: float(np.abs(outputs[0] - output).max())
            for name, output in zip(graphs, outputs, strict=True)
        },
        "forms": forms,
    }


if __name__ == "__main__":
    sys.exit(main())
