"""The parts of a graph in OpenVINO, on a processor."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._optional import require
from esrgan_deploy.runtime.sessions._parts import PartsInfo
from esrgan_deploy.runtime.sessions._protocol import Array
from esrgan_deploy.runtime.sessions.onnx import OnnxParts, first_rows, open_parts
from esrgan_deploy.runtime.sessions.openvino._device import Target
from esrgan_deploy.runtime.sessions.openvino._graph import OpenVinoGraph, failure_of

__all__ = ["OpenVinoParts", "open_openvino_parts"]


def open_openvino_parts(
    path: Path, target: Target, *, turn: contextlib.AbstractContextManager[Any]
) -> "OpenVinoParts":
    """Open the parts beside a graph.

    Args:
        path: The graph.
        target: What to compile them for; one strip at a time, with all threads.
        turn: What is held while one computes.

    Raises:
        InferenceError: They are gone or were changed since the graph was opened, or OpenVINO refuses one.
    """
    one = dataclasses.replace(target, at_once=1)
    return open_parts(
        path, lambda part, whole: OpenVinoGraph(part, one, beside=whole), turn=turn, kind=OpenVinoParts
    )


class OpenVinoParts(OnnxParts):
    """Runs trunk and tail; see `Parts` for the protocol."""

    failure_of = staticmethod(failure_of)

    def trunk(self, width: int) -> "OpenVinoTrunk":  # type: ignore[override]
        """See `Parts.trunk`."""
        return OpenVinoTrunk(self._trunk, self._info, width, self._in_turn)


class OpenVinoTrunk:
    """One picture's way through the trunk; see `Trunk` for the protocol."""

    def __init__(
        self,
        graph: OpenVinoGraph,
        info: PartsInfo,
        width: int,
        in_turn: Callable[[tuple[int, ...]], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._tensor = require("openvino", extra="openvino").Tensor
        self._in_turn = in_turn
        picture, rows, *kept = graph.get_inputs()
        features, *self._next = (one.name for one in graph.get_outputs())
        self._picture, self._rows, self._features = picture.name, rows.name, features
        self._kept = {name: self._tensor(rows) for name, rows in first_rows(kept, info, width).items()}
        # In turns: what one made is what the other reads.
        self._requests = [graph.request(()), graph.request(())]

    def advance(self, rows: Array, bounds: Array) -> Array:
        """See `Trunk.advance`."""
        request, other = self._requests
        self._requests = [other, request]
        with self._in_turn(rows.shape):
            request.set_tensor(self._picture, self._tensor(np.ascontiguousarray(rows)))
            request.set_tensor(self._rows, self._tensor(bounds))
            for name, tensor in self._kept.items():
                request.set_tensor(name, tensor)
            request.infer()
            self._kept = dict(zip(self._kept, map(request.get_tensor, self._next), strict=True))
            # What it is a view of is written again by the strip after the next.
            made: Array = request.get_tensor(self._features).data.copy()
        return made
