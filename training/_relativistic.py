"""The relativistic average GAN (arXiv:1807.00734), as ESRGAN uses it (its equations 1 and 2).

A discriminator's logit says how much more real a picture looks than the average one of the other kind. The
averages are over the batch of all processes, so that the number of processes does not change a training.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["discriminator_loss", "generator_loss"]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return what the discriminator minimises: real above the average fake, fake below the average real.

    Args:
        real: Logits of real pictures, ``(N, ...)``.
        fake: Logits of generated ones, the same shape.
    """
    return _loss(above=real, below=fake)


def generator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return what the generator minimises: the same with the kinds exchanged.

    Args:
        real: Logits of real pictures, without a gradient.
        fake: Logits of generated ones.
    """
    return _loss(above=fake, below=real)


def _loss(*, above: Tensor, below: Tensor) -> Tensor:
    up, down = above - _mean(below), below - _mean(above)
    # Softplus is binary cross-entropy with logits: of -x for the label 1, of x for the label 0.
    return (functional.softplus(-up).mean() + functional.softplus(down).mean()) / 2


def _mean(logits: Tensor) -> Tensor:
    mean = logits.mean()
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return mean
    return cast(Tensor, _OverAll.apply(mean))  # type: ignore[no-untyped-call]


class _OverAll(torch.autograd.Function):
    # Each process' mean enters the losses of all, so its gradient is the sum of what it is to each of them.
    @staticmethod
    def forward(_context: object, mean: Tensor) -> Tensor:
        return _summed(mean) / torch.distributed.get_world_size()

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        return _summed(gradient) / torch.distributed.get_world_size()


def _summed(value: Tensor) -> Tensor:
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total
