"""Which convolution of an ncnn graph is which of the net's: from how layers are joined and not from their names."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import CheckpointError

__all__ = ["Graph", "Layer", "Value", "names_of", "refuse_other_kinds"]

Value = float | tuple[float, ...]

_FROM = "give the .pth or .safetensors that it was made from"
_NEGATIVE_SLOPE = 0.2
_RESIDUAL = 0.2
# What pnnx notes of shapes and ncnn of features, and what decides nothing about the numbers.
_NOTES = {30, 31}
_LEAST_INTERPOLATED = 2
_MOST_FOLDED = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A line of a graph.

    Attributes:
        kind: ncnn's name of the operator.
        name: Its own name, of which a graph has no two.
        inputs: The blobs that it reads.
        outputs: Those that it makes.
        options: Numbers and arrays of numbers by their place in ncnn's table of the operator.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: dict[int, Value]

    def number(self, option: int, default: float = 0.0) -> float:
        """Return an option, or what it is where it is left out; NaN for an array, which equals nothing."""
        value = self.options.get(option, default)
        return math.nan if isinstance(value, tuple) else value

    def whole(self, option: int) -> int:
        """Return an option that counts something; -1 where it does not."""
        value = self.number(option)
        return int(value) if value.is_integer() else -1


@dataclasses.dataclass(frozen=True, eq=False)
class _Node:
    """A value in a computation: ``op`` of `inputs`, with `numbers` such as a slope or the factors of a sum.

    `name` is the layer's in a graph, and the module's in a net. The sum of two has the one with the shorter way from
    the picture first where their factors are equal.
    """

    op: str
    inputs: tuple["_Node", ...] = ()
    numbers: tuple[float, ...] = ()
    name: str = ""
    depth: int = 0


def _node(op: str, *inputs: _Node, numbers: Sequence[float] = (), name: str = "") -> _Node:
    depth = 1 + max((node.depth for node in inputs), default=0)
    return _Node(op, inputs, tuple(numbers), name, depth)


def _sum(factors: Sequence[float], nodes: Sequence[_Node], name: str = "") -> _Node:
    # A factor of its own, as onnx2ncnn leaves it, is what ncnnoptimize makes a factor of the sum.
    terms = [
        (factor * node.numbers[0], node.inputs[0]) if node.op == "scale" else (factor, node)
        for factor, node in zip(factors, nodes, strict=True)
    ]
    terms.sort(key=lambda term: (term[0], term[1].depth))
    return _node("sum", *(node for _, node in terms), numbers=[factor for factor, _ in terms], name=name)


class Graph:
    """What a graph computes.

    Args:
        layers: Its lines, each of a kind that `refuse_other_kinds` lets through.
        source: The file, for messages.

    Raises:
        CheckpointError: A layer is used in a way that these nets have not, or the layers do not hang together.
    """

    def __init__(self, layers: Sequence[Layer], source: str) -> None:
        self.source = source
        self.convolutions = sum(layer.kind == "Convolution" for layer in layers)
        self.nodes: list[_Node] = []
        self._blobs: dict[str, _Node] = {}
        unread: set[str] = set()
        for layer in layers:
            inputs = [self._blob(name, layer) for name in layer.inputs]
            unread.difference_update(layer.inputs)
            made = _KINDS[layer.kind](self, layer, inputs)
            if layer.kind != "Split":
                self.nodes.append(made)
            for name in layer.outputs:
                if name in self._blobs:
                    raise self.refusal(layer, f"makes the blob {name!r}, which is there already")
                self._blobs[name] = made
                unread.add(name)
        if len(unread) != 1:
            raise CheckpointError(
                f"{source} has {len(unread)} outputs ({', '.join(map(repr, sorted(unread)[:3]))}) where these nets "
                f"have one; it is damaged or of another net: {_FROM}"
            )
        self.output = self._blobs[unread.pop()]

    @property
    def rearranged(self) -> int:
        """How many pixels become channels, or channels pixels, along each axis; 1 where none do."""
        return next((int(node.numbers[0]) for node in self.nodes if node.op in {"shuffle", "unshuffle"}), 1)

    def refusal(self, layer: Layer, what: str, todo: str = _FROM) -> CheckpointError:
        """Return the error that names a layer."""
        return CheckpointError(
            f"{self.source}: layer {one_line(layer.name)[:60]!r} ({layer.kind}) {what}; {todo}"
        )

    def only(self, layer: Layer, fixed: dict[int, float], free: Sequence[int] = ()) -> None:
        """Refuse a layer whose options are not these; what is left out of ``fixed`` and ``free`` has to be left out.

        Raises:
            CheckpointError: One is another.
        """
        for option in layer.options:
            if option not in fixed and option not in free and option not in _NOTES:
                raise self.refusal(layer, f"has the option {option}, which it has not in these nets")
        for option, wanted in fixed.items():
            if layer.number(option) != wanted:
                raise self.refusal(
                    layer, f"has {option}={layer.number(option):g} where these nets have {wanted:g}"
                )

    def _blob(self, name: str, layer: Layer) -> _Node:
        if name not in self._blobs:
            raise self.refusal(layer, f"reads {one_line(name)[:60]!r}, which no layer before it makes")
        return self._blobs[name]


def refuse_other_kinds(layers: Sequence[Layer], source: str) -> None:
    """Refuse graphs with layers that neither of the two nets has.

    Raises:
        CheckpointError: There is one.
    """
    other = next((layer for layer in layers if layer.kind not in _KINDS), None)
    if other is not None:
        raise CheckpointError(
            f"{source}: layer {one_line(other.name)[:60]!r} is a {one_line(other.kind)[:40]!r}, which neither an "
            f"RRDBNet nor a SRVGGNetCompact has in ncnn's form; {_FROM}"
        )


def names_of(graph: Graph) -> dict[str, str]:
    """Return the name of the module, as BasicSR has it, by that of the layer; for each convolution and PReLU.

    The net is computed twice, by the graph and as it is known, with values that stand for what was done to the
    picture, and the two are laid over one another from the output on.

    Raises:
        CheckpointError: The graph computes something else.
    """
    if any(node.op == "prelu" for node in graph.nodes):
        title, expected = "a SRVGGNetCompact", _compact(graph)
    else:
        title, expected = "an RRDBNet", _rrdbnet(graph)
    return _laid_over(expected, graph, title)


def _rrdbnet(graph: Graph) -> _Node:
    doublings = sum(node.op == "nearest" for node in graph.nodes)
    blocks, rest = divmod(graph.convolutions - 4 - doublings, 15)
    if blocks < 1 or rest:
        raise CheckpointError(
            f"{graph.source} has {graph.convolutions} convolutions, no PReLU and enlarges {doublings} times; an "
            "RRDBNet has 15 convolutions a block, 4 more and 1 for each time, a SRVGGNetCompact has PReLUs. "
            f"Of another net {_FROM}"
        )
    x = _node("input")
    if graph.rearranged != 1:
        x = _node("unshuffle", x, numbers=[graph.rearranged])
    first = x = _conv(x, "conv_first")
    for n in range(blocks):
        block = x
        for m in (1, 2, 3):
            made = [x]
            for k in (1, 2, 3, 4, 5):
                joined = made[0] if k == 1 else _node("concatenation", *made)
                convolved = _conv(joined, f"body.{n}.rdb{m}.conv{k}")
                made.append(_leaky(convolved))
            x = _sum((_RESIDUAL, 1.0), (convolved, x))
        x = _sum((_RESIDUAL, 1.0), (x, block))
    x = _sum((1.0, 1.0), (first, _conv(x, "conv_body")))
    for i in range(1, doublings + 1):
        x = _leaky(_conv(_node("nearest", x, numbers=(2.0,)), f"conv_up{i}"))
    return _conv(_leaky(_conv(x, "conv_hr")), "conv_last")


def _compact(graph: Graph) -> _Node:
    picture = x = _node("input")
    for number in range(graph.convolutions - 1):
        x = _conv(x, f"body.{2 * number}")
        x = _node("prelu", x, name=f"body.{2 * number + 1}")
    x = _conv(x, f"body.{2 * (graph.convolutions - 1)}")
    scale = [graph.rearranged]
    return _sum((1.0, 1.0), (_node("nearest", picture, numbers=scale), _node("shuffle", x, numbers=scale)))


def _conv(x: _Node, name: str) -> _Node:
    return _node("convolution", x, name=name)


def _leaky(x: _Node) -> _Node:
    return _node("leaky", x, numbers=(_NEGATIVE_SLOPE,))


def _laid_over(expected: _Node, graph: Graph, title: str) -> dict[str, str]:
    partner: dict[_Node, _Node] = {}
    taken: set[_Node] = set()
    waiting = [(expected, graph.output)]
    while waiting:
        known, found = waiting.pop()
        if known in partner and partner[known] is found:
            continue
        if known in partner or found in taken or not _alike(known, found):
            raise CheckpointError(
                f"{graph.source} reads like {title} and computes something else: layer "
                f"{one_line(found.name)[:60]!r} is {_said(found)} where that has {_said(known)}; {_FROM}"
            )
        partner[known] = found
        taken.add(found)
        waiting += zip(known.inputs, found.inputs, strict=True)
    return {found.name: known.name for known, found in partner.items() if known.name}


def _alike(known: _Node, found: _Node) -> bool:
    same = known.op == found.op and len(known.inputs) == len(found.inputs)
    # A graph writes seven digits.
    return (
        same
        and len(known.numbers) == len(found.numbers)
        and all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(known.numbers, found.numbers, strict=True))
    )


def _said(node: _Node) -> str:
    numbers = f" ({', '.join(f'{number:g}' for number in node.numbers)})" if node.numbers else ""
    return f"{node.op}{numbers} of {len(node.inputs)}"


def _input(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    # Width, height and channels are only noted.
    graph.only(layer, {}, free=(0, 1, 2, 3, 11))
    if any(node.op == "input" for node in graph.nodes):
        raise graph.refusal(layer, "is a second input; these nets have one")
    return _node("input", name=layer.name)


def _one(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    if len(inputs) != 1:
        raise graph.refusal(layer, f"reads {len(inputs)} blobs where these nets have 1")
    return inputs[0]


def _split(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    graph.only(layer, {})
    return _one(graph, layer, inputs)


def _convolution(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    source = _one(graph, layer, inputs)
    fixed = {1: 3.0, 4: 1.0, 5: 1.0}
    # What may be left out: dilation, stride, the height of the kernel, the padding of the other sides.
    fixed |= {option: 1.0 for option in (2, 3, 12, 13, 14, 15, 16) if option in layer.options}
    fixed |= {11: 3.0} if 11 in layer.options else {}
    graph.only(layer, {**fixed, 8: 0.0, 18: 0.0, 19: 0.0}, free=(0, 6, 9, 10))
    made = _node("convolution", source, name=layer.name)
    kind, slope = layer.number(9), layer.options.get(10)
    if kind == 0:
        return made
    if kind != 2 or not isinstance(slope, tuple) or len(slope) != 1:
        raise graph.refusal(
            layer, f"has the activation {kind:g}, and these nets have 2 (LeakyReLU) with one slope"
        )
    return _node("leaky", made, numbers=slope, name=layer.name)


def _prelu(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    graph.only(layer, {}, free=(0,))
    return _node("prelu", _one(graph, layer, inputs), name=layer.name)


def _relu(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    graph.only(layer, {}, free=(0,))
    return _node("leaky", _one(graph, layer, inputs), numbers=[layer.number(0)], name=layer.name)


def _concatenation(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    graph.only(layer, {0: 0.0})
    return _node("concatenation", *inputs, name=layer.name)


def _binary(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    if layer.number(1) == 1:
        graph.only(layer, {0: 2.0, 1: 1.0}, free=(2,))
        return _node("scale", _one(graph, layer, inputs), numbers=[layer.number(2)], name=layer.name)
    graph.only(layer, {0: 0.0, 1: 0.0}, free=(2,))
    return _sum([1.0] * len(inputs), inputs, layer.name)


def _eltwise(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    graph.only(layer, {0: 1.0}, free=(1,))
    factors = layer.options.get(1, ()) or (1.0,) * len(inputs)
    if not isinstance(factors, tuple) or len(factors) != len(inputs):
        raise graph.refusal(layer, f"has no factor for each of the {len(inputs)} blobs that it adds")
    return _sum(factors, inputs, layer.name)


def _resize(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
    source, factor = _one(graph, layer, inputs), layer.number(1)
    if layer.number(0) >= _LEAST_INTERPOLATED:
        raise graph.refusal(
            layer,
            f"resizes by {factor:g} with interpolation (0={layer.number(0):g}), and these nets repeat pixels (0=1)",
            "where it only resizes what the net made, give the net without it (realesr-animevideov3-x4 for its -x2 "
            "and -x3) with --outscale",
        )
    graph.only(layer, {0: 1.0, 2: factor, 3: 0.0, 4: 0.0, 5: 0.0}, free=(1, 6))
    return _node("nearest", source, numbers=[factor], name=layer.name)


def _rearrangement(op: str) -> Callable[[Graph, Layer, list[_Node]], _Node]:
    def made(graph: Graph, layer: Layer, inputs: list[_Node]) -> _Node:
        # Mode 0 is PyTorch's order of channels.
        graph.only(layer, {1: 0.0}, free=(0,))
        factor = layer.whole(0)
        if not 1 <= factor <= _MOST_FOLDED:
            raise graph.refusal(
                layer, f"folds by 0={layer.number(0):g}, and these nets by 1 to {_MOST_FOLDED}"
            )
        return _node(op, _one(graph, layer, inputs), numbers=[factor], name=layer.name)

    return made


_KINDS: dict[str, Callable[[Graph, Layer, list[_Node]], _Node]] = {
    "Input": _input,
    "Split": _split,
    "Convolution": _convolution,
    "PReLU": _prelu,
    "ReLU": _relu,
    "Concat": _concatenation,
    "BinaryOp": _binary,
    "Eltwise": _eltwise,
    "Interp": _resize,
    "PixelShuffle": _rearrangement("shuffle"),
    "Reorg": _rearrangement("unshuffle"),
}
