"""One optimiser step of the PSNR-oriented stage; the GAN stage builds on it (`_gan`)."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from esrgan_deploy.training._config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "Batch",
    "LossNotFiniteError",
    "PsnrStage",
    "averaged",
    "learning_rate",
    "optimiser_of",
    "set_rate",
]

Batch = tuple[Tensor, Tensor]
_BETAS = (0.9, 0.99)
"""Adam's, as BasicSR trains ESRGAN (options/train/ESRGAN)."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate that a step, from 0, is taken with.

    It rises linearly over the warm-up; then cosine goes to zero at the last step, and multistep multiplies it by
    gamma once more from each milestone on.
    """
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "cosine":
        return config.learning_rate * rise * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
    passed = sum(step >= milestone for milestone in config.milestones)
    return config.learning_rate * rise * config.gamma**passed


class LossNotFiniteError(ArithmeticError):
    """A loss became NaN or infinite; no weight was changed with it."""


class PsnrStage:
    """L1 to the HR picture, to a teacher's, or to both."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: "Accelerator",
        net: nn.Module,
        teacher: nn.Module | None,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.average = averaged(net.to(accelerator.device), config.ema)
        self.net, self.optimiser = accelerator.prepare(net, optimiser_of(net, config))
        self._teacher = teacher.to(accelerator.device) if teacher is not None else None
        accelerator.register_for_checkpointing(self.average)

    def step(self, parts: Sequence[Batch], rate: float) -> dict[str, float]:
        """Take one optimiser step.

        Args:
            parts: The share of this process, each LR ``(n, 3, h, w)`` and HR ``(n, 3, h·s, w·s)``, 0..1.
            rate: The learning rate.

        Returns:
            The losses over the whole batch of all processes, by name.

        Raises:
            LossNotFiniteError: On every process, if the loss is not finite on any.
        """
        totals: dict[str, float] = {}
        for lr, hr in self.each(parts, self.net):
            loss = self.pixel_loss(self.net(lr), lr, hr)
            self.backward({"l1": loss}, {"l1": 1.0}, totals, len(parts))
        self.update(rate)
        return totals

    def each(self, parts: Sequence[Batch], *nets: nn.Module) -> Iterator[Batch]:
        """Yield the parts; processes exchange the gradients of the nets with the last one only."""
        for number, part in enumerate(parts):
            with contextlib.ExitStack() as stack:
                if number < len(parts) - 1:
                    for net in nets:
                        stack.enter_context(self.accelerator.no_sync(net))
                yield part

    def pixel_loss(self, made: Tensor, lr: Tensor, hr: Tensor) -> Tensor:
        """Return the mean absolute difference from what is to be learnt."""
        if self._teacher is None:
            return functional.l1_loss(made, hr)
        with torch.no_grad(), self.accelerator.autocast():
            shown = self._teacher(lr).to(made.dtype)
        share = self.config.teacher_weight
        loss = share * functional.l1_loss(made, shown)
        return loss if share == 1.0 else loss + (1 - share) * functional.l1_loss(made, hr)

    def backward(
        self, losses: dict[str, Tensor], weights: dict[str, float], totals: dict[str, float], parts: int
    ) -> None:
        """Add up the weighted losses, refuse what is not finite, and accumulate gradients.

        Raises:
            LossNotFiniteError: A loss is NaN or infinite, in every process alike.
        """
        named = torch.stack([loss.detach().float() for loss in losses.values()]) / parts
        # Every process learns of it and stops: one that went on would wait for the others for ever.
        values = self.accelerator.reduce(named, reduction="mean").tolist()
        for name, value in zip(losses, values, strict=True):
            totals[name] = totals.get(name, 0.0) + value
        if not torch.isfinite(torch.tensor(values)).all():
            raise LossNotFiniteError(", ".join(f"{name} {value}" for name, value in totals.items()))
        total = sum(
            (weights[name] * loss for name, loss in losses.items()),
            start=torch.zeros((), device=named.device),
        )
        self.accelerator.backward(total / parts)

    def update(self, rate: float) -> None:
        """Clip, step, and let the average follow."""
        if self.config.clip:
            self.accelerator.clip_grad_norm_(self.net.parameters(), self.config.clip)
        set_rate(self.optimiser, rate)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.update_parameters(self.accelerator.unwrap_model(self.net))


def averaged(net: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential average of a module's weights, which is what a training ships.

    ``average += (1 - decay) · (weights - average)`` after each step. Early on the decay is smaller,
    ``(1 + n) / (10 + n)`` at update n, so that the random start is forgotten.

    Args:
        net: The module; the average starts as a copy of it.
        decay: 0 copies the weights.
    """

    def follow(average: Any, weights: Any, updates: Tensor | int) -> None:
        n = int(updates)
        step = get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))  # type: ignore[no-untyped-call]
        step(average, weights, n)

    average = AveragedModel(net, multi_avg_fn=follow, use_buffers=True)
    # It would copy the weights at update 0.
    average.n_averaged += 1
    average.register_load_state_dict_pre_hook(_from_older_state)  # type: ignore[no-untyped-call]
    return average


def _from_older_state(_: nn.Module, state: dict[str, Any], *__: object) -> None:
    # A state of before the average was a module.
    if "updates" in state:
        state["n_averaged"] = torch.tensor(state.pop("updates") + 1)
        state |= {f"module.{name}": value for name, value in state.pop("weights").items()}


def optimiser_of(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return ESRGAN's optimiser over a module's parameters."""
    return torch.optim.Adam(net.parameters(), lr=config.learning_rate, betas=_BETAS, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of an optimiser the learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
