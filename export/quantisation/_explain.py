"""Which convolution of a quantised graph errs by more than its rounding explains, layer by layer with Polygraphy."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy._errors import ExportError
from esrgan_deploy._optional import require
from esrgan_deploy._parity import planar
from esrgan_deploy.export._graph import clone
from esrgan_deploy.export._rounding import rounding_model
from esrgan_deploy.export.quantisation._explain_noise import Rounding, explained_power
from esrgan_deploy.export.quantisation._explain_twins import Twin, add_twins

__all__ = ["Explanation", "LayerError", "explain_errors"]

FACTOR = 4.0
"""How many times the error power that rounding explains is still no fault: sums of rounding errors are random."""

# Tensors of so many convolutions are kept at once.
_AT_ONCE = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerError:
    """The error of one convolution; powers are means of squares over the output, in its own units.

    Attributes:
        name: The convolution.
        tensor: Its output in the graph.
        kind: ``"int8"``, ``"uint8"``, ``"fp8"``, or ``"fp16"`` where it is not quantised.
        signal: Power of its output.
        local: Power of the error that it adds: its output less that of the fp32 weights on the same input, as that
            arrives before it is rounded.
        explained: Power of the error that rounding to these steps makes of this input.
        total: Power of its output's error against the fp32 graph, what went before included.
        beyond: Share of its input beyond the range of the format, 0..1.
        largest: The input's largest magnitude.
        end: Where the range ends, the nearer end; inf where nothing is quantised.
        cut: Share of its weights that are further from the fp32 ones than half a step, 0..1.
    """

    name: str
    tensor: str
    kind: str
    signal: float
    local: float
    explained: float
    total: float
    beyond: float
    largest: float
    end: float
    cut: float

    @property
    def times(self) -> float:
        """How many times as large the error is as what rounding explains, in power."""
        if not np.isfinite(self.local):
            return float("inf")
        return (
            self.local / self.explained if self.explained > 0 else (float("inf") if self.local > 0 else 0.0)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Every convolution in the order in which they run, and the first that errs by more than rounding explains.

    Attributes:
        layers: See `LayerError`.
        first: The first whose error power exceeds `factor` times what rounding explains, or None.
        factor: That factor.
        sentence: What is the matter, or that nothing is and what adds most.
    """

    layers: tuple[LayerError, ...]
    first: LayerError | None
    factor: float
    sentence: str

    def table(self) -> str:
        """Return the layers as text, errors in dB below the layer's output."""
        lines = [
            f"{'convolution':28} {'format':6} {'own':>7} {'explained':>9} {'total':>7} {'beyond':>8}  (dB)"
        ]
        for layer in self.layers:
            figures = [
                _decibels(power, layer.signal) for power in (layer.local, layer.explained, layer.total)
            ]
            mark = " <- first" if layer is self.first else ""
            lines.append(
                f"{layer.name:28} {layer.kind:6} {figures[0]:7.1f} {figures[1]:9.1f} {figures[2]:7.1f} "
                f"{layer.beyond:8.3%}{mark}"
            )
        return "\n".join([*lines, self.sentence])


def explain_errors(
    reference: Path | ir.Model,
    quantised: Path,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    factor: float = FACTOR,
) -> Explanation:
    """Compare a quantised graph with the fp32 graph, convolution by convolution.

    Beside each convolution stands a twin with the fp32 weights that reads the same input before it is rounded, so
    that the error that one layer adds is told from the error that it was handed.

    Args:
        reference: The rewritten fp32 graph in the float form, with the recipe's parameters applied: weights that
            were equalised or learned are no error.
        quantised: The graph that was made of it, in either form; it may quantise nothing.
        pictures: Each ``(N, H, W, C)`` uint8, small: 64 pixels a side say as much as a thousand.
        factor: See `FACTOR`.

    Raises:
        ExportError: The graphs do not have the same convolutions, or there is no picture.
        MissingDependencyError: Polygraphy or ONNX Runtime is not installed.
    """
    if not pictures:
        raise ExportError("there is no picture to explain the errors on; one of 64x64 is enough")
    source = clone(reference) if isinstance(reference, ir.Model) else ir.load(reference)
    graph = ir.load(quantised)
    if any(value.dtype == ir.DataType.FLOAT16 for value in graph.graph.initializers.values()):
        graph = rounding_model(graph, "fp16")
    twins = add_twins(graph, source, where=str(quantised))
    found: list[LayerError] = []
    for start in range(0, len(twins), _AT_ONCE):
        found += _measured(source, graph, twins[start : start + _AT_ONCE], pictures)
    first = next((layer for layer in found if not layer.times <= factor), None)
    return Explanation(
        layers=tuple(found), first=first, factor=factor, sentence=_sentence(found, first, factor)
    )


def _measured(
    source: ir.Model, graph: ir.Model, twins: Sequence[Twin], pictures: Sequence[npt.NDArray[np.uint8]]
) -> list[LayerError]:
    sums = [_Sums(twin) for twin in twins]
    expected = [twin.expected for twin in twins]
    marked = list(dict.fromkeys(name for twin in twins for name in (twin.input, twin.output, twin.exact)))
    runs = zip(_runs(source, expected, pictures), _runs(graph, marked, pictures), strict=True)
    for reference, made in runs:
        for entry in sums:
            twin = entry.twin
            entry.add(made[twin.input], made[twin.output], made[twin.exact], reference[twin.expected])
    return [entry.result() for entry in sums]


def _runs(
    model: ir.Model, names: Sequence[str], pictures: Sequence[npt.NDArray[np.uint8]]
) -> Iterator[dict[str, npt.NDArray[np.float64]]]:
    onnx_backend = require("polygraphy.backend.onnx", extra="polygraphy")
    runtime = require("polygraphy.backend.onnxrt", extra="polygraphy")
    comparator = require("polygraphy.comparator", extra="polygraphy")
    logger = require("polygraphy.logger", extra="polygraphy").G_LOGGER
    require("onnxruntime", extra="cpu")
    marked = onnx_backend.ModifyOutputs(ir.serde.serialize_model(model), outputs=list(names), copy=True)
    runner = runtime.OnnxrtRunner(runtime.SessionFromOnnx(onnx_backend.BytesFromOnnx(marked)))
    with logger.verbosity(logger.CRITICAL):
        results = comparator.Comparator.run([runner], data_loader=[_feed(model, one) for one in pictures])
    for iteration in results[0][1]:
        yield {name: np.asarray(iteration[name], np.float64) for name in names}


def _feed(model: ir.Model, picture: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    source = model.graph.inputs[0]
    assert source.name is not None
    if source.dtype == ir.DataType.UINT8:
        return {source.name: picture}
    half = source.dtype == ir.DataType.FLOAT16
    return {source.name: planar(picture).astype(np.float16 if half else np.float32)}


class _Sums:
    """Adds up one convolution over the pictures."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self._rows: list[tuple[float, float, float, float, float]] = []
        self._largest = 0.0

    def add(
        self,
        x: npt.NDArray[np.float64],
        made: npt.NDArray[np.float64],
        exact: npt.NDArray[np.float64],
        expected: npt.NDArray[np.float64],
    ) -> None:
        twin = self.twin
        low, high = twin.rounding.ends
        with np.errstate(invalid="ignore", over="ignore"):
            self._rows.append(
                (
                    float(np.square(exact).mean()),
                    float(np.square(made - exact).mean()),
                    explained_power(x, exact, twin.weights, twin.stored, twin.steps, twin.rounding),
                    float(np.square(made - expected).mean()),
                    float(((x < low) | (x > high)).mean()),
                )
            )
        self._largest = max(self._largest, float(np.abs(x).max()))

    def result(self) -> LayerError:
        twin = self.twin
        signal, local, explained, total, beyond = np.mean(np.array(self._rows), axis=0).tolist()
        return LayerError(
            name=twin.name,
            tensor=twin.tensor,
            kind=twin.rounding.kind,
            signal=signal,
            local=local,
            explained=explained,
            total=total,
            beyond=beyond,
            largest=self._largest,
            end=min(-twin.rounding.ends[0], twin.rounding.ends[1]) or max(twin.rounding.ends),
            cut=_cut(twin),
        )


def _cut(twin: Twin) -> float:
    half = Rounding.spacing_of(twin.weights, twin.steps, twin.rounding.kind) / 2
    return float((np.abs(twin.stored - twin.weights) > half * 1.01).mean())


def _sentence(found: Sequence[LayerError], first: LayerError | None, factor: float) -> str:
    if first is None:
        worst = max(found, key=lambda layer: layer.local / layer.signal if layer.signal else 0.0)
        return (
            f"no convolution errs by more than {factor:g} times what rounding explains, in power; {worst.name} adds "
            f"most for its output, {_decibels(worst.local, worst.signal):.1f} dB below it"
        )
    head = f"{first.name} ({first.tensor}) is the first that errs by more than rounding explains, {first.times:.3g} "
    head += "times in power: "
    if not np.isfinite(first.local):
        return head + "its output is not finite, which half precision ends at 65504 for"
    looks = []
    if first.beyond > 0:
        looks.append(
            f"{first.beyond:.2%} of its input lies beyond the range, up to {first.largest:.4g} where it ends at "
            f"{first.end:.4g}, so its step is too short"
        )
    if first.cut > 0:
        looks.append(f"{first.cut:.2%} of its weights are cut off or are of another net than the fp32 graph")
    return head + (
        " and ".join(looks) or "nothing is cut off, so the steps it quantises and dequantises with differ"
    )


def _decibels(power: float, signal: float) -> float:
    if power <= 0 or signal <= 0:
        return float("-inf")
    return float(10 * np.log10(power / signal))
