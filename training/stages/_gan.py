"""One step of ESRGAN's second stage: L1, perceptual and relativistic adversarial terms."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy._errors import TrainingError
from esrgan_deploy.training._config import TrainConfig
from esrgan_deploy.training.models import UNetDiscriminator, VggDiscriminator, vgg19_features
from esrgan_deploy.training.stages._psnr import Batch, PsnrStage, optimiser_of, set_rate

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["GanStage", "discriminator_loss", "generator_loss"]


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


class GanStage(PsnrStage):
    """The generator's step, then the discriminator's (ESRGAN, section 3)."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: "Accelerator",
        net: nn.Module,
        teacher: nn.Module | None,
    ) -> None:
        # Before anything is distributed: without VGG's weights there is nothing to begin.
        features = vgg19_features(config.vgg) if config.perceptual_weight else None
        super().__init__(config, accelerator, net, teacher)
        torch.manual_seed(config.seed + 1)
        self._features = features.to(accelerator.device) if features is not None else None
        judge = _discriminator(config)
        self._judge, self._judge_optimiser = accelerator.prepare(judge, optimiser_of(judge, config))

    def step(self, parts: Sequence[Batch], rate: float) -> dict[str, float]:
        """Step the generator, then the discriminator; see `PsnrStage.step`."""
        totals: dict[str, float] = {}
        fakes = self._generator_step(parts, totals)
        self.update(rate)
        self._discriminator_step(parts, fakes, totals)
        set_rate(self._judge_optimiser, rate)
        self._judge_optimiser.step()
        self._judge_optimiser.zero_grad()
        return totals

    def _generator_step(self, parts: Sequence[Batch], totals: dict[str, float]) -> list[Tensor]:
        config, fakes = self.config, []
        # The bare module: nothing of it is exchanged here, and its gradients are not wanted.
        judge = self.accelerator.unwrap_model(self._judge).requires_grad_(False)
        for lr, hr in self.each(parts, self.net):
            made = self.net(lr)
            fakes.append(made.detach())
            losses = {"l1": self.pixel_loss(made, lr, hr)}
            weights = {"l1": config.pixel_weight}
            with self.accelerator.autocast():
                if self._features is not None:
                    losses["perceptual"] = functional.l1_loss(self._features(made), self._features(hr))
                    weights["perceptual"] = config.perceptual_weight
                with torch.no_grad():
                    real = judge(hr).float()
                losses["gan"] = generator_loss(real, judge(made).float())
                weights["gan"] = config.gan_weight
            self.backward(losses, weights, totals, len(parts))
        judge.requires_grad_(True)
        return fakes

    def _discriminator_step(
        self, parts: Sequence[Batch], fakes: Sequence[Tensor], totals: dict[str, float]
    ) -> None:
        for number, (_, hr) in enumerate(self.each(parts, self._judge)):
            real, fake = self._judge(hr).float(), self._judge(fakes[number]).float()
            self.backward(
                {"discriminator": discriminator_loss(real, fake)}, {"discriminator": 1.0}, totals, len(parts)
            )


def _discriminator(config: TrainConfig) -> nn.Module:
    side = config.crop * config.scale
    if config.discriminator == "unet":
        if side % 8:
            raise TrainingError(
                f"crop {config.crop} at x{config.scale} is {side} pixels; discriminator unet takes multiples of 8"
            )
        return UNetDiscriminator(config.discriminator_features)
    try:
        return VggDiscriminator(side, config.discriminator_features)
    except ValueError as error:
        raise TrainingError(f"crop is {config.crop}: {error}") from error
