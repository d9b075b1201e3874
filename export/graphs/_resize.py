"""A final size other than the net's own, resized inside the graph and before anything is rounded."""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.graphs._edit import append, constant

__all__ = ["resize_output", "resize_ratio"]


def resize_ratio(scale: int, outscale: float) -> Fraction:
    """Return the resize that turns a net's scale into the wanted one, as a small fraction.

    Raises:
        ExportError: The wanted scale is not positive, or not a ratio of whole numbers up to 16.
    """
    wanted = Fraction(outscale).limit_denominator(16)
    if wanted <= 0 or not math.isclose(float(wanted), outscale, rel_tol=1e-6):
        raise ExportError(
            f"outscale {outscale:g} is not written; 2, 3, 1.5 and other ratios of whole numbers up to 16 are"
        )
    return wanted / scale


def resize_output(model: ir.Model, ratio: Fraction) -> int:
    """Resize the float output by a ratio, bicubic with a = -0.5, borders repeated, antialiased when it shrinks.

    TensorRT refuses ONNX's antialiased Resize. Shrinking by p/q is therefore written as one strided depthwise
    convolution that makes p × p phases from every q × q pixels, and DepthToSpace: the same arithmetic, and exact.

    Args:
        model: A float graph.
        ratio: New size over old size.

    Returns:
        What height and width of the net's output have to be a multiple of: q when it shrinks, else 1.
    """
    if ratio == 1:
        return 1
    output = model.graph.outputs[0]
    assert output.shape is not None
    batch, channels, height, width = output.shape
    assert isinstance(channels, int)
    if ratio > 1:
        scales = constant(model, np.array([1, 1, float(ratio), float(ratio)], np.float32), "outscale_factors")
        resized = append(
            model,
            "Resize",
            [output, None, scales],
            {"mode": "cubic", "cubic_coeff_a": -0.5, "coordinate_transformation_mode": "half_pixel"},
            name="outscale",
        )
        multiple = 1
    else:
        resized = _shrink(model, output, channels, ratio)
        multiple = ratio.denominator
    model.graph.outputs[0] = resized
    output.name, resized.name = "native_output", "output"
    resized.shape = ir.Shape([batch, channels, *(_scaled(side, ratio) for side in (height, width))])
    resized.type = output.type
    return multiple


def _scaled(side: object, ratio: Fraction) -> str:
    # "4*height" at 1/2 reads "2*height".
    factor, _, name = str(side.value if isinstance(side, ir.SymbolicDim) else side).rpartition("*")
    total = Fraction(factor or 1) * ratio
    if total.denominator == 1:
        return name if total == 1 else f"{total}*{name}"
    return f"floor({total}*{name})"


def _shrink(model: ir.Model, output: ir.Value, channels: int, ratio: Fraction) -> ir.Value:
    kernel, before, after = _phases(ratio)
    pads = constant(model, np.array([0, 0, before, before, 0, 0, after, after], np.int64), "outscale_pads")
    padded = append(model, "Pad", [output, pads], {"mode": "edge"}, name="outscale_border")
    p = ratio.numerator
    square = np.einsum("iy,jx->ijyx", kernel, kernel).reshape(p * p, 1, kernel.shape[1], kernel.shape[1])
    weights = constant(model, np.tile(square, (channels, 1, 1, 1)).astype(np.float32), "outscale_kernel")
    phases = append(
        model,
        "Conv",
        [padded, weights],
        {"group": channels, "strides": [ratio.denominator] * 2, "kernel_shape": list(square.shape[2:])},
        name="outscale",
    )
    if p == 1:
        return phases
    return append(model, "DepthToSpace", [phases], {"blocksize": p, "mode": "CRD"}, name="outscale_phases")


def _phases(ratio: Fraction) -> tuple[npt.NDArray[np.float64], int, int]:
    # Row i holds the taps of output pixel i of a block, over the input pixels -before … q-1+after of it.
    p, q = ratio.numerator, ratio.denominator
    centres = (np.arange(p) + 0.5) * q / p - 0.5
    reach = 2 * q / p
    before = math.floor(reach - centres[0])
    after = math.floor(centres[-1] + reach) - (q - 1)
    taps = np.arange(-before, q + after)
    kernel = _cubic(np.abs(taps - centres[:, None]) * p / q)
    return kernel / kernel.sum(axis=1, keepdims=True), before, after


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Keys (1981) with a = -0.5: what MATLAB, Pillow and the benchmark sets call bicubic.
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
