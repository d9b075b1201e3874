"""The two files of a net in ncnn's form: a graph as text (``.param``), and its weights in a row (``.bin``).

Format: ncnn's ``param-and-model-file-structure.md`` and ``operators.md`` in ``docs/developer-guide``, and its
``src/paramdict.cpp`` and ``src/modelbin.cpp``. What onnx2ncnn, ncnnoptimize and pnnx make of an RRDBNet or a
SRVGGNetCompact is read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import CheckpointError
from esrgan_deploy.export.checkpoints._ncnn_graph import Graph, Layer, Value, names_of, refuse_other_kinds

__all__ = ["is_ncnn", "pair_of", "tensors_of"]

_MAGIC = b"7767517"
_BINARY_MAGIC = b"\xdd\x85\x76\x00"
_GRAPH_BYTES = 4 * 2**20

# The tag in front of a convolution's weights.
_HALF, _INT8 = 0x01306B47, 0x000D4B38
_TAGS = tuple(tag.to_bytes(4, "little") for tag in (0, _HALF, _INT8, 0x0002C056))
_READ = f"0x{0:08X} (fp32) and 0x{_HALF:08X} (fp16) are read; give the file that ncnn's tools made it from"


def is_ncnn(path: Path, data: bytes) -> bool:
    """Tell whether a file is one of the two, by its first bytes; a ``.bin`` may be PyTorch's as well."""
    return data.startswith((_MAGIC, _BINARY_MAGIC)) or (
        path.suffix.lower() == ".bin" and data.startswith(_TAGS)
    )


def pair_of(path: Path) -> tuple[Path, Path]:
    """Return where graph and weights are, whichever of them was named: ``net.param`` and ``net.bin``.

    Raises:
        CheckpointError: The other one is not there.
    """
    graph, weights = (path.with_suffix(suffix) for suffix in (".param", ".bin"))
    if path.suffix.lower() == ".bin":
        weights = path
        other, what = graph, "the graph, without which weights have no names"
    else:
        graph = path
        other, what = weights, "the weights"
    if not other.exists():
        raise CheckpointError(
            f"{path} is one of the two files of an ncnn net, and {other.name} is not beside it: {what}. "
            "Put both into one folder"
        )
    return graph, weights


def tensors_of(text: bytes, data: bytes, graph: Path, weights: Path) -> dict[str, Tensor]:
    """Return the tensors of a net by the names that BasicSR gives them, weights of fp16 as such.

    Which convolution is which is read from how the layers are joined, see `names_of`.

    Args:
        text: Bytes of the graph.
        data: Bytes of the weights.
        graph: The graph's file, for messages.
        weights: That of the weights.

    Raises:
        CheckpointError: The files are damaged, of another net or not of each other, or the weights of another format.
    """
    layers = _parsed(text, str(graph))
    refuse_other_kinds(layers, str(graph))
    computed = Graph(layers, str(graph))
    names = names_of(computed)
    reader = _Reader(data, weights, graph)
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        if layer.kind == "Convolution":
            size, channels = layer.whole(6), layer.whole(0)
            if channels < 1 or size < 1 or size % (9 * channels):
                raise CheckpointError(
                    f"{graph}: layer {layer.name!r} has {size} weights for {channels} channels, and a 3x3 "
                    "convolution has 9 for each of its inputs; the file is damaged, get both files again"
                )
            weight, bias = reader.tagged(size, layer), reader.plain(channels, layer)
            tensors[f"{names[layer.name]}.weight"] = weight.reshape(channels, -1, 3, 3)
            tensors[f"{names[layer.name]}.bias"] = bias
        elif layer.kind == "PReLU":
            tensors[f"{names[layer.name]}.weight"] = reader.plain(layer.whole(0), layer)
    reader.refuse_rest()
    _refuse_channels(tensors, computed)
    return tensors


def _refuse_channels(tensors: Mapping[str, Tensor], graph: Graph) -> None:
    # Names and shapes alone would take twelve channels for a picture that was folded by two.
    if "conv_first.weight" in tensors:
        outer, many = tensors["conv_last.weight"].shape[0], tensors["conv_first.weight"].shape[1]
    else:
        outer, many = (
            tensors["body.0.weight"].shape[1],
            tensors[f"body.{len(tensors) // 3 * 2}.weight"].shape[0],
        )
    if many != outer * graph.rearranged**2:
        raise CheckpointError(
            f"{graph.source} folds {outer} channels of a picture by {graph.rearranged}, which makes "
            f"{outer * graph.rearranged**2}, and has {many}; the file is damaged, get both files again"
        )


@dataclasses.dataclass
class _Reader:
    """Takes array after array from the weights; nothing is allocated for which the file has no bytes."""

    data: bytes
    weights: Path
    graph: Path
    place: int = 0

    def tagged(self, count: int, layer: Layer) -> Tensor:
        tag = int.from_bytes(self._taken(4, layer), "little")
        if tag == 0:
            return self.plain(count, layer)
        if tag != _HALF:
            kind = "int8" if tag == _INT8 else "no format that is known"
            raise CheckpointError(
                f"{self.weights}: the weights of layer {layer.name!r} have the tag 0x{tag:08X} ({kind}); {_READ}"
            )
        # To the next multiple of four.
        taken = self._taken(2 * count + 2 * (count % 2), layer)
        return torch.from_numpy(np.frombuffer(taken, "<f2", count).astype(np.float16))

    def plain(self, count: int, layer: Layer) -> Tensor:
        if count < 1:
            raise CheckpointError(
                f"{self.graph}: layer {layer.name!r} has {count} numbers, and needs one at least; the file is "
                "damaged, get both files again"
            )
        return torch.from_numpy(np.frombuffer(self._taken(4 * count, layer), "<f4").astype(np.float32))

    def refuse_rest(self) -> None:
        if self.place != len(self.data):
            raise CheckpointError(
                f"{self.weights} has {len(self.data)} bytes where {self.graph.name} names {self.place}; "
                "the two are not of one net, get both again"
            )

    def _taken(self, count: int, layer: Layer) -> bytes:
        end = self.place + count
        if end > len(self.data):
            raise CheckpointError(
                f"{self.weights} has {len(self.data)} bytes, and layer {layer.name!r} of {self.graph.name} ends at "
                f"{end} or beyond; it is truncated or of another net, get both again"
            )
        taken = self.data[self.place : end]
        self.place = end
        return taken


def _parsed(text: bytes, source: str) -> list[Layer]:
    if text.startswith(_BINARY_MAGIC):
        raise CheckpointError(
            f"{source} is the binary form of an ncnn graph (.param.bin), which has no names; "
            "give the .param that it was made from"
        )
    if len(text) > _GRAPH_BYTES:
        raise CheckpointError(
            f"{source} has {len(text)} bytes, over {_GRAPH_BYTES >> 20} MiB, which no graph of these nets has; "
            "give the .param that ncnn's tools wrote"
        )
    lines = [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines or lines[0].strip() != _MAGIC.decode():
        begins = repr(one_line(lines[0] if lines else "")[:50])
        raise CheckpointError(
            f"{source} is no graph of ncnn: it begins {begins} where a .param begins with {_MAGIC.decode()}; "
            "give the .param that ncnn's tools wrote"
        )
    announced = _counted(lines[1] if len(lines) > 1 else "", source)
    if announced != len(lines) - 2:
        raise CheckpointError(
            f"{source} announces {announced} layers and holds {len(lines) - 2}; it is truncated or damaged, "
            "get both files again"
        )
    layers = [_layer(line, number, source) for number, line in enumerate(lines[2:], start=3)]
    if len({layer.name for layer in layers}) != len(layers):
        raise CheckpointError(f"{source} has two layers of one name; it is damaged, get both files again")
    return layers


def _counted(line: str, source: str) -> int:
    try:
        layers, _blobs = (int(word) for word in line.split())
    except ValueError:
        raise CheckpointError(
            f"{source} says {one_line(line)[:50]!r} in its second line, where the numbers of its layers and blobs "
            "stand; it is damaged, get both files again"
        ) from None
    return layers


def _layer(line: str, number: int, source: str) -> Layer:
    words = line.split()
    try:
        inputs, outputs = int(words[2]), int(words[3])
        names, options = words[4 : 4 + inputs + outputs], words[4 + inputs + outputs :]
        if inputs < 0 or outputs < 0 or len(names) != inputs + outputs:
            raise ValueError
        return Layer(
            kind=words[0],
            name=words[1],
            inputs=tuple(names[:inputs]),
            outputs=tuple(names[inputs:]),
            options=dict(_option(word) for word in options),
        )
    except (ValueError, IndexError):
        raise CheckpointError(
            f"{source}, line {number} is no layer of an ncnn graph ({one_line(line)[:60]!r}); "
            "it is truncated or damaged, get both files again"
        ) from None


def _option(word: str) -> tuple[int, Value]:
    key, _, value = word.partition("=")
    if int(key) > -23300:
        return int(key), float(value)
    # An array says its length first.
    length, *numbers = value.split(",")
    if int(length) != len(numbers):
        raise ValueError
    return -23300 - int(key), tuple(map(float, numbers))
