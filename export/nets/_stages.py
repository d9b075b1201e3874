"""A generator cut between its units, so that what one of them does to the picture costs only what comes behind it."""

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy._errors import ExportError
from esrgan_deploy.export.nets._compact import SRVGGNetCompact
from esrgan_deploy.export.nets._rrdbnet import RRDB, RRDBNet

__all__ = ["Stage", "State", "output_of", "stages", "start"]

State = tuple[Tensor, ...]
"""What flows from one stage to the next: the features first, then every residual that is still open."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of the net that ends where a unit does.

    Attributes:
        unit: `Layer.unit` of the convolutions in it.
        run: From the state in front of it to the one behind it. It calls the module's own submodules, so that a
            `Simulation` has its effect.
    """

    unit: str
    run: Callable[[State], State]


def stages(module: nn.Module) -> tuple[Stage, ...]:
    """Cut a module into its units, in the order in which they run.

    All of them one after the other, between `start` and `output_of`, compute exactly what the module does.

    Raises:
        ExportError: The architecture is not one whose units are known.
    """
    if isinstance(module, RRDBNet):
        return _rrdbnet(module)
    if isinstance(module, SRVGGNetCompact):
        return _compact(module)
    raise ExportError(f"{type(module).__name__} cannot be run in pieces; RRDBNet and SRVGGNetCompact can")


def start(module: nn.Module, picture: Tensor) -> State:
    """Return the state in front of the first stage.

    Args:
        module: What `stages` cut.
        picture: ``(N, C, H, W)`` float32 0..1.
    """
    if isinstance(module, RRDBNet) and module.unshuffle > 1:
        return (functional.pixel_unshuffle(picture, module.unshuffle),)
    # SRVGGNetCompact adds the picture at the end.
    return (picture, picture) if isinstance(module, SRVGGNetCompact) else (picture,)


def output_of(pieces: tuple[Stage, ...], state: State) -> Tensor:
    """Run the stages that are left and return the net's output ``(N, C, H·s, W·s)``."""
    for piece in pieces:
        state = piece.run(state)
    return state[0]


def _rrdbnet(module: RRDBNet) -> tuple[Stage, ...]:
    def first(state: State) -> State:
        features = module.conv_first(state[0])
        return features, features

    def joined(state: State) -> State:
        features, long = state
        return (long + module.conv_body(features),)

    def hr(state: State) -> State:
        return (_leaky(module.conv_hr(state[0])),)

    def last(state: State) -> State:
        return (module.conv_last(state[0]),)

    found = [Stage(unit="conv_first", run=first)]
    for number, block in enumerate(module.body):
        assert isinstance(block, RRDB)
        found += _rrdb(block, f"body.{number}")
    found.append(Stage(unit="conv_body", run=joined))
    for number, step in enumerate(module.steps, start=1):
        name = f"conv_up{number}"
        found.append(Stage(unit=name, run=_Enlarge(conv=getattr(module, name), step=step)))
    return (*found, Stage(unit="conv_hr", run=hr), Stage(unit="conv_last", run=last))


def _rrdb(block: RRDB, name: str) -> list[Stage]:
    def one(state: State) -> State:
        x, long = state
        return block.rdb1(x), x, long

    def two(state: State) -> State:
        x, outer, long = state
        return block.rdb2(x), outer, long

    def three(state: State) -> State:
        x, outer, long = state
        return block.rdb3(x) * 0.2 + outer, long

    return [Stage(unit=f"{name}.rdb{i}", run=run) for i, run in enumerate((one, two, three), start=1)]


def _compact(module: SRVGGNetCompact) -> tuple[Stage, ...]:
    parts = list(module.body)
    found = [
        Stage(unit=f"body.{place}", run=_Bend(conv=parts[place], bend=parts[place + 1]))
        for place in range(0, len(parts) - 1, 2)
    ]

    def last(state: State) -> State:
        x, picture = state
        out = functional.pixel_shuffle(parts[-1](x), module.scale)
        return (out + functional.interpolate(picture, scale_factor=float(module.scale), mode="nearest"),)

    return (*found, Stage(unit=f"body.{len(parts) - 1}", run=last))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Enlarge:
    conv: nn.Module
    step: int

    def __call__(self, state: State) -> State:
        enlarged = functional.interpolate(state[0], scale_factor=float(self.step), mode="nearest")
        return (_leaky(self.conv(enlarged)),)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Bend:
    conv: nn.Module
    bend: nn.Module

    def __call__(self, state: State) -> State:
        return self.bend(self.conv(state[0])), state[1]


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2)
