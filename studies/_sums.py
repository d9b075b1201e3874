"""Convolutions as tensor cores compute them that add in fp16."""

from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SumsInHalf"]

PRODUCTS = 16
"""How many are added before the sum is rounded: the depth of one instruction."""


class SumsInHalf(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every 3x3 convolution of stride 1 rounds its sum to fp16 after each 16 products.

    An instruction of a tensor core multiplies exactly and adds 16 channels of one tap to an accumulator. One in fp16
    is what TensorRT takes where it is faster (kernels named f16f16_f16f16_f16); no processor here has it.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.ops.aten.convolution.default or tuple(args[1].shape[2:]) != (3, 3):
            return func(*args, **(kwargs or {}))
        given, weight, bias = args[:3]
        height, width = given.shape[2:]
        padded = functional.pad(given, [1] * 4)
        total = torch.zeros(len(given), len(weight), height, width)
        for y in range(3):
            for x in range(3):
                seen = padded[:, :, y : y + height, x : x + width]
                for first in range(0, weight.shape[1], PRODUCTS):
                    part = slice(first, first + PRODUCTS)
                    products = torch.einsum("oc,nchw->nohw", weight[:, part, y, x], seen[:, part])
                    total = (total + products).half().float()
        return total if bias is None else (total + bias[:, None, None]).half().float()
