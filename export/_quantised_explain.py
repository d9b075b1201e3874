"""What ``--explain`` says of a quantised graph: which convolution errs by more than its rounding explains."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy._errors import MissingDependencyError
from esrgan_deploy._manifest import Artefact, Manifest
from esrgan_deploy.export._golden import golden_pictures
from esrgan_deploy.export._qdq import apply_parameters_to_graph
from esrgan_deploy.export.quantisation._drawn import SCENES, draw
from esrgan_deploy.export.quantisation._explain import explain_errors
from esrgan_deploy.export.quantisation._recipe_file import load_recipe
from esrgan_deploy.export.quantisation._structure import layers

__all__ = ["explain_quantised"]

_SIDE = 48
"""Of the drawn pictures that it is looked at on, in pixels."""


def explain_quantised(folder: Path, artefact: Artefact, manifest: Manifest) -> str:
    """Compare a quantised graph of an export with its fp32 twin, convolution by convolution.

    The twin is the interchange graph with the recipe's rewritten parameters, so that what is left is rounding.

    Args:
        folder: The export.
        artefact: The graph, with a file of scales beside it.
        manifest: Of the export.

    Returns:
        A table of several lines, or one line that says what is missing.

    Raises:
        ExportError: The files do not belong together.
    """
    scales = folder / f"{artefact.file.removesuffix('.onnx')}.scales.json"
    recipe = load_recipe(scales).recipe
    twin = ir.load(folder / "model.onnx")
    apply_parameters_to_graph(twin, layers(manifest.spec), recipe.parameters)
    try:
        found = explain_errors(twin, folder / artefact.file, _pictures(manifest, artefact.size_multiple))
    except MissingDependencyError as error:
        return f"{artefact.file}: its errors were not compared layer by layer ({error})"
    return f"{artefact.file}, layer by layer on drawn pictures:\n{found.table()}"


def _pictures(manifest: Manifest, multiple: int) -> list[npt.NDArray[np.uint8]]:
    channels = manifest.spec.in_channels
    if channels != 3:
        return list(golden_pictures(channels, multiple).values())
    side = -(-_SIDE // multiple) * multiple
    return [draw(scene, side)[None] for scene in SCENES[:4]]
