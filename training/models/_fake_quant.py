"""Quantisation-aware finetuning: the rounding of the export's Q/DQ pairs, while training."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy.export.nets import LARGEST, LEAST_STEP
from esrgan_deploy.export.quantisation import rounded as quantised

__all__ = ["FakeQuantisation", "rounded"]

_PERCENTILE = 0.9999
"""Of the magnitudes of one batch. The last ten-thousandth costs every other value a longer step (on an RRDB of
four blocks, max loses 0.03 dB on Set5 where this loses nothing)."""


class FakeQuantisation:
    """Rounds inputs and weights of the placed convolutions of a net, with gradients as if it had not.

    Activation scales are measured once, before the first step, and held; weight scales follow the weights.

    Args:
        groups: By name of a convolution, whose activation scale it takes: `placement`.
        precision: ``"int8"`` or ``"fp8"``.
        folds: By name, the factor that the graph's weights have over the module's; 1 where it is not named. Their
            scales are stored in half precision with it.
    """

    def __init__(
        self, groups: Mapping[str, str], precision: str, folds: Mapping[str, float] | None = None
    ) -> None:
        self._groups, self._precision, self._folds = groups, precision, folds or {}
        self._steps: dict[str, float] = {}
        self._seen: dict[str, float] | None = None

    @property
    def scales(self) -> dict[str, float]:
        """By group, the real value of one quantisation step of its activations."""
        return dict(self._steps)

    def attach(self, net: nn.Module) -> None:
        """Make the placed convolutions of a net compute with rounded inputs and weights.

        Raises:
            AttributeError: The net lacks one of them.
        """
        for name, group in self._groups.items():
            conv = net.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            fold = self._folds.get(name, 1.0)
            conv.forward = _Rounded(self, conv, group, fold)  # type: ignore[method-assign, assignment]

    @torch.no_grad()
    def calibrate(self, net: nn.Module, pictures: Iterator[Tensor]) -> None:
        """Measure the activation scales: of each batch a high percentile, of those the mean.

        Args:
            net: One that this is attached to; it computes without rounding meanwhile.
            pictures: Batches ``(N, 3, H, W)``, 0..1.
        """
        sums: dict[str, float] = {}
        count = 0
        for batch in pictures:
            self._seen = {}
            net(batch)
            count += 1
            for group, value in self._seen.items():
                sums[group] = sums.get(group, 0.0) + value
        self._seen = None
        largest = LARGEST[self._precision]
        # As the graph stores it: in half precision.
        self._steps = {
            group: float(torch.tensor(max(total / count / largest, LEAST_STEP)).half())
            for group, total in sums.items()
        }

    def activation(self, x: Tensor, group: str) -> Tensor:
        """Round the input of a convolution, or measure it while calibrating."""
        if self._seen is not None:
            self._seen[group] = max(self._seen.get(group, 0.0), _percentile(x))
            return x
        return rounded(x, torch.tensor(self._steps[group], device=x.device), self._precision)

    def weight(self, weight: Tensor, fold: float = 1.0) -> Tensor:
        """Round the weights of a convolution, with a scale for each channel of its output, as `storable` gives it."""
        if self._seen is not None:
            return weight
        largest = weight.detach().abs().amax((1, 2, 3), keepdim=True) / LARGEST[self._precision]
        stored = (largest * fold).clamp_min(LEAST_STEP).half().float()
        return rounded(weight, stored / fold, self._precision)

    def state_dict(self) -> dict[str, Any]:
        """Return what a state keeps."""
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._steps = dict(state["steps"])


def rounded(x: Tensor, step: Tensor, precision: str) -> Tensor:
    """Return what Quantize and Dequantize make of a tensor, with gradient 1 inside the range and 0 beyond it.

    Args:
        x: Any shape, float.
        step: The scale, broadcast to x.
        precision: ``"int8"``: -128..127, half to even; ``"fp8"``: E4M3, saturating at 448.
    """
    x = x.float()
    low = -128 if precision == "int8" else -LARGEST[precision]
    inside = x.clamp(low * step, LARGEST[precision] * step)
    return inside + (quantised(x.detach(), step, precision) - inside).detach()


@dataclasses.dataclass(frozen=True, eq=False)
class _Rounded:
    quantisation: FakeQuantisation
    conv: nn.Conv2d
    group: str
    fold: float

    def __call__(self, x: Tensor) -> Tensor:
        conv = self.conv
        x = self.quantisation.activation(x, self.group)
        weight = self.quantisation.weight(conv.weight, self.fold)
        return functional.conv2d(x, weight, conv.bias, conv.stride, conv.padding)


def _percentile(x: Tensor) -> float:
    magnitudes = x.detach().abs().flatten().float()
    above = max(1, round(magnitudes.numel() * (1 - _PERCENTILE)))
    return float(torch.topk(magnitudes, above).values[-1])
