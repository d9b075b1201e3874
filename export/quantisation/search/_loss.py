"""What a net loses on pictures that calibration has not seen."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from esrgan_deploy._errors import ExportError
from esrgan_deploy._metrics import crop_border, luma
from esrgan_deploy._parity import Comparer, to_levels
from esrgan_deploy.export.quantisation._simulation import tensor_of

__all__ = ["HeldLoss", "Loss", "Pair"]

Picture = npt.NDArray[np.uint8]
Pair = tuple[Picture, Picture | None]
"""``(1, H, W, C)`` and its truth ``(1, H·s, W·s, C)``, or None where there is none."""

Net = Callable[[Tensor], Tensor]
"""From ``(1, C, H, W)`` float32 0..1 to the enlarged picture, not clipped."""

# A picture that is all but reproduced would outweigh all others: nobody sees errors below this.
_BEST_PSNR = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What a net loses, over all held pictures.

    Attributes:
        psnr_y: Mean PSNR-Y against the truth in dB, as many HR pixels cropped as the net enlarges; a picture
            that is better than 60 dB counts as 60. None without truth.
        loss: The fp32 net's `psnr_y` less this one's: above 0 is worse. None without truth.
        fidelity: PSNR of the 8-bit picture to the fp32 net's in dB, over all samples; infinite where equal.
        worst: The lowest PSNR to the fp32 net's picture of any 64×64 tile of it, in dB: an outlier that was clipped
            shows in one place.
        shift: Largest mean signed error of a channel over all pictures, in levels of 255: a tint.
        noise: Mean squared difference from the fp32 net's output, 0..1, neither clipped nor rounded: the noise
            power, which adds up over layers and is not lost in the rounding where it is small.
    """

    psnr_y: float | None
    loss: float | None
    fidelity: float
    worst: float
    shift: float
    noise: float


class HeldLoss:
    """Holds nets against the truth and against the fp32 net on the same pictures.

    Without truth nothing can be said about the loss in dB: the error that quantisation adds may be of either sign
    against the net's own, and only the truth tells. `Loss.fidelity` and `Loss.noise` are all that is known then.

    Args:
        pairs: The pictures; all have their truth, or none.
        outputs: The fp32 net's for each, ``(1, C, H·s, W·s)`` float32.

    Raises:
        ExportError: There is no picture, some have no truth, a truth is not of the size of its output, or an output
            holds a NaN or an infinity.
    """

    def __init__(self, pairs: Sequence[Pair], outputs: Sequence[Tensor]) -> None:
        if not pairs:
            raise ExportError(
                "no picture is held back from calibration. Run: --calibration DIR with more pictures"
            )
        if len(pairs) != len(outputs):
            raise ValueError(f"{len(pairs)} pictures, {len(outputs)} outputs")
        known = sum(truth is not None for _, truth in pairs)
        if known not in (0, len(pairs)):
            raise ExportError(f"{known} of {len(pairs)} held pictures have a truth; all have one, or none")
        self.pairs = tuple(pairs)
        self.outputs = tuple(outputs)
        self.scale = outputs[0].shape[2] // pairs[0][0].shape[1]
        self._levels = []
        for (picture, truth), out in zip(self.pairs, self.outputs, strict=True):
            levels = _levels(out)
            if truth is not None and truth.shape != levels.shape:
                raise ExportError(
                    f"a held picture of {picture.shape[1:3]} becomes {levels.shape[1:3]}, and its truth is "
                    f"{truth.shape[1:3]}"
                )
            self._levels.append(levels)
        self._psnr_y = self._mean_psnr_y(self._levels)

    @classmethod
    def of_net(cls, pairs: Sequence[Pair], net: Net) -> "HeldLoss":
        """Run the fp32 net on the pictures, once."""
        with torch.inference_mode():
            return cls(pairs, [net(tensor_of(picture)) for picture, _ in pairs])

    @property
    def psnr_y(self) -> float | None:
        """The fp32 net's mean PSNR-Y in dB, None without truth."""
        return self._psnr_y

    @property
    def pixels(self) -> int:
        """Pixels of all pictures before enlarging."""
        return sum(picture.shape[1] * picture.shape[2] for picture, _ in self.pairs)

    def closer_than_bicubic(self) -> bool:
        """Whether the fp32 net is nearer to the truth than bicubic interpolation is; False without truth."""
        if self._psnr_y is None:
            return False
        enlarged = [
            functional.interpolate(tensor_of(picture), scale_factor=self.scale, mode="bicubic")
            for picture, _ in self.pairs
        ]
        interpolated = self._mean_psnr_y([_levels(one) for one in enlarged])
        assert interpolated is not None
        return self._psnr_y > interpolated

    def digest(self) -> str:
        """Return the SHA-256 of pictures, truths and the fp32 net's outputs, 64 hexadecimal digits."""
        found = hashlib.sha256()
        for (picture, truth), levels in zip(self.pairs, self._levels, strict=True):
            for array in (picture, truth, levels.astype(np.uint8)):
                if array is not None:
                    found.update(repr(array.shape).encode())
                    found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def __call__(self, net: Net) -> Loss:
        """Run a net on all pictures and return what it loses.

        Raises:
            ExportError: It puts out a NaN or an infinity.
        """
        with torch.inference_mode():
            return self.of([net(tensor_of(picture)) for picture, _ in self.pairs])

    def of(self, outputs: Sequence[Tensor]) -> Loss:
        """Return what these outputs lose, one ``(1, C, H·s, W·s)`` float32 for each picture.

        Raises:
            ExportError: One holds a NaN or an infinity.
        """
        levels = [_levels(out) for out in outputs]
        comparer = Comparer("held", "simulated", structure=False)
        noise, samples = 0.0, 0
        for out, reference in zip(outputs, self.outputs, strict=True):
            noise += float((out - reference).double().square().sum())
            samples += out.numel()
            comparer.add("held", reference.numpy(), out.numpy())
        seen = comparer.result()
        psnr_y = self._mean_psnr_y(levels)
        return Loss(
            psnr_y=psnr_y,
            loss=None if psnr_y is None or self._psnr_y is None else self._psnr_y - psnr_y,
            fidelity=seen.psnr,
            worst=float(seen.worst_tile["psnr"]),
            shift=max(map(abs, seen.bias)),
            noise=noise / samples,
        )

    def _mean_psnr_y(self, levels: Sequence[npt.NDArray[np.float64]]) -> float | None:
        values = []
        for (_, truth), got in zip(self.pairs, levels, strict=True):
            if truth is None:
                return None
            # A picture no larger than its borders is judged whole.
            border = self.scale if min(got.shape[1:3]) > 2 * self.scale else 0
            a, b = (_luma(crop_border(picture[0], border)) for picture in (truth, got))
            error = float(np.mean((a - b) ** 2))
            values.append(min(_BEST_PSNR, 10 * math.log10(255.0**2 / error)) if error else _BEST_PSNR)
        return float(np.mean(values))


def _levels(out: Tensor) -> npt.NDArray[np.float64]:
    levels = to_levels(out.detach().numpy())
    # A NaN stays one, and an infinity is clipped: both are in the output.
    if not bool(torch.isfinite(out).all()):
        raise ExportError("the net puts out a NaN or an infinity on a held picture, so it cannot be judged")
    return levels


def _luma(picture: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """BT.601 Y of three channels; the only channel of a grey picture; the mean of any other number."""
    if picture.shape[-1] == 3:
        return luma(picture)
    mean: npt.NDArray[np.float64] = picture.astype(np.float64).mean(axis=-1)
    return mean
