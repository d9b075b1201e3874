"""PyTorch in fp32: what every artefact is held against."""

from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from esrgan_deploy._errors import ParityError
from esrgan_deploy._parity import Pairs, planar

__all__ = ["Reference", "reference_of_module", "reference_pairs", "resized"]

Reference = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""From ``(N, C, H, W)`` float32 0..1 to the enlarged picture, the same layout, not clipped."""


def reference_of_module(module: nn.Module, ratio: Fraction = Fraction(1)) -> Reference:
    """Return the reference of a module in fp32, resized by PyTorch where another final size is wanted.

    Args:
        module: The generator, in eval mode.
        ratio: Final size over native size.
    """

    def reference(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            out = module(torch.from_numpy(batch))
            result: npt.NDArray[np.float32] = resized(out, ratio).contiguous().numpy()
        return result

    return reference


def resized(picture: torch.Tensor, ratio: Fraction) -> torch.Tensor:
    """Resize a batch ``(N, C, H, W)`` with PyTorch's antialiased bicubic, borders repeated as the graph does.

    Computed in float64 and returned in the picture's dtype: in float32 PyTorch takes the places of the taps to fewer
    digits than a sound graph holds, and is up to 1.5e-4 off.
    """
    if ratio == 1:
        return picture
    # PyTorch leaves out what lies beyond the border and weighs the rest more; padded and cropped, it repeats it.
    p, q = ratio.numerator, ratio.denominator
    margin = 4 * max(p, q) // p * q
    height, width = (int(side * ratio) for side in picture.shape[2:])
    padded = functional.pad(picture.double(), [margin] * 4, mode="replicate")
    out = functional.interpolate(padded, scale_factor=float(ratio), mode="bicubic", antialias=True)
    start = margin * p // q
    return out[:, :, start : start + height, start : start + width].to(picture.dtype)


def reference_pairs(reference: Reference, pictures: Mapping[str, npt.NDArray[np.uint8]]) -> Pairs:
    """Run the reference on 8-bit pictures ``(N, H, W, C)``.

    Raises:
        ParityError: The checkpoint itself puts out a NaN or an infinity.
    """
    pairs: Pairs = {}
    for name, picture in pictures.items():
        out = reference(planar(picture))
        if not np.isfinite(out).all():
            raise ParityError(
                f"PyTorch in fp32 puts out a NaN or an infinity for the picture {name!r}: the checkpoint "
                "itself is broken, so nothing was exported. Try another one"
            )
        pairs[name] = (picture, out)
    return pairs
