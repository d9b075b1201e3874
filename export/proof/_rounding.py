"""What rounding to half precision costs a net, computed in PyTorch and by nothing that exports."""

import copy
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from esrgan_deploy._parity import Comparer, Comparison, Pairs, planar
from esrgan_deploy.export.proof._reference import Reference, resized

__all__ = ["rounded_reference", "rounding_costs"]

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def rounding_costs(
    module: nn.Module, precision: str, sets: Mapping[str, Pairs], ratio: Fraction = Fraction(1)
) -> dict[str, Comparison]:
    """Measure what rounding alone costs: the reference with every tensor rounded, against it without.

    Args:
        module: The generator, in eval mode; it is not changed.
        precision: What an artefact is in. Of one that is neither fp16 nor bf16 nothing is measured.
        sets: By name of the set, pictures with their reference output.
        ratio: Final size over native size.

    Returns:
        By name of the set, where a sound artefact lies: see `esrgan_deploy._parity.beyond_rounding`.
    """
    if precision not in _HALF:
        return {}
    rounded, costs = rounded_reference(module, precision, ratio), {}
    for on, pairs in sets.items():
        comparer = Comparer(on, f"PyTorch, every tensor rounded to {precision}", structure=False)
        for name, (picture, expected) in pairs.items():
            comparer.add(name, expected, rounded(planar(picture)))
        costs[on] = comparer.result()
    return costs


def rounded_reference(module: nn.Module, precision: str, ratio: Fraction = Fraction(1)) -> Reference:
    """Return the reference of a module whose weights, input and every result are rounded to half precision.

    It computes in fp32 between two roundings, as tensor cores that add in fp32 do, and rounds after each of PyTorch's
    operators. A graph rounds elsewhere too (folded scales, merged convolutions), so that the two agree in how much is
    lost and not in which samples.

    Args:
        module: The generator in fp32, in eval mode; it is not changed.
        precision: ``"fp16"`` or ``"bf16"``.
        ratio: Final size over native size.
    """
    half, module = _HALF[precision], copy.deepcopy(module)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dtype == torch.float32:
                tensor.copy_(tensor.to(half))

    def reference(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        # Not inference_mode, whose tensors no mode sees.
        with torch.no_grad():
            given = torch.from_numpy(batch).to(half).float()
            with _Rounded(half):
                out = module(given)
            result: npt.NDArray[np.float32] = resized(out, ratio).to(half).float().contiguous().numpy()
        return result

    return reference


class _Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds every float32 result of an operator."""

    def __init__(self, half: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._half = half

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        alias = func._schema.returns[0].alias_info if func._schema.returns else None
        if alias is not None and not alias.is_write:
            # A view holds rounded values already, and a copy of it would no longer be one.
            return out
        return tree_map(lambda one: self._round(one, in_place=alias is not None), out)

    def _round(self, value: Any, *, in_place: bool) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        rounded = value.to(self._half)
        return value.copy_(rounded) if in_place else rounded.float()
