"""The compact VGG-style generator of Real-ESRGAN (``SRVGGNetCompact`` in its archs/srvgg_arch.py)."""

import functools

from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.nets._stages import Generator, Stage, State, output_of

__all__ = ["SRVGGNetCompact"]


class SRVGGNetCompact(Generator):
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
        return output_of(self.stages(), self.start(x))

    def start(self, picture: Tensor) -> State:
        """Keep the picture, which is added at the end; see `Generator.start`."""
        return picture, picture

    def stages(self) -> tuple[Stage, ...]:
        """Cut in front of each convolution, and behind the last; see `Generator.stages`."""
        found = [
            Stage(unit=f"body.{place}", run=functools.partial(self._run, place))
            for place in range(0, len(self.body), 2)
        ]
        return (*found, Stage(run=self._shuffled))

    def _run(self, place: int, state: State) -> State:
        x = state[0]
        for layer in self.body[place : place + 2]:
            x = layer(x)
        return x, state[1]

    def _shuffled(self, state: State) -> State:
        x, picture = state
        out = functional.pixel_shuffle(x, self.scale)
        return (out + functional.interpolate(picture, scale_factor=float(self.scale), mode="nearest"),)
