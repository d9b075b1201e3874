"""Cross-layer equalisation: the same function, in weights and channels that eight bits hold better."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.graphs import Array
from esrgan_deploy.export.nets import LARGEST, Layer, Rescaling, layers, rescalings

__all__ = ["factors", "multipliers", "noise_gains", "rescaled"]


_LEVELS = {"int8": LARGEST["int8"], "fp8": LARGEST["fp8"] * 2.0**9}
"""Largest value over the spacing next to zero: all that a factor can change of the error of a float."""

_WIDEST = 2.0**6
"""How far a factor may lie from the set's mean. Half precision loses nothing to that: see `_centred`."""

_ROUNDS, _ROUNDS_OF_MANY, _MANY = 150, 60, 100
"""Steps of the descent; fewer where there are many sets, each of which costs time in every step."""

_SHARE = 0.1
"""What is counted of the weights' error: it is one draw, which compensation and learned rounding make smaller."""

_BACK = 6
_NORM = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseGains:
    """What a net sees, and what errors in it do to the picture.

    Attributes:
        largest: By group, ``(C_in,)``: the largest magnitude of each channel of what is rounded there, which is
            all that the last of the group's convolutions reads.
        inputs: By group, ``(C_in,)``: energy of the error in the picture for white noise of variance 1 in each.
        weights: By convolution, ``(C_out, C_in)``: the same for noise of variance 1 in the weights, summed over
            the taps; one draw for the whole picture.
    """

    largest: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]


def noise_gains(module: nn.Module, spec: ModelSpec, pictures: Iterable[Tensor]) -> NoiseGains:
    """Run pictures through a net and back, and keep what equalisation needs.

    What comes back from signs at random on the picture has the mean square that the errors' energies need
    (Hutchinson's estimator), for inputs and for weights.

    Args:
        module: The generator in fp32, eval mode; it is not changed.
        spec: What it is.
        pictures: ``(N, C, H, W)`` float32 0..1. The first few run forward and back, in the memory of a training
            step; the others only forward, for the ranges.

    Raises:
        ExportError: The architecture is not one whose convolutions are known.
    """
    found = layers(spec)
    watches = {layer.group: _Gain() for layer in found}
    convolutions = [module.get_submodule(layer.name) for layer in found]
    hooks = [
        conv.register_forward_pre_hook(watches[layer.group])
        for layer, conv in zip(found, convolutions, strict=True)
    ]
    parameters = [conv.get_parameter("weight") for conv in convolutions]
    asked = [parameter.requires_grad for parameter in parameters]
    sums = [torch.zeros(parameter.shape[:2]) for parameter in parameters]
    random = torch.Generator().manual_seed(0)
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for number, picture in enumerate(pictures):
            if number >= _BACK:
                with torch.no_grad():
                    module(picture)
                continue
            with torch.enable_grad():
                seen = picture.detach().clone().requires_grad_(True)
                out: Tensor = module(seen)
                signs = torch.randint(0, 2, out.shape, generator=random) * 2.0 - 1.0
                gradients = torch.autograd.grad(out, [*parameters, seen], signs)
            for total, gradient in zip(sums, gradients[:-1], strict=True):
                total += gradient.square().sum((2, 3))
            for watch in watches.values():
                watch.close()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, value in zip(parameters, asked, strict=True):
            parameter.requires_grad_(value)
    return NoiseGains(
        largest={group: watch.largest for group, watch in watches.items()},
        inputs={group: watch.energy for group, watch in watches.items()},
        weights={layer.name: total for layer, total in zip(found, sums, strict=True)},
    )


def factors(
    module: nn.Module,
    spec: ModelSpec,
    gains: NoiseGains,
    *,
    kind: str,
    per_channel: bool = True,
    sets: Sequence[Rescaling] | None = None,
    names: Iterable[str] | None = None,
) -> list[Tensor]:
    """Return the factors, ``(channels,)`` for each of `rescalings`, that minimise the predicted error.

    Every set of channels with a free scale is divided where it is made and multiplied where it is read (`rescaled`),
    as in cross-layer equalisation (arXiv:1906.04721, section 4.1) and SmoothQuant (arXiv:2211.10438). Those balance
    two ranges by a rule; here the factors of the whole net are what costs the picture least.

    With x/s in place of x, the inputs of a group are rounded in steps of ``max(largest / s) / levels``, and the
    error of a channel reaches the output of a reader through its weights times s; the weights of a row are
    rounded in steps of ``max(|w| s) / levels``, and the error meets x/s. Errors are taken as independent, of
    variance step²/12, and weighted by `NoiseGains`. All of it is a sum of products of powers of s under
    maxima, so it is convex in log s, and descent finds the one minimum.

    Args:
        module: The generator in fp32; it is not changed.
        spec: What it is.
        gains: See `noise_gains`.
        kind: ``"int8"`` or ``"fp8"``.
        per_channel: Whether weights have one step for each output channel.
        sets: Of `rescalings`; those without multiplications by default.
        names: The convolutions that will be quantised; all but the first and the last by default.

    Raises:
        ExportError: The architecture is not one whose convolutions are known.
    """
    sets = rescalings(spec) if sets is None else sets
    everything = layers(spec)
    quantised = set(names) if names is not None else {layer.name for layer in everything[1:-1]}
    used = [layer for layer in everything if layer.name in quantised]
    problem = _Problem(module, used, sets, gains, levels=_LEVELS[kind], per_channel=per_channel)
    logs = [start.requires_grad_(True) for start in problem.start()]
    free = [log for log, known in zip(logs, sets, strict=True) if _readers_in(known, quantised)]
    if not free:
        return [torch.ones_like(log) for log in logs]
    optimiser = torch.optim.Adam(free, lr=0.1)
    rounds = _ROUNDS if len(sets) < _MANY else _ROUNDS_OF_MANY
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, rounds)
    for _ in range(rounds):
        with torch.enable_grad():
            loss = problem.error(logs).log()
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    # What only unquantised convolutions read stays as it is.
    return [
        factor if _readers_in(known, quantised) else torch.ones(known.channels)
        for factor, known in zip(_centred([log.detach() for log in logs], sets), sets, strict=True)
    ]


def multipliers(sets: Iterable[Rescaling], found: Iterable[Tensor]) -> dict[str, Array]:
    """Return by group what its first channels are multiplied with in front of the quantiser, as fp16 holds it.

    Args:
        sets: Of `rescalings`; those that nothing makes count.
        found: Factors above 0, ``(channels,)`` for each set.
    """
    return {
        known.group: (1 / factor).to(torch.float16).to(torch.float32).numpy()
        for known, factor in zip(sets, found, strict=True)
        if not known.makers and not bool((factor == 1.0).all())
    }


def rescaled(module: nn.Module, sets: Iterable[Rescaling], found: Iterable[Tensor]) -> dict[str, Array]:
    """Return the parameters with each set's channels divided where made and multiplied where read.

    They are those of the same function: in fp32 its output changes by rounding alone.

    Args:
        module: The generator; it is not changed.
        sets: Of `rescalings`.
        found: Factors above 0, ``(channels,)`` for each set.
    """
    state = {name: value.detach().to(torch.float64) for name, value in module.state_dict().items()}
    changed: dict[str, Tensor] = {}
    for known, factor in zip(sets, found, strict=True):
        scale = factor.to(torch.float64)
        if not known.makers or bool((scale == 1.0).all()):
            continue
        for maker in known.makers:
            for name in (f"{maker}.weight", f"{maker}.bias"):
                value = changed.get(name, state[name])
                changed[name] = value / scale.reshape(-1, *[1] * (value.ndim - 1))
        for reader, start in known.readers:
            name = f"{reader}.weight"
            value = changed.get(name, state[name]).clone()
            value[:, start : start + known.channels] *= scale.reshape(1, -1, 1, 1)
            changed[name] = value
    return {name: value.to(torch.float32).numpy() for name, value in changed.items()}


class _Problem:
    """The predicted error of the picture as a function of the logarithms of all factors."""

    def __init__(
        self,
        module: nn.Module,
        used: list[Layer],
        sets: Sequence[Rescaling],
        gains: NoiseGains,
        *,
        levels: float,
        per_channel: bool,
    ) -> None:
        self._sets, self._levels, self._per_channel = sets, levels, per_channel
        self._gains = gains
        self._groups: dict[str, list[_Reader]] = {}
        made = {maker: number for number, known in enumerate(sets) for maker in known.makers}
        for layer in used:
            parts = [
                (start, number)
                for number, known in enumerate(sets)
                for reader, start in known.readers
                if reader == layer.name
            ]
            self._groups.setdefault(layer.group, []).append(
                _Reader(
                    parts=tuple(number for _, number in sorted(parts)),
                    made=made.get(layer.name),
                    largest=module.get_submodule(layer.name)
                    .get_parameter("weight")
                    .detach()
                    .abs()
                    .amax((2, 3)),
                    energy=gains.weights[layer.name],
                )
            )

    def start(self) -> list[Tensor]:
        """Return logarithms that make the ranges of a group's channels the same, on the mean of the groups."""
        seen: list[list[Tensor]] = [[] for _ in self._sets]
        for group, readers in self._groups.items():
            parts = readers[-1].parts
            sizes = [self._sets[number].channels for number in parts]
            if not parts:
                continue
            logs = torch.split(self._gains.largest[group].clamp_min(1e-6).log(), sizes)
            for number, log in zip(parts, logs, strict=True):
                seen[number].append(log)
        return [
            torch.stack(logs).mean(0) if logs else torch.zeros(known.channels)
            for logs, known in zip(seen, self._sets, strict=True)
        ]

    def error(self, logs: list[Tensor]) -> Tensor:
        """Return the sum over groups and convolutions, a scalar."""
        total = torch.zeros(())
        for group, readers in self._groups.items():
            # The last reader reads all that the group rounds.
            scales = [self._scale(reader, logs) for reader in readers]
            largest, energy = self._gains.largest[group], self._gains.inputs[group]
            step = _smooth((largest / scales[-1]), 0) / self._levels
            total = total + step.square() * (scales[-1].square() * energy).sum()
            for reader, scale in zip(readers, scales, strict=True):
                total = total + _SHARE * self._weights(reader, scale, logs)
        return total / 12

    def _scale(self, reader: "_Reader", logs: list[Tensor]) -> Tensor:
        if not reader.parts:
            return torch.ones(reader.largest.shape[1])
        return torch.cat([logs[number] for number in reader.parts]).exp()

    def _weights(self, reader: "_Reader", scale: Tensor, logs: list[Tensor]) -> Tensor:
        rows = _smooth(reader.largest * scale, 1)
        met = (reader.energy / scale.square()).sum(1)
        if self._per_channel:
            # The factor of the row divides its step as it divides its weights.
            return ((rows / self._levels).square() * met).sum()
        outer = torch.ones_like(rows) if reader.made is None else logs[reader.made].exp()
        step = _smooth(rows / outer, 0) / self._levels
        return (step * outer).square().mul(met).sum()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Reader:
    parts: tuple[int, ...]
    made: int | None
    largest: Tensor
    energy: Tensor


class _Gain:
    """Follows what one group's convolutions read: forward its range, backward the energy of an error in it."""

    def __init__(self) -> None:
        self.largest = torch.zeros(0)
        self.energy = torch.zeros(0)
        self._back: Tensor | None = None

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A view of its own for each reader, so that what comes back is of what is rounded and of nothing else.
        x = args[0].view_as(args[0])
        largest = _widened(x.detach().abs().amax((0, 2, 3)), self.largest)
        self.largest = torch.maximum(largest, _widened(self.largest, largest))
        if x.requires_grad:
            x.register_hook(self._gather)  # type: ignore[no-untyped-call]
        return (x,)

    def _gather(self, gradient: Tensor) -> None:
        if self._back is None:
            # A feature that several convolutions read carries one error into all of them: sum, then square.
            self._back = gradient.clone()
            return
        short, long = sorted((self._back, gradient), key=lambda tensor: tensor.shape[1])
        total = long.clone()
        total[:, : short.shape[1]] += short
        self._back = total

    def close(self) -> None:
        """Add a picture's energy."""
        assert self._back is not None
        energy = self._back.square().sum((0, 2, 3))
        self.energy = energy + _widened(self.energy, energy)
        self._back = None


def _smooth(values: Tensor, axis: int) -> Tensor:
    # The maximum as a norm: descent along the largest alone would go back and forth between two channels.
    largest = values.detach().amax(axis, keepdim=True).clamp_min(1e-12)
    return largest.squeeze(axis) * (values / largest).pow(_NORM).sum(axis).pow(1 / _NORM)


def _widened(values: Tensor, like: Tensor) -> Tensor:
    return torch.cat([values, values.new_zeros(max(0, like.numel() - values.numel()))])


def _centred(logs: list[Tensor], sets: Sequence[Rescaling]) -> list[Tensor]:
    # One factor for all sets that meet in a convolution changes no error: the one that leaves their mean where it
    # was keeps what is stored in half precision as far from both its ends as it has been.
    home = list(range(len(sets)))
    first: dict[str, int] = {}
    for number, known in enumerate(sets):
        for reader, _ in known.readers:
            # The trunk comes first, and all that meets it is at home there.
            home[number] = min(home[number], first.setdefault(reader, number))
    means = {
        there: torch.cat([log for log, other in zip(logs, home, strict=True) if other == there]).mean()
        for there in set(home)
    }
    widest = math.log(_WIDEST)
    return [(log - means[there]).clamp(-widest, widest).exp() for log, there in zip(logs, home, strict=True)]


def _readers_in(known: Rescaling, quantised: set[str]) -> bool:
    return any(reader in quantised for reader, _ in known.readers)
