"""Graphs that others made: what they take and give, measured on greys, and the float form around them."""

import dataclasses
import itertools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError
from esrgan_deploy._spec import HEALTH_OUTPUT
from esrgan_deploy.runtime.sessions._protocol import PEAKS, SessionOptions
from esrgan_deploy.runtime.sessions.onnx._facts import DTYPES, are_picture_and_health

__all__ = ["AdaptedGraph", "Ends", "measured_ends"]

Layout = Literal["NCHW", "NHWC"]

_CHANNELS, _GREYS = (1, 3, 4), np.array([0.25, 0.5, 0.75])
# Between them multiples of every size multiple that is known; the first that runs is taken.
_SIDES = (16, 32, 64)
# How far a net that enlarges may take a grey away, how much nearer than 0..1 another range has to bring it, and what
# no grey comes to where white is 1.
_NEAR, _BETTER, _BEYOND = 0.3, 0.02, 4.0
# Layout, ranges, and which end is uint8, of the two forms that a session has.
_PLAIN = (("NCHW", (1, 1), (False, False)), ("NHWC", (255, 255), (True, True)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ends:
    """What a foreign graph takes and gives.

    Layout, output and white (1 or 255) of its picture; whether a session has that form without a conversion; why
    nothing could be measured; what the greys left open.
    """

    layout: Layout
    output: str
    peaks: tuple[int, int]
    plain: bool = False
    failure: str = ""
    doubt: str = ""

    def __str__(self) -> str:
        return f"{self.layout} 0..{self.peaks[0]} to 0..{self.peaks[1]}"


class AdaptedGraph:
    """Takes and gives ``(N, C, H, W)`` float32 0..1, whatever the ``onnxruntime.InferenceSession`` inside does."""

    def __init__(self, graph: Any, ends: Ends) -> None:
        self._graph, self._ends = graph, ends
        source = graph.get_inputs()[0]
        self._dtype = DTYPES[source.type]
        shape = [source.shape[axis] for axis in ((0, 3, 1, 2) if ends.layout == "NHWC" else range(4))]
        taken = types.SimpleNamespace(name=source.name, type="tensor(float)", shape=shape)
        made = types.SimpleNamespace(name=ends.output, type="tensor(float)", shape=[None] * 4)
        self.get_inputs: Callable[[], list[Any]] = lambda: [taken]
        self.get_outputs: Callable[[], list[Any]] = lambda: [made]
        self.get_modelmeta, self.get_providers = graph.get_modelmeta, graph.get_providers

    def run(self, _: None, feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
        """Run one batch; raises what ONNX Runtime raises."""
        ((name, batch),) = feed.items()
        scaled = batch * np.float32(self._ends.peaks[0])
        if self._dtype is np.uint8:
            scaled = np.rint(scaled)
        if self._ends.layout == "NHWC":
            scaled = scaled.transpose(0, 2, 3, 1)
        (made,) = self._graph.run([self._ends.output], {name: np.ascontiguousarray(scaled, self._dtype)})
        if self._ends.layout == "NHWC" and made.ndim == 4:
            made = made.transpose(0, 3, 1, 2)
        return [np.divide(made, np.float32(self._ends.peaks[1]), dtype=np.float32, order="C")]


def measured_ends(graph: Any, path: Path, said: SessionOptions) -> Ends | None:
    """Find out what a graph takes and gives that nobody describes.

    Args:
        graph: An ``onnxruntime.InferenceSession``, on any device.
        path: Its file, for messages.
        said: Its ``range``, ``layout`` and ``output_name`` need not be measured.

    Returns:
        None of a watched graph, whose form is known, and of one without a picture's input, which is refused later.

    Raises:
        InferenceError: Layout, output or range stay open, or what was said does not fit.
    """
    inputs, outputs = graph.get_inputs(), {value.name: value.type for value in graph.get_outputs()}
    watched = are_picture_and_health(graph.get_outputs()) and not said.describes
    if watched or len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in DTYPES:
        return None
    names = [name for name in outputs if name != HEALTH_OUTPUT and outputs[name] in DTYPES]
    if said.output_name not in (None, *names):
        raise InferenceError(
            f"{path} has no picture {said.output_name!r}, only {', '.join(names)}: --output-name"
        )
    names = names if said.output_name is None else [said.output_name]
    bytes_in = inputs[0].type == "tensor(uint8)"
    layouts = _layouts(inputs[0].shape, said.layout)
    found: dict[tuple[Layout, str], int] = {}
    failure = "none of its outputs is a picture"
    for layout, name in itertools.product(layouts, names):
        whole = Ends(layout=layout, output=name, peaks=(255 if bytes_in else 1, 1))
        try:
            given, made = _of_grey(AdaptedGraph(graph, whole), 0.5)
        except Exception as error:
            failure = one_line(error)[:200]
            continue
        if made.ndim == 4 and made.shape[1] in _CHANNELS and len(made) == len(given):
            (height, width), (high, wide) = given.shape[2:], made.shape[2:]
            if high * width == wide * height:
                found[layout, name] = max(1, high // height)
    layout, name = _one_of(found, path) if found else (layouts[0], (names or list(outputs))[0])
    integer = (bytes_in, outputs[name] == "tensor(uint8)")
    candidates = _ranges(said.range, integer)
    peaks, doubt = candidates[0], ""
    if found and len(candidates) > 1:
        peaks, doubt = _measured(graph, path, layout, name, candidates)
    plain = (layout, peaks, integer) in _PLAIN and set(outputs) <= {name, HEALTH_OUTPUT}
    failure = "" if found or len(candidates) == 1 else failure
    return Ends(layout=layout, output=name, peaks=peaks, plain=plain, failure=failure, doubt=doubt)


def _layouts(shape: list[Any], said: Layout | None) -> tuple[Layout, ...]:
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    both: tuple[Layout, ...] = ("NCHW", "NHWC")
    return (said,) if said else both if first == last else both[:1] if first else both[1:]


def _of_grey(graph: AdaptedGraph, grey: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    (source,) = graph.get_inputs()
    n, c, h, w = (size if isinstance(size, int) and size > 0 else 0 for size in source.shape)
    for side in _SIDES[:1] if h and w else _SIDES:
        batch = np.full((n or 1, c or 3, h or side, w or side), grey, np.float32)
        try:
            return batch, graph.run(None, {source.name: batch})[0]
        except Exception as error:
            failure = error
    raise failure


def _one_of(found: dict[tuple[Layout, str], int], path: Path) -> tuple[Layout, str]:
    if len({layout for layout, _ in found}) > 1:
        raise InferenceError(f"{path} runs as NCHW and as NHWC; say which: --layout NCHW or NHWC")
    # Beside an enlarged picture one of the input's size is by the way.
    fit = [key for key in found if found[key] > 1] or list(found)
    if len(fit) > 1:
        names = ", ".join(name for _, name in fit)
        raise InferenceError(f"{path} has several pictures as outputs ({names}); say which: --output-name")
    return fit[0]


def _ranges(said: int | tuple[int, int] | None, integer: tuple[bool, bool]) -> list[tuple[int, int]]:
    wanted = said if isinstance(said, tuple) else (said, said)
    ins, outs = (
        (255,) if whole else PEAKS if peak is None else (peak,)
        for whole, peak in zip(integer, wanted, strict=True)
    )
    return list(itertools.product(ins, outs))


def _measured(
    graph: Any, path: Path, layout: Layout, name: str, ranges: list[tuple[int, int]]
) -> tuple[tuple[int, int], str]:
    misses, largest = list[float](), 0.0
    for peak, group in itertools.groupby(ranges, key=lambda ends: ends[0]):
        made = _greys(AdaptedGraph(graph, Ends(layout=layout, output=name, peaks=(peak, 1))))
        largest = max(largest, float(np.abs(made).max()) / peak)
        misses += [float(np.abs(made / white - _GREYS).max()) for _, white in group]
        if min(misses) < _BETTER:
            break
    best = int(np.argmin(misses))
    if misses[best] < misses[0] - _BETTER and misses[best] <= _NEAR:
        return ranges[best], ""
    if misses[0] <= _NEAR:
        return ranges[0], ""
    if len(ranges) == 2 or _BEYOND < largest < np.inf:
        raise InferenceError(
            f"{path} gives no grey back in the range 0..1 or 0..255; say its range: --range 1, 255, 1:255 or 255:1"
        )
    return ranges[0], "its greys tell no range, taken as 0..{} to 0..{}; --range says otherwise".format(
        *ranges[0]
    )


def _greys(graph: AdaptedGraph) -> npt.NDArray[np.float64]:
    try:
        made = [_of_grey(graph, grey)[1] for grey in _GREYS]
    except Exception:
        return np.full(len(_GREYS), np.inf)
    # The median: the edge is what the padding makes of it.
    return np.nan_to_num([np.median(one) for one in made], nan=np.inf)
