"""The two discriminators to choose from: they say how real a picture looks, as logits."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["UNetDiscriminator", "VggDiscriminator"]


class VggDiscriminator(nn.Module):
    """ESRGAN's: one logit a picture, strided convolutions with batch norm and two linear layers.

    ``(N, 3, S, S)`` to ``(N, 1)``. After ``VGGStyleDiscriminator`` of BasicSR's archs/discriminator_arch.py.

    Args:
        side: S, a multiple of 32: the linear layers fix it.
        features: Width of the first convolutions; it doubles three times.

    Raises:
        ValueError: The side is no multiple of 32.
    """

    def __init__(self, side: int, features: int = 64) -> None:
        super().__init__()
        if side % 32 or side < 32:
            raise ValueError(
                f"an HR crop is {side} pixels wide; the vgg discriminator needs a multiple of 32"
            )
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, 1, 1), nn.LeakyReLU(0.2)]
        width = features
        for number, times in enumerate((1, 2, 4, 8, 8)):
            if number:
                layers += _normed(width, features * times, kernel=3, stride=1)
            layers += _normed(features * times, features * times, kernel=4, stride=2)
            width = features * times
        self.convolutions = nn.Sequential(*layers)
        self.linear1 = nn.Linear(width * (side // 32) ** 2, 100)
        self.linear2 = nn.Linear(100, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit for each picture."""
        seen = self.convolutions(x).flatten(1)
        return cast(Tensor, self.linear2(functional.leaky_relu(self.linear1(seen), 0.2)))


class UNetDiscriminator(nn.Module):
    """Real-ESRGAN's: one logit a pixel, a U-Net with spectral norm and without batch norm.

    ``(N, 3, H, W)`` to ``(N, 1, H, W)``, H and W multiples of 8. After ``UNetDiscriminatorSN`` of Real-ESRGAN
    (arXiv:2107.10833, section 3.4).

    Args:
        features: Width of the first convolution; it doubles three times.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        f = features
        self.conv0 = nn.Conv2d(3, f, 3, 1, 1)
        self.down1 = _spectral(f, f * 2, kernel=4, stride=2)
        self.down2 = _spectral(f * 2, f * 4, kernel=4, stride=2)
        self.down3 = _spectral(f * 4, f * 8, kernel=4, stride=2)
        self.up1 = _spectral(f * 8, f * 4)
        self.up2 = _spectral(f * 4, f * 2)
        self.up3 = _spectral(f * 2, f)
        self.conv1 = _spectral(f, f)
        self.conv2 = _spectral(f, f)
        self.last = nn.Conv2d(f, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit for each pixel."""
        x0 = _leaky(self.conv0(x))
        x1 = _leaky(self.down1(x0))
        x2 = _leaky(self.down2(x1))
        x3 = _leaky(self.up1(_doubled(_leaky(self.down3(x2))))) + x2
        x4 = _leaky(self.up2(_doubled(x3))) + x1
        x5 = _leaky(self.up3(_doubled(x4))) + x0
        return cast(Tensor, self.last(_leaky(self.conv2(_leaky(self.conv1(x5))))))


def _normed(channels_in: int, channels_out: int, *, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, kernel, stride, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(0.2),
    ]


def _spectral(channels_in: int, channels_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
    return spectral_norm(nn.Conv2d(channels_in, channels_out, kernel, stride, 1, bias=False))


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2)
