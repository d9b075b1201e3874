"""What ``esrgan-export`` does once its arguments are known to be good."""

import shlex
import time
from pathlib import Path

from esrgan_deploy._console import note, say, show
from esrgan_deploy._manifest import Manifest
from esrgan_deploy.engines import explain
from esrgan_deploy.export._export import MANIFEST, export_model
from esrgan_deploy.export._options import PROCESSOR, ExportOptions
from esrgan_deploy.export._report import parity_table
from esrgan_deploy.export.checkpoints import folder_name
from esrgan_deploy.export.quantisation import explain_quantised

__all__ = ["run"]


def run(
    model: str | None, output: Path | None, options: ExportOptions, explain_size: tuple[int, int] | None
) -> int:
    """Export, print the proof, and return the exit status.

    Args:
        model: As for `export_model`.
        output: The folder to write; None takes the model's name.
        options: As for `export_model`.
        explain_size: Height and width of the picture whose kernels are listed as well.

    Raises:
        EsrganDeployError: The export was refused, or an artefact is not verified.
    """
    folder = output or Path(folder_name(model))
    started = time.perf_counter()
    # Progress goes to stderr, so that the table alone can be piped.
    manifest = export_model(model, folder, options, say=note)
    say(parity_table(manifest.artefacts))
    say(_summary(manifest, folder, time.perf_counter() - started))
    if explain_size is not None:
        graphs = [artefact for artefact in manifest.artefacts if artefact.kind == "onnx"]
        for graph in graphs[1:] or graphs:
            if graph.precision != PROCESSOR:
                show(explain(folder / graph.file, options.build, *explain_size))
            if graph.quantised:
                show(explain_quantised(folder, graph, manifest))
    manifest.raise_if_breached(folder / MANIFEST)
    return 0


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
