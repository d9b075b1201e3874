"""The parts of a graph in ONNX Runtime, on a processor."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._files import PARTS, part_of, sha256_of
from esrgan_deploy.runtime.sessions._parts import PICTURE, PartsInfo
from esrgan_deploy.runtime.sessions._protocol import Array, BatchOutput
from esrgan_deploy.runtime.sessions.onnx._cuda import element_type, failure_of
from esrgan_deploy.runtime.sessions.onnx._file import metadata_of

__all__ = ["OnnxParts", "first_rows", "open_parts", "parts_beside"]

Kind = TypeVar("Kind", bound="OnnxParts")


def parts_beside(path: Path) -> tuple[Path, Path, PartsInfo] | None:
    """Return the trunk and the tail that lie beside a graph and are of this very graph; None where there are none.

    Args:
        path: ``model.onnx``, with ``model.trunk.onnx`` and ``model.tail.onnx`` beside it.
    """
    trunk, tail = (part_of(path, name) for name in PARTS)
    try:
        known = [PartsInfo.from_json(metadata_of(part)) for part in (trunk, tail)]
    except (OSError, ValueError):
        return None
    # A graph that was exported again, and parts that were not.
    if known[0] != known[1] or known[0].whole != sha256_of(path):
        return None
    return trunk, tail, known[0]


def open_parts(
    path: Path,
    open_graph: Callable[[Path, str], Any],
    *,
    turn: contextlib.AbstractContextManager[Any],
    kind: "Callable[..., Kind]",
) -> "Kind":
    """Open the parts beside a graph.

    Args:
        path: The graph.
        open_graph: Makes an ``onnxruntime.InferenceSession``, or what has its face, of a file and the digest of the
            graph, which holds the weights.
        turn: What is held while one computes.
        kind: `OnnxParts`, or what follows from it.

    Raises:
        InferenceError: They are gone or were changed since the graph was opened, or ONNX Runtime refuses one.
    """
    found = parts_beside(path)
    if found is None:
        raise InferenceError(
            f"the parts of {path} are gone or were changed since it was opened; open it again"
        )
    trunk, tail, info = found
    return kind(info, open_graph(trunk, info.whole), open_graph(tail, info.whole), name=path.name, turn=turn)


def first_rows(inputs: Sequence[Any], info: PartsInfo, width: int) -> dict[str, Array]:
    """Return by name what a trunk reads as kept rows with its first strip.

    One row above the picture, which is never looked at: so no tensor is empty.

    Args:
        inputs: Those of the trunk that are kept rows, as `get_inputs` gives them.
        info: Of the parts.
        width: Columns of the picture.
    """
    makers = [maker for block in info.blocks for maker, _ in block.inputs]
    return {
        one.name: np.zeros(
            (1, one.shape[1], 1, width if maker == PICTURE else width // info.step), element_type(one)
        )
        for one, maker in zip(inputs, makers, strict=True)
    }


class OnnxParts:
    """Runs trunk and tail; see `Parts` for the protocol.

    Args:
        info: Of them.
        trunk: An ``onnxruntime.InferenceSession``, or what has its face.
        tail: Another.
        name: Of the graph, for messages.
        turn: What is held while one computes.
    """

    failure_of = staticmethod(failure_of)

    def __init__(
        self,
        info: PartsInfo,
        trunk: Any,
        tail: Any,
        *,
        name: str,
        turn: contextlib.AbstractContextManager[Any],
    ) -> None:
        self._info, self._trunk, self._tail = info, trunk, tail
        self._name, self._turn = name, turn

    @property
    def info(self) -> PartsInfo:
        """What is known of them."""
        return self._info

    def trunk(self, width: int) -> "OnnxTrunk":
        """See `Parts.trunk`."""
        return OnnxTrunk(self._trunk, self._info, width, self._in_turn)

    def tail(self, features: Array, picture: Array | None) -> BatchOutput:
        """See `Parts.tail`."""
        given = [features] if picture is None else [features, picture]
        feeds = dict(zip((one.name for one in self._tail.get_inputs()), given, strict=True))
        with self._in_turn(features.shape):
            return BatchOutput(*map(np.asarray, self._tail.run(None, feeds)))

    @contextlib.contextmanager
    def _in_turn(self, shape: tuple[int, ...]) -> Iterator[None]:
        with self._turn:
            try:
                yield
            except Exception as error:
                raise self.failure_of(error, self._name, shape) from error


class OnnxTrunk:
    """One picture's way through the trunk; see `Trunk` for the protocol."""

    def __init__(
        self,
        graph: Any,
        info: PartsInfo,
        width: int,
        in_turn: Callable[[tuple[int, ...]], contextlib.AbstractContextManager[None]],
    ) -> None:
        import onnxruntime

        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._graph, self._in_turn = graph, in_turn
        self._picture, self._rows, *kept = graph.get_inputs()
        self._kept = {name: self._value(rows) for name, rows in first_rows(kept, info, width).items()}
        self._outputs = [one.name for one in graph.get_outputs()]

    def advance(self, rows: Array, bounds: Array) -> Array:
        """See `Trunk.advance`."""
        feeds = {
            self._picture.name: self._value(rows),
            self._rows.name: self._value(bounds),
            **self._kept,
        }
        with self._in_turn(rows.shape):
            features, *kept = self._graph.run_with_ort_values(self._outputs, feeds)
        self._kept = dict(zip(self._kept, kept, strict=True))
        made: Array = features.numpy()
        return made
