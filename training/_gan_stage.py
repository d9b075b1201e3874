"""One step of ESRGAN's second stage: L1, perceptual and relativistic adversarial terms."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy._errors import TrainingError
from esrgan_deploy.training._config import TrainConfig
from esrgan_deploy.training._discriminators import UNetDiscriminator, VggDiscriminator
from esrgan_deploy.training._relativistic import discriminator_loss, generator_loss
from esrgan_deploy.training._stages import Batch, PsnrStage, optimiser_of, set_rate
from esrgan_deploy.training._vgg import vgg19_features

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["GanStage"]


class GanStage(PsnrStage):
    """The generator's step, then the discriminator's (ESRGAN, section 3)."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: "Accelerator",
        net: nn.Module,
        teacher: nn.Module | None = None,
    ) -> None:
        # Before anything is distributed: without VGG's weights there is nothing to begin.
        features = vgg19_features(config.vgg) if config.perceptual_weight else None
        super().__init__(config, accelerator, net, teacher)
        torch.manual_seed(config.seed + 1)
        self._features = features.to(accelerator.device) if features is not None else None
        judge = _discriminator(config)
        self._judge, self._judge_optimiser = accelerator.prepare(judge, optimiser_of(judge, config))

    def step(self, parts: Sequence[Batch], rate: float) -> dict[str, float]:
        """See `Stage`."""
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
