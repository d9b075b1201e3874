"""Every convolution of a generator: where it stands, what it costs, what may be rescaled, and what formats hold."""

import dataclasses
import itertools
from collections.abc import Collection, Sequence

from esrgan_deploy._errors import ExportError
from esrgan_deploy._spec import ModelSpec, upsampling_steps

__all__ = [
    "LARGEST",
    "LEAST_STEP",
    "QUANTISED",
    "Layer",
    "Quantised",
    "Rescaling",
    "counted",
    "folds",
    "layers",
    "placement",
    "rescalings",
    "share_of",
]


RESIDUAL = 0.2
"""The factor behind the fifth convolution of a dense block, which the export folds into its weights."""

QUANTISED = ("int8", "fp8")
LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The value that the scale maps the largest magnitude to: symmetric INT8, FP8 E4M3."""
LEAST_STEP = 2.0**-20
"""Scales are stored in half precision; below this it has only a few bits left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One convolution.

    Attributes:
        name: In the module; its weights are ``NAME.weight`` there and in the graph.
        group: Whose activation scale its input takes. The five convolutions of a dense block share one, so that
            a feature is quantised once and its concatenations never again.
        unit: What the search returns to half precision as one: the dense block, or the convolution itself.
        place: ``"first"``, ``"body"`` (the dense blocks, or the middle of another net), ``"tail"`` or
            ``"last"``.
        macs: Multiply-adds per pixel of the input picture.
        fold: Factor that the graph's weights have over the module's.
        enlarges: Whether it reads what was enlarged just in front of it.
    """

    name: str
    group: str
    unit: str
    place: str
    macs: float
    fold: float = 1.0
    enlarges: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescaling:
    """Channels whose scale is free: divided in what makes them and multiplied in what reads them, nothing changes.

    Everything between is linear or positively homogeneous (LeakyReLU, PReLU, sums of the trunk, nearest
    neighbours), so one factor above 0 for each channel passes through it.

    Attributes:
        channels: How many.
        makers: Convolutions whose output they are. None where nothing that makes them can be divided, because others
            read it too: then a multiplication in front of the quantiser divides what this group reads.
        readers: Convolutions that read them, each with the first of the input channels that they are.
        group: Whose activations they are part of; of the trunk, which is part of several, empty.
    """

    channels: int
    makers: tuple[str, ...]
    readers: tuple[tuple[str, int], ...]
    group: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised:
    """What a pass quantised.

    Attributes:
        convolutions: How many convolutions.
        of: How many the net has.
        share: Their part of the net's multiply-adds, 0..1.
    """

    convolutions: int
    of: int
    share: float


def counted(found: Sequence[Layer], names: Collection[str]) -> Quantised:
    """Return what it is that a net's convolutions of these names make up."""
    return Quantised(convolutions=len(names), of=len(found), share=share_of(found, names))


def share_of(found: Sequence[Layer], names: Collection[str]) -> float:
    """Return the part of a net's multiply-adds that convolutions of these names have, 0..1."""
    return sum(layer.macs for layer in found if layer.name in names) / sum(layer.macs for layer in found)


def layers(spec: ModelSpec) -> tuple[Layer, ...]:
    """Return every convolution of a generator, in the order in which they run.

    Raises:
        ExportError: The architecture is not one whose convolutions are known.
    """
    if spec.architecture == "rrdbnet":
        return _rrdbnet(spec)
    if spec.architecture == "srvggnetcompact":
        return _compact(spec)
    if spec.architecture == "span":
        return _span(spec)
    raise ExportError(
        f"{spec.architecture} cannot be quantised; rrdbnet, srvggnetcompact and span can. Run: --precision fp16"
    )


def rescalings(spec: ModelSpec, *, multiplied: bool = False) -> tuple[Rescaling, ...]:
    """Return every set of channels that can be rescaled, the trunk first.

    Args:
        spec: The net's.
        multiplied: Whether each group that reads the trunk has factors of its own for it, by a multiplication in
            front of its quantiser; otherwise the trunk has one set of factors for all of its readers.

    Raises:
        ExportError: The architecture is not one whose convolutions are known.
    """
    if spec.architecture == "span":
        # SiLU and the attention's sigmoid stand behind every convolution: another scale is another function.
        return ()
    if spec.architecture == "srvggnetcompact":
        names = [layer.name for layer in layers(spec)]
        return tuple(
            Rescaling(channels=spec.features, makers=(maker,), readers=((reader, 0),), group=reader)
            for maker, reader in itertools.pairwise(names)
        )
    found = layers(spec)
    blocks = list(dict.fromkeys(layer.unit for layer in found if layer.place == "body"))
    tail = [layer.name for layer in found if layer.place in ("tail", "last")]
    readers = [(f"{block}.conv{number}", 0) for block in blocks for number in range(1, 6)]
    if multiplied:
        own = [*((block, [f"{block}.conv{number}" for number in range(1, 6)]) for block in blocks)]
        own += [(name, [name]) for name in tail[:2]]
        sets = [
            Rescaling(
                channels=spec.features, makers=(), readers=tuple((name, 0) for name in names), group=group
            )
            for group, names in own
        ]
    else:
        sets = [
            Rescaling(
                channels=spec.features,
                makers=("conv_first", *(f"{block}.conv5" for block in blocks), "conv_body"),
                # After the body come conv_body and, behind the long residual, whatever is next.
                readers=(*readers, (tail[0], 0), (tail[1], 0)),
                group="",
            )
        ]
    for block in blocks:
        for number in range(1, 5):
            start = spec.features + (number - 1) * spec.growth
            sets.append(
                Rescaling(
                    channels=spec.growth,
                    makers=(f"{block}.conv{number}",),
                    readers=tuple((f"{block}.conv{later}", start) for later in range(number + 1, 6)),
                    group=block,
                )
            )
    for maker, reader in itertools.pairwise(tail[1:]):
        sets.append(Rescaling(channels=spec.features, makers=(maker,), readers=((reader, 0),), group=reader))
    return tuple(sets)


def _rrdbnet(spec: ModelSpec) -> tuple[Layer, ...]:
    f, g = spec.features, spec.growth
    # In front of the upsampling the net runs once per unshuffled pixel.
    share = 9 / spec.unshuffle**2

    def single(
        name: str, place: str, read: int, made: int, size: int = 1, *, enlarges: bool = False
    ) -> Layer:
        macs = share * size**2 * read * made
        return Layer(name=name, group=name, unit=name, place=place, macs=macs, enlarges=enlarges)

    found = [single("conv_first", "first", spec.in_channels * spec.unshuffle**2, f)]
    for block in range(spec.blocks):
        for rdb in (1, 2, 3):
            name = f"body.{block}.rdb{rdb}"
            for number in range(1, 6):
                made = f if number == 5 else g
                found.append(
                    Layer(
                        name=f"{name}.conv{number}",
                        group=name,
                        unit=name,
                        place="body",
                        macs=share * (f + (number - 1) * g) * made,
                        fold=RESIDUAL if number == 5 else 1.0,
                    )
                )
    found.append(single("conv_body", "tail", f, f))
    size = 1
    for number, step in enumerate(upsampling_steps(spec.scale * spec.unshuffle), start=1):
        size *= step
        found.append(single(f"conv_up{number}", "tail", f, f, size, enlarges=True))
    found.append(single("conv_hr", "tail", f, f, size))
    found.append(single("conv_last", "last", f, spec.out_channels, size))
    return tuple(found)


def _compact(spec: ModelSpec) -> tuple[Layer, ...]:
    f = spec.features

    def layer(number: int, place: str, read: int, made: int) -> Layer:
        name = f"body.{2 * number}"
        return Layer(name=name, group=name, unit=name, place=place, macs=9.0 * read * made)

    return (
        layer(0, "first", spec.in_channels, f),
        *(layer(number, "body", f, f) for number in range(1, spec.blocks + 1)),
        layer(spec.blocks + 1, "last", f, spec.out_channels * spec.scale**2),
    )


def _span(spec: ModelSpec) -> tuple[Layer, ...]:
    f = spec.features

    def single(name: str, place: str, macs: float) -> Layer:
        return Layer(name=name, group=name, unit=name, place=place, macs=macs)

    return (
        single("conv_first", "first", 9.0 * spec.in_channels * f),
        *(
            single(f"body.{block}.conv{number}", "body", 9.0 * f * f)
            for block in range(spec.blocks)
            for number in (1, 2, 3)
        ),
        single("conv_body", "tail", 9.0 * f * f),
        # A group that is not its own, as in a dense block: what it reads is rounded before it is concatenated.
        dataclasses.replace(single("conv_cat", "tail", 4.0 * f * f), group="concatenated"),
        single("conv_last", "last", 9.0 * f * spec.out_channels * spec.scale**2),
    )


def placement(spec: ModelSpec) -> dict[str, str]:
    """Return by name of each convolution that training quantises whose activation scale it takes.

    Those of the dense blocks, or of the body of an SRVGGNetCompact; see `layers` for the whole net.

    Raises:
        ExportError: The architecture is not one whose convolutions are known.
    """
    return {layer.name: layer.group for layer in layers(spec) if layer.place == "body"}


def folds(spec: ModelSpec) -> dict[str, float]:
    """Return by name of each convolution that training quantises what the export multiplies its weights by.

    Raises:
        ExportError: The architecture is not one whose convolutions are known.
    """
    return {layer.name: layer.fold for layer in layers(spec) if layer.place == "body"}
