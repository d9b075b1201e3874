"""A graph as OpenVINO compiles it, with the face of ONNX Runtime's: so that what looks at one looks at both."""

import contextlib
import threading
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy.typing as npt

from esrgan_deploy._cache import KeyedFile, cache_folder
from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError, OutOfMemoryError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._optional import require
from esrgan_deploy._spec import METADATA_KEY
from esrgan_deploy.runtime.device import fault_of
from esrgan_deploy.runtime.sessions.onnx import metadata_of, missing_data
from esrgan_deploy.runtime.sessions.openvino._device import Target, openvino_core

__all__ = ["OpenVinoGraph", "failure_of"]

# Shapes whose compiled form is kept, where each has one: tiles, the last row and column of them, and one for luck.
KEPT = 4

# Of what is done to a model when it is read: with another one, what was compiled before is another graph.
EDITION = 1

_TYPES = {"f32": "tensor(float)", "f16": "tensor(float16)", "u8": "tensor(uint8)", "i64": "tensor(int64)"}


class OpenVinoGraph:
    """An ``.onnx`` file, compiled; used by any thread, a request by one of them.

    Args:
        path: The file.
        target: What to compile it for.
        beside: What else its weights are from: a digest, for a part of a graph.

    Raises:
        InferenceError: OpenVINO cannot read or compile it.
    """

    def __init__(self, path: Path, target: Target, *, beside: str = "") -> None:
        # Behind a link: what a graph keeps its weights in is looked for beside the file itself. A store that names
        # files by their digests keeps no suffix, by which OpenVINO knows what it reads.
        real = path.resolve()
        self._path, self._target = real if real.suffix == path.suffix else path, target
        self._digest = sha256_of(path) + beside
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._own: tuple[tuple[int, ...], Any] | None = None
        self._model: Any = None
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._metadata = metadata_of(path)
        shown: Any
        if target.fixed:
            self._model = shown = self._read()
        else:
            shown = self._compiled[()] = self._compile(())
        self._inputs, self._outputs = (
            [_face(port) for port in ports] for ports in (shown.inputs, shown.outputs)
        )

    def get_inputs(self) -> list[Any]:
        """Return its inputs, each with ``name``, ``type`` and ``shape``, as ONNX Runtime has them."""
        return self._inputs

    def get_outputs(self) -> list[Any]:
        """Return its outputs, likewise."""
        return self._outputs

    def get_modelmeta(self) -> Any:
        """Return what has the metadata of the file as ``custom_metadata_map``."""
        return types.SimpleNamespace(custom_metadata_map={METADATA_KEY: self._metadata})

    def get_providers(self) -> list[str]:
        """Return the one device."""
        return [self._target.device]

    def request(self, shape: tuple[int, ...]) -> Any:
        """Return a new ``openvino.InferRequest``.

        Args:
            shape: Of the first input.

        Raises:
            InferenceError: The graph cannot be compiled for it.
        """
        return self._for(shape).create_infer_request()

    def run(self, names: list[str] | None, feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run one batch; raises what OpenVINO raises.

        Args:
            names: Of the outputs that are wanted; None for all.
            feed: The inputs by name.
        """
        shape = feed[self._inputs[0].name].shape if self._target.fixed else ()
        wanted = [one.name for one in self._outputs] if names is None else names
        with self._turn:
            if self._own is None or self._own[0] != shape:
                self._own = None
                self._own = shape, self.request(shape)
            request = self._own[1]
            request.infer(feed, share_inputs=True)
            # The next run writes to the same tensors.
            return [request.get_tensor(name).data.copy() for name in wanted]

    def _for(self, shape: tuple[int, ...]) -> Any:
        key = shape if self._target.fixed else ()
        with self._lock:
            if key not in self._compiled:
                while len(self._compiled) >= KEPT:
                    self._compiled.popitem(last=False)
                self._compiled[key] = self._compile(key)
            self._compiled.move_to_end(key)
            return self._compiled[key]

    def _compile(self, shape: tuple[int, ...]) -> Any:
        core, device, settings = openvino_core(), self._target.device, self._target.settings()
        kept = self._kept(shape, settings)
        content = kept.load()
        if content:
            # Of another build of the same version, it is made anew and replaced.
            with contextlib.suppress(RuntimeError):
                return core.import_model(content, device, settings)
        model = self._read()
        try:
            if shape:
                model.reshape({model.inputs[0].get_any_name(): list(shape)})
            compiled = core.compile_model(model, device, settings)
        except RuntimeError as error:
            raise failure_of(error, self._path.name, shape, doing="cannot compile") from error
        # Several devices in a row have no form to be written in.
        with contextlib.suppress(RuntimeError):
            kept.save(bytes(compiled.export_model().getbuffer()))
        return compiled

    def _kept(self, shape: tuple[int, ...], settings: dict[str, Any]) -> KeyedFile:
        key = {
            "openvino": require("openvino", extra="openvino").__version__,
            "device": [self._target.device, self._target.label, *self._target.able],
            "settings": settings,
            "shape": shape,
            "graph": [self._digest, EDITION],
        }
        return KeyedFile(cache_folder("openvino"), "compiled", key)

    def _read(self) -> Any:
        """Return the ``openvino.Model`` of the file.

        What is exact and faster in OpenVINO alone is done to the model here: every graph and every part comes by.

        Raises:
            InferenceError: It cannot be read.
        """
        if self._model is not None:
            return self._model.clone()
        try:
            return _with_float_ends(openvino_core().read_model(str(self._path)))
        except RuntimeError as error:
            missing = missing_data(self._path)
            if missing:
                raise InferenceError(
                    f"{self._path} keeps its weights in {self._path.parent / missing}, which is not there; put it "
                    "beside the graph"
                ) from error
            raise InferenceError(
                f"OpenVINO cannot read {self._path} ({_reason(error)}). If the file is cut off or is no ONNX graph, "
                "run: esrgan-export again"
            ) from error


def failure_of(
    error: Exception, name: str, shape: tuple[int, ...], *, doing: str = "failed on"
) -> InferenceError:
    """Return the error to raise for one of OpenVINO's, which are all RuntimeError.

    Args:
        error: What it raised.
        name: Of the graph.
        shape: Of the batch; empty for any.
        doing: What went wrong.
    """
    batch = f"a batch of {'x'.join(map(str, shape))}" if shape else "it"
    kind = OutOfMemoryError if isinstance(error, MemoryError) else fault_of(str(error))
    advice = "; if memory ran out, use a smaller tile"
    return kind(f"{name}: OpenVINO {doing} {batch} ({_reason(error)}){advice}")


def _with_float_ends(model: Any) -> Any:
    # numpy has no bf16: a graph that takes or gives it does so in float32, and rounds inside.
    ends = require("openvino.preprocess", extra="openvino").PrePostProcessor(model)
    wide = require("openvino", extra="openvino").Type.f32
    for ports, end in ((model.inputs, ends.input), (model.outputs, ends.output)):
        for place, port in enumerate(ports):
            if port.element_type.get_type_name() == "bf16":
                end(place).tensor().set_element_type(wide)
    return ends.build()


def _reason(error: Exception) -> str:
    # "Exception from src/inference/src/cpp/core.cpp:97:\nException from ...:57:\nwhat happened\n"
    lines = [line for line in str(error).splitlines() if not line.startswith(("Exception from", "Check '"))]
    return one_line(" ".join(lines) or str(error))[:300]


def _face(port: Any) -> Any:
    kind = port.element_type.get_type_name()
    shape = [side.get_length() if side.is_static else None for side in port.partial_shape]
    return types.SimpleNamespace(
        name=port.get_any_name(), type=_TYPES.get(kind, f"tensor({kind})"), shape=shape
    )
