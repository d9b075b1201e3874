"""The generators, cut between their units: what one of them does to the picture costs only what comes behind it."""

import abc
import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy._spec import ModelSpec, upsampling_steps

__all__ = [
    "RRDB",
    "SPAN",
    "Generator",
    "RRDBNet",
    "SRVGGNetCompact",
    "Stage",
    "State",
    "empty_net",
    "output_of",
]

State = tuple[Tensor, ...]
"""What flows from one stage to the next: the features first, then every residual that is still open."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of the net that holds one unit, or none where it only closes a residual.

    Attributes:
        unit: `Layer.unit` of the convolutions in it; empty where there is none.
        run: From the state in front of it to the one behind it, whose features are what the unit makes. It calls the
            module's own submodules, so that a `Simulation` has its effect.
    """

    unit: str = ""
    run: Callable[[State], State]


class Generator(nn.Module, abc.ABC):
    """A net that can be run stage by stage."""

    @abc.abstractmethod
    def start(self, picture: Tensor) -> State:
        """Return the state in front of the first stage.

        Args:
            picture: ``(N, C, H, W)`` float32 0..1.
        """

    @abc.abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Cut the net into its units, in the order in which they run.

        All of them one after the other, between `start` and `output_of`, compute exactly what the module does.
        """


class RRDBNet(Generator):
    """Residual-in-residual dense network: ``(N, C, H, W)`` RGB 0..1 to ``(N, C, H·s, W·s)``.

    ESRGAN's (arXiv:1809.00219), with the names that BasicSR gives its parameters. With ``unshuffle`` above 1
    (Real-ESRGAN x2plus) the picture is folded into channels first, and height and width must be multiples of it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        f = spec.features
        self.unshuffle = spec.unshuffle
        self.steps = upsampling_steps(spec.scale * spec.unshuffle)
        self.conv_first = _conv(spec.in_channels * spec.unshuffle**2, f)
        self.body = nn.Sequential(*(RRDB(f, spec.growth) for _ in range(spec.blocks)))
        self.conv_body = _conv(f, f)
        for i in range(1, len(self.steps) + 1):
            setattr(self, f"conv_up{i}", _conv(f, f))
        self.conv_hr = _conv(f, f)
        self.conv_last = _conv(f, spec.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge a batch of pictures."""
        (folded,) = self.start(x)
        features = self.conv_first(folded)
        features = features + self.conv_body(self.body(features))
        for i in range(1, len(self.steps) + 1):
            features = self._upsample(i, features)
        out: Tensor = self.conv_last(_leaky(self.conv_hr(features)))
        return out

    def start(self, picture: Tensor) -> State:
        """Fold the picture; see `Generator.start`."""
        return (functional.pixel_unshuffle(picture, self.unshuffle) if self.unshuffle > 1 else picture,)

    def stages(self) -> tuple[Stage, ...]:
        """Cut between dense blocks, and behind them between convolutions; see `Generator.stages`."""

        def first(state: State) -> State:
            features = self.conv_first(state[0])
            return features, features

        found = [Stage(unit="conv_first", run=first)]
        for number, block in enumerate(self.body):
            assert isinstance(block, RRDB)
            found += block.stages(f"body.{number}")
        found.append(Stage(unit="conv_body", run=lambda state: (state[1] + self.conv_body(state[0]),)))
        for i in range(1, len(self.steps) + 1):
            found.append(Stage(unit=f"conv_up{i}", run=functools.partial(self._upsampled, i)))
        found.append(Stage(unit="conv_hr", run=lambda state: (_leaky(self.conv_hr(state[0])),)))
        return (*found, Stage(unit="conv_last", run=lambda state: (self.conv_last(state[0]),)))

    def _upsample(self, i: int, features: Tensor) -> Tensor:
        step = float(self.steps[i - 1])
        features = functional.interpolate(features, scale_factor=step, mode="nearest")
        return _leaky(getattr(self, f"conv_up{i}")(features))

    def _upsampled(self, i: int, state: State) -> State:
        return (self._upsample(i, state[0]),)


class RRDB(nn.Module):
    """Three dense blocks inside one scaled residual."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth)
        self.rdb2 = ResidualDenseBlock(features, growth)
        self.rdb3 = ResidualDenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Add 0.2 of the three blocks to the input."""
        out: Tensor = self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x
        return out

    def stages(self, name: str) -> list[Stage]:
        """Cut between the dense blocks; see `Generator.stages`.

        Args:
            name: Of this module in the net.
        """
        return [
            Stage(unit=f"{name}.rdb1", run=lambda state: (self.rdb1(state[0]), *state)),
            Stage(unit=f"{name}.rdb2", run=lambda state: (self.rdb2(state[0]), *state[1:])),
            Stage(unit=f"{name}.rdb3", run=lambda state: (self.rdb3(state[0]), *state[1:])),
            Stage(run=lambda state: (state[0] * 0.2 + state[1], *state[2:])),
        ]


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each reading the input and everything that the ones before it made."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for i in range(4):
            setattr(self, f"conv{i + 1}", _conv(features + i * growth, growth))
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        """Add 0.2 of the fifth convolution to the input."""
        made = [x]
        for i in range(1, 5):
            made.append(_leaky(getattr(self, f"conv{i}")(torch.cat(made, 1))))
        out: Tensor = self.conv5(torch.cat(made, 1)) * 0.2 + x
        return out


class SRVGGNetCompact(Generator):
    """Convolutions at low resolution, one pixel-shuffle, plus the nearest-neighbour picture.

    The compact generator of Real-ESRGAN (its archs/srvgg_arch.py): ``(N, C, H, W)`` RGB 0..1 to ``(N, C, H·s, W·s)``.
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


class SPAN(Generator):
    """Swift parameter-free attention network: ``(N, C, H, W)`` RGB 0..1 to ``(N, C, H·s, W·s)``.

    SPAN's (arXiv:2311.12770) with each re-parameterised convolution collapsed into the one 3×3 convolution that it
    computes. With ``spec.mean`` the picture has it taken off; the range of 255 that is multiplied with then is in the
    weights of the first convolution. Convolutions pad with 0, which is that mean.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        f = spec.features
        self.scale = spec.scale
        if spec.mean:
            # Saved with the weights, so that it is filled as they are.
            self.register_buffer("mean", torch.tensor(spec.mean).reshape(1, -1, 1, 1))
        self.conv_first = _conv(spec.in_channels, f)
        self.body = nn.Sequential(*(SPAB(f) for _ in range(spec.blocks)))
        self.conv_body = _conv(f, f)
        self.conv_cat = nn.Conv2d(4 * f, f, 1)
        self.conv_last = _conv(f, spec.out_channels * spec.scale**2)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge a batch of pictures."""
        return output_of(self.stages(), self.start(x))

    def start(self, picture: Tensor) -> State:
        """Take the mean off; see `Generator.start`."""
        mean = self._buffers.get("mean")
        return (picture if mean is None else picture - mean,)

    def stages(self) -> tuple[Stage, ...]:
        """Cut behind each convolution and its activation; see `Generator.stages`."""

        def first(state: State) -> State:
            features = self.conv_first(state[0])
            return features, features

        def concatenated(state: State) -> State:
            made, shallow, early, late = state
            return (self.conv_cat(torch.cat((shallow, made, early, late), 1)),)

        found = [Stage(unit="conv_first", run=first)]
        for number, block in enumerate(self.body):
            assert isinstance(block, SPAB)
            # Behind the body come its input, its first block and what the last block makes first.
            kept = {0: "out", len(self.body) - 1: "first"}.get(number, "")
            found += block.stages(f"body.{number}", kept)
        found.append(Stage(unit="conv_body", run=lambda state: (self.conv_body(state[0]), *state[1:])))
        found.append(Stage(unit="conv_cat", run=concatenated))
        found.append(Stage(unit="conv_last", run=lambda state: (self.conv_last(state[0]),)))
        return (*found, Stage(run=lambda state: (functional.pixel_shuffle(state[0], self.scale),)))


class SPAB(nn.Module):
    """Three convolutions, whose result is added to the input and multiplied with an odd function of itself."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, features)
        self.conv2 = _conv(features, features)
        self.conv3 = _conv(features, features)

    def stages(self, name: str, kept: str) -> list[Stage]:
        """Cut behind each convolution; see `Generator.stages`.

        Args:
            name: Of this module in the net.
            kept: What is read again behind the body and goes to the end of the state: ``"first"``, what the first
                convolution makes, ``"out"``, what the block does, or nothing.
        """

        def first(state: State) -> State:
            made = functional.silu(self.conv1(state[0]))
            return made, *state, *((made,) if kept == "first" else ())

        def last(state: State) -> State:
            made = self.conv3(state[0])
            out = (made + state[1]) * (torch.sigmoid(made) - 0.5)
            return out, *state[2:], *((out,) if kept == "out" else ())

        return [
            Stage(unit=f"{name}.conv1", run=first),
            Stage(
                unit=f"{name}.conv2", run=lambda state: (functional.silu(self.conv2(state[0])), *state[1:])
            ),
            Stage(unit=f"{name}.conv3", run=last),
        ]


def empty_net(spec: ModelSpec) -> nn.Module:
    """Return the net of a specification on the device ``meta``: names and shapes without numbers.

    Raises:
        KeyError: The architecture is not one of this package's.
    """
    nets: dict[str, Callable[[ModelSpec], nn.Module]] = {
        "rrdbnet": RRDBNet,
        "srvggnetcompact": SRVGGNetCompact,
        "span": SPAN,
    }
    with torch.device("meta"):
        return nets[spec.architecture](spec)


def output_of(pieces: tuple[Stage, ...], state: State) -> Tensor:
    """Run the stages that are left and return the net's output ``(N, C, H·s, W·s)``."""
    for piece in pieces:
        state = piece.run(state)
    return state[0]


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, 1, 1)


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2)
