"""OpenVINO as a session."""

import ctypes
import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime.device import ForeignArray
from esrgan_deploy.runtime.sessions._checks import converted_on_host, host_arrays, new_batch
from esrgan_deploy.runtime.sessions._host_slot import HostSlot
from esrgan_deploy.runtime.sessions._protocol import (
    Array,
    BatchOutput,
    Parts,
    SessionInfo,
    SessionOptions,
    Slot,
)
from esrgan_deploy.runtime.sessions.onnx import (
    AdaptedGraph,
    Ends,
    element_type,
    facts_of_graph,
    measured_ends,
    metadata_of,
    parts_beside,
)
from esrgan_deploy.runtime.sessions.openvino._device import CPU, Target, target_for
from esrgan_deploy.runtime.sessions.openvino._graph import OpenVinoGraph, failure_of
from esrgan_deploy.runtime.sessions.openvino._parts import OpenVinoParts, open_openvino_parts

__all__ = ["OpenVinoSession"]


class OpenVinoSession:
    """An ``.onnx`` graph in OpenVINO, in either I/O form; see `Session` for the protocol.

    fp32 is computed in fp32 unless `SessionOptions.precision` says otherwise. The batch and what is made of it lie in
    ordinary memory, whatever device computes; `run_on_device` takes arrays there, and returns when it has the result.

    Args:
        path: The graph.
        options: `SessionOptions.providers` names OpenVINO.
        note: What `SessionInfo.provider` ends with.

    Raises:
        InferenceError: The file is no graph that OpenVINO runs, or the device is not there or lacks the arithmetic.
        MissingDependencyError: OpenVINO is not installed.
    """

    def __init__(self, path: Path, options: SessionOptions, *, note: str = "") -> None:
        said = metadata_of(path)
        self._name, self._path = path.name, path
        self._turn, self._opening = threading.Lock(), threading.Lock()
        self._parts: OpenVinoParts | None = None
        self._target = target_for(options, _precision_of(said), path.name)
        graph = OpenVinoGraph(path, self._target)
        ends = None
        if not said:
            ends = measured_ends(graph, path, options)
        elif options.describes:
            raise InferenceError(
                f"{path} was made by esrgan-export and says itself what it takes and gives; "
                "leave range, layout and output_name out"
            )
        self._graph: Any = graph if ends is None or ends.plain else AdaptedGraph(graph, ends)
        self._input = self._graph.get_inputs()[0].name
        self._dtype = element_type(self._graph.get_outputs()[0])
        # By name: OpenVINO keeps the order of the file, and nothing promises that it does.
        self._outputs = [one.name for one in self._graph.get_outputs()]
        facts = facts_of_graph(
            path,
            self._graph,
            lambda batch: self._make(batch).batch,
            provider=_provider(self._target, ends) + note,
        )
        if ends is not None and ends.failure:
            raise InferenceError(
                f"{path} ran on no grey picture ({ends.failure}), so that its range stays open; say it: "
                "--range 1 or 255, and --layout NCHW or NHWC"
            )
        # Pieces of a picture differ in their sizes, each of which another device would compile by itself.
        found = parts_beside(path) if ends is None and not self._target.fixed else None
        own = facts.precision or "fp32"
        self._info = dataclasses.replace(
            facts,
            slots=max(facts.slots, self._target.at_once),
            at_once=self._target.at_once,
            computes=self._target.precision if self._target.precision not in ("fp32", own) else "",
            parts=None if found is None else found[2],
        )

    @property
    def info(self) -> SessionInfo:
        """What the session takes and gives."""
        return self._info

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Enlarge one batch; see `Session.run`."""
        return self._make(batch).batch

    def slot(self) -> Slot:
        """Return a new slot; see `Session.slot`."""
        graph = self._open_graph()
        if isinstance(graph, AdaptedGraph):
            return HostSlot(self._info, self._make, self._turn)
        return OpenVinoSlot(self._info, graph, self._outputs, self._open_parts)

    def run_on_device(
        self, array: object, *, stream: object | None = None, out: object | None = None
    ) -> object:
        """See `Session.run_on_device`.

        Raises:
            InferenceError: The array does not fit or cannot stay where it is, there are no streams, or it failed.
        """  # noqa: DOC501  what converted_on_host returns
        if isinstance(self._open_graph(), AdaptedGraph):
            raise converted_on_host(self._name)
        batch, target, made = host_arrays(self._info, array, out, dtype=self._dtype, stream=stream)
        np.copyto(_as_numpy(target), self._make(_as_numpy(batch)).batch)
        return made

    def close(self) -> None:
        """Release the graph; a second call does nothing."""
        self._graph = self._parts = None

    def _make(self, batch: Array) -> BatchOutput:
        graph = self._open_graph()
        try:
            return BatchOutput(*graph.run(self._outputs, {self._input: batch}))
        except InferenceError:
            raise
        except Exception as error:
            raise failure_of(error, self._name, batch.shape) from error

    def _open_parts(self) -> Parts:
        # When a picture needs them, and once.
        self._open_graph()
        with self._opening:
            if self._parts is None:
                self._parts = open_openvino_parts(self._path, self._target, turn=self._turn)
            return self._parts

    def _open_graph(self) -> Any:
        graph = self._graph
        if graph is None:
            raise InferenceError(f"the session of {self._name} is closed; open it again")
        return graph


class OpenVinoSlot:
    """One ``openvino.InferRequest``; see `Slot` and `PartsSlot` for the protocol.

    Args:
        info: Of the session.
        graph: Makes requests.
        outputs: Names of the picture and, where the graph watches itself, of its health.
        parts: Opens what `PartsSlot.parts` is.
    """

    def __init__(self, info: SessionInfo, graph: OpenVinoGraph, outputs: list[str], parts: Any) -> None:
        self._info, self._graph, self._outputs, self._parts = info, graph, outputs, parts
        self._batch: Array | None = None
        self._request: Any = None
        self._started = False

    @property
    def parts(self) -> Parts:
        """What runs the parts of the graph; see `PartsSlot.parts`."""
        parts: Parts = self._parts()
        return parts

    def prepare(self, shape: tuple[int, int, int]) -> Array:
        """Return the batch to fill; see `Slot.prepare`.

        Raises:
            InferenceError: The session does not take that shape, or the graph cannot be compiled for it.
            OutOfMemoryError: The batch does not fit into memory.
        """
        wanted = self._info.batch_shape(*shape)
        self._wait_quietly()
        if self._batch is None or self._batch.shape != wanted:
            # What was made with the old one is let go of first: both at once may be what does not fit.
            self._batch = self._request = None
            batch, request = new_batch(self._info, shape), self._graph.request(wanted)
            tensor = require("openvino", extra="openvino").Tensor(batch, shared_memory=True)
            request.set_input_tensor(0, tensor)
            self._batch, self._request = batch, request
        return self._batch

    def start(self) -> None:
        """Hand the batch to OpenVINO, which computes it when it is its turn.

        Raises:
            InferenceError: It was not prepared, or OpenVINO refused.
        """  # noqa: DOC501  what failure_of returns
        if self._batch is None:
            raise InferenceError(f"a slot of {self._info.name} was started before it was prepared")
        try:
            self._request.start_async(share_inputs=True)
        except Exception as error:
            raise failure_of(error, self._info.name, self._batch.shape) from error
        self._started = True

    def finish(self) -> BatchOutput:
        """Wait for the batch and return it; see `Slot.finish`.

        Raises:
            InferenceError: Nothing was started, or it failed.
        """  # noqa: DOC501  what failure_of returns
        if not self._started or self._batch is None:
            raise InferenceError(f"a slot of {self._info.name} was asked for what it was not given")
        try:
            self._request.wait()
            return BatchOutput(*(self._request.get_tensor(name).data for name in self._outputs))
        except Exception as error:
            self._started = False
            raise failure_of(error, self._info.name, self._batch.shape) from error

    def close(self) -> None:
        """Wait for what is under way, and drop the buffers."""
        self._wait_quietly()
        self._batch = self._request = None

    def _wait_quietly(self) -> None:
        # OpenVINO writes to the buffers until then; what went wrong with a batch that nobody asked for is no matter.
        if self._started:
            self._started = False
            try:
                self._request.wait()
            except RuntimeError:
                self._request = self._batch = None


def _precision_of(said: str) -> str:
    try:
        return str(json.loads(said)["precision"]) if said else ""
    except (ValueError, KeyError, TypeError):
        return ""


def _provider(target: Target, ends: Ends | None) -> str:
    version = str(require("openvino", extra="openvino").__version__).partition("-")[0]
    device = target.device if target.device == CPU else f"{target.device} ({target.label})"
    provider = f"OpenVINO {version}, {device}, {target.precision}"
    if ends is not None:
        provider += "" if ends.plain else f", its own form {ends}"
        provider += f"; {ends.doubt}" if ends.doubt else ""
    return provider


def _as_numpy(array: ForeignArray) -> Array:
    """Return a view of memory that somebody else keeps."""
    place = (ctypes.c_ubyte * array.nbytes).from_address(array.pointer)
    view: Array = np.ctypeslib.as_array(place).view(np.dtype(array.dtype)).reshape(array.shape)
    return view
