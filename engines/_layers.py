"""The kernels that the builder chose, read from its log, so that no GPU is needed to see them."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

__all__ = [
    "KernelRow",
    "Layer",
    "Tensor",
    "convolution_dtypes",
    "declared_bytes_per_pixel",
    "kernel_table",
    "parse_layers",
]

# The log's words, TensorRT 10 and 11 alike; older ones say "FP16" within a longer format.
_DTYPES = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
    "uint8": "uint8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
_COMPUTED = {"fp32", "fp16", "bf16", "int8", "fp8"}
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int32": 4, "int64": 8}

_KEYS = re.compile(r"(?:^|, )(Name|LayerType|Inputs|Constants|Outputs|ParameterType|TacticName|StreamId): ")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<dims>[\d,\s-]*)\]"
    r".*?Datatype: (?P<dtype>[^,}]+)"
)
_MYELIN = re.compile(r"__myl_([A-Za-z]+)_myl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as a kernel sees it.

    Attributes:
        name: Its name in the plan, where neighbours may share one buffer.
        dims: Its dimensions; -1 where the plan is dynamic.
        dtype: ``"fp16"`` and so on.
    """

    name: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size.

        Raises:
            ValueError: A dimension is dynamic, so that there is no size.
        """
        if any(dim < 0 for dim in self.dims):
            raise ValueError(
                f"tensor {self.name} has dynamic dimensions {self.dims}; build for one fixed size"
            )
        return math.prod(self.dims) * _BYTES.get(self.dtype, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One kernel of a plan.

    Attributes:
        name: Its name in the plan.
        kind: What it computes: ``"Corr"`` (a convolution), ``"Deco"`` (a transposed one), ``"Conc"`` (a copy),
            ``"MulMax"`` (a leaky ReLU) and so on as TensorRT's compiler abbreviates the operators that it fused, or
            the layer's type.
        inputs: What it reads, weights left out.
        weights: Its constants.
        outputs: What it writes.
        convolution: Whether a convolution is part of it.
    """

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    convolution: bool

    @property
    def dtype(self) -> str:
        """The dtype that it computes in: the narrowest one of those it reads that arithmetic is done in."""
        dtypes = [tensor.dtype for tensor in self.inputs or self.outputs]
        computed = [dtype for dtype in dtypes if dtype in _COMPUTED] or dtypes
        return min(computed, key=lambda dtype: _BYTES.get(dtype, 1), default="")

    @property
    def read(self) -> int:
        """Bytes that it declares to read, each tensor once, weights left out."""
        return sum(tensor.bytes for tensor in set(self.inputs))

    @property
    def written(self) -> int:
        """Bytes that it declares to write."""
        return sum(tensor.bytes for tensor in set(self.outputs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelRow:
    """Kernels of one kind and dtype.

    Attributes:
        kind: As in `Layer`.
        dtype: As in `Layer`.
        count: How many there are.
        bytes_per_pixel: Bytes that they declare to read and write, per pixel of the input.
    """

    kind: str
    dtype: str
    count: int
    bytes_per_pixel: float


def parse_layers(message: str) -> tuple[Layer, ...]:
    """Read the message that begins with ``Layers:``, one line for each kernel.

    Lines that move no data (signals between streams, shape arithmetic) are left out.
    """
    layers = (_layer(line) for line in message.splitlines() if "LayerType: " in line)
    return tuple(layer for layer in layers if layer.inputs or layer.outputs)


def convolution_dtypes(layers: Iterable[Layer]) -> dict[str, int]:
    """Return the number of convolution kernels by the dtype that they compute in."""
    counts = collections.Counter(layer.dtype for layer in layers if layer.convolution)
    return dict(sorted(counts.items()))


def declared_bytes_per_pixel(layers: Iterable[Layer], pixels: int) -> float:
    """Return the bytes that all kernels declare to read and write, per pixel of the input.

    What a cache saves is not counted: this compares two graphs of one net, it does not predict time.

    Args:
        layers: Of a plan with one fixed size.
        pixels: ``N · H · W`` of that size.

    Raises:
        ValueError: The plan has dynamic shapes, so that there are no sizes.
    """
    return sum(layer.read + layer.written for layer in layers) / pixels


def kernel_table(layers: Sequence[Layer], pixels: int) -> tuple[KernelRow, ...]:
    """Group the kernels by kind and dtype, the one that moves most bytes first.

    Raises:
        ValueError: The plan has dynamic shapes, so that there are no sizes.
    """
    groups: dict[tuple[str, str], list[Layer]] = collections.defaultdict(list)
    for layer in layers:
        groups[layer.kind, layer.dtype].append(layer)
    rows = [
        KernelRow(
            kind=kind, dtype=dtype, count=len(group), bytes_per_pixel=declared_bytes_per_pixel(group, pixels)
        )
        for (kind, dtype), group in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.bytes_per_pixel, row.kind)))


def _layer(line: str) -> Layer:
    parts = _KEYS.split(line)
    fields = dict(zip(parts[1::2], parts[2::2], strict=True))
    name, layer_type = fields.get("Name", ""), fields.get("LayerType", "")
    fused = _MYELIN.search(name)
    convolution = (
        layer_type == "correlation"
        or "conv" in layer_type.lower()
        or fields.get("ParameterType") == "Convolution"
        or (fused is not None and ("Corr" in fused[1] or "Deco" in fused[1]))
    )
    kind = fused[1] if fused else ("Corr" if layer_type == "correlation" else layer_type)
    return Layer(
        name=name,
        kind=kind,
        inputs=_tensors(fields.get("Inputs", "")),
        weights=_tensors(fields.get("Constants", "")),
        outputs=_tensors(fields.get("Outputs", "")),
        convolution=convolution,
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            name=match["name"],
            dims=tuple(int(dim) for dim in match["dims"].split(",") if dim.strip()),
            dtype=_dtype(match["dtype"]),
        )
        for match in _TENSOR.finditer(text)
    )


def _dtype(words: str) -> str:
    for word in re.findall(r"\w+", words.lower()):
        if word in _DTYPES:
            return _DTYPES[word]
    return words.strip().lower()
