"""The compact VGG-style generator of Real-ESRGAN (``SRVGGNetCompact`` in its archs/srvgg_arch.py)."""

from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy._spec import ModelSpec

__all__ = ["SRVGGNetCompact"]


class SRVGGNetCompact(nn.Module):
    """Convolutions at low resolution, one pixel-shuffle, plus the nearest-neighbour picture.

    ``(N, C, H, W)`` RGB 0..1 to ``(N, C, H·s, W·s)``.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        f = spec.features
        self.scale = spec.scale
        layers: list[nn.Module] = [nn.Conv2d(spec.in_channels, f, 3, 1, 1), nn.PReLU(f)]
        for _ in range(spec.blocks):
            layers += [nn.Conv2d(f, f, 3, 1, 1), nn.PReLU(f)]
        layers.append(nn.Conv2d(f, spec.out_channels * spec.scale**2, 3, 1, 1))
        self.body = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge a batch of pictures."""
        out = x
        for layer in self.body:
            out = layer(out)
        out = functional.pixel_shuffle(out, self.scale)
        return out + functional.interpolate(x, scale_factor=float(self.scale), mode="nearest")
