"""The parts of a graph in ONNX Runtime, on a processor."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._files import PARTS, part_of, sha256_of
from esrgan_deploy.runtime.sessions._parts import PICTURE, PartsInfo
from esrgan_deploy.runtime.sessions._protocol import Array, BatchOutput
from esrgan_deploy.runtime.sessions.onnx._cuda import element_type, failure_of
from esrgan_deploy.runtime.sessions.onnx._file import metadata_of

__all__ = ["OnnxParts", "open_parts", "parts_beside"]


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
    path: Path, open_graph: Callable[[Path], Any], *, turn: contextlib.AbstractContextManager[Any]
) -> "OnnxParts":
    """Open the parts beside a graph.

    Args:
        path: The graph.
        open_graph: Makes an ``onnxruntime.InferenceSession`` of a file.
        turn: What is held while one computes.

    Raises:
        InferenceError: They are gone or were changed since the graph was opened, or ONNX Runtime refuses one.
    """
    found = parts_beside(path)
    if found is None:
        raise InferenceError(
            f"the parts of {path} are gone or were changed since it was opened; open it again"
        )
    *files, info = found
    trunk, tail = (open_graph(part) for part in files)
    return OnnxParts(
        info, trunk, tail, turn=turn, failure=lambda error, shape: failure_of(error, path.name, shape)
    )


class OnnxParts:
    """Runs trunk and tail; see `Parts` for the protocol.

    Args:
        info: Of them.
        trunk: An ``onnxruntime.InferenceSession``.
        tail: Another.
        turn: What is held while one computes.
        failure: Makes an error of this package of one of ONNX Runtime's, given the shape that was fed.
    """

    def __init__(
        self,
        info: PartsInfo,
        trunk: Any,
        tail: Any,
        *,
        turn: contextlib.AbstractContextManager[Any],
        failure: Callable[[Exception, tuple[int, ...]], Exception],
    ) -> None:
        self._info, self._trunk, self._tail = info, trunk, tail
        self._turn, self._failure = turn, failure

    @property
    def info(self) -> PartsInfo:
        """What is known of them."""
        return self._info

    def trunk(self, width: int) -> "OnnxTrunk":
        """See `Parts.trunk`."""
        return OnnxTrunk(self._trunk, width, self._info, self._turn, self._failure)

    def tail(self, features: Array, picture: Array | None) -> BatchOutput:
        """See `Parts.tail`.

        Raises:
            InferenceError: It failed.
        """
        given = [features] if picture is None else [features, picture]
        feeds = dict(zip((one.name for one in self._tail.get_inputs()), given, strict=True))
        with self._turn:
            try:
                return BatchOutput(*map(np.asarray, self._tail.run(None, feeds)))
            except Exception as error:
                raise self._failure(error, features.shape) from error


class OnnxTrunk:
    """One picture's way through the trunk; see `Trunk` for the protocol."""

    def __init__(
        self,
        graph: Any,
        width: int,
        info: PartsInfo,
        turn: contextlib.AbstractContextManager[Any],
        failure: Callable[[Exception, tuple[int, ...]], Exception],
    ) -> None:
        import onnxruntime

        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._graph, self._turn, self._failure = graph, turn, failure
        self._picture, self._rows, *kept = graph.get_inputs()
        makers = [maker for block in info.blocks for maker, _ in block.inputs]
        # One row above the picture, which is never looked at: so no tensor is empty.
        self._kept = {
            one.name: self._value(
                np.zeros(
                    (1, one.shape[1], 1, width if maker == PICTURE else width // info.step), element_type(one)
                )
            )
            for one, maker in zip(kept, makers, strict=True)
        }
        self._outputs = [one.name for one in graph.get_outputs()]

    def advance(self, rows: Array, bounds: Array) -> Array:
        """See `Trunk.advance`.

        Raises:
            InferenceError: It failed.
        """
        feeds = {
            self._picture.name: self._value(rows),
            self._rows.name: self._value(bounds),
            **self._kept,
        }
        with self._turn:
            try:
                features, *kept = self._graph.run_with_ort_values(self._outputs, feeds)
            except Exception as error:
                raise self._failure(error, rows.shape) from error
        self._kept = dict(zip(self._kept, kept, strict=True))
        made: Array = features.numpy()
        return made
