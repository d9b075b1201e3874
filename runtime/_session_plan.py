"""A TensorRT plan as a session.

Written against the bindings of TensorRT 11.4 and TensorRT for RTX 1.7 and of cuda.bindings 13; not run: no machine
with a GPU and TensorRT was at hand. One stream, one context, copies in and out: the plain way, by which a plan is
verified.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import EngineMismatchError, InferenceError
from esrgan_deploy._flavour import Flavour, open_flavour
from esrgan_deploy._manifest import Artefact, find_manifest, load_manifest
from esrgan_deploy._optional import require
from esrgan_deploy.runtime._session import SessionInfo, SessionOptions

__all__ = ["PlanSession"]


class PlanSession:
    """A ``.plan`` on the current CUDA device; see `Session` for the protocol.

    Joins the device's primary context and uses a stream of its own.

    Raises:
        EngineMismatchError: The plan is of another flavour, version or card.
        InferenceError: It is not a plan that enlarges pictures, or CUDA fails.
        MissingDependencyError: TensorRT or cuda-bindings is not installed.
    """

    def __init__(self, path: Path, options: SessionOptions | None = None) -> None:
        self._name, self._path = path.name, path
        self._stream: Any = None
        self._buffers: dict[str, tuple[int, int]] = {}
        self._cuda = require("cuda.bindings.runtime", extra="rtx")
        known = _listed(path)
        flavour = open_flavour(known.flavour if known and known.flavour else None)
        self._engine = _loaded(path, flavour, known)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise InferenceError(
                f"{path} got no execution context ({flavour.last_error}); memory may be short"
            )
        self._info = self._described(flavour, known)
        self._stream = self._checked(*self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking))

    @property
    def info(self) -> SessionInfo:
        """What the session takes and gives."""
        return self._info

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Enlarge one batch; see `Session.run`."""
        if self._stream is None:
            raise InferenceError(f"the session of {self._name} is closed; open it again")
        if not self._context.set_input_shape(self._input, batch.shape):
            raise InferenceError(
                f"{self._name} was not built for a batch of {'x'.join(map(str, batch.shape))}"
            )
        shape = tuple(self._context.get_tensor_shape(self._output))
        out: npt.NDArray[Any] = np.empty(shape, self._out_dtype)
        cuda, stream = self._cuda, self._stream
        source = self._buffer(self._input, batch.nbytes)
        target = self._buffer(self._output, out.nbytes)
        kind = cuda.cudaMemcpyKind
        self._checked(
            *cuda.cudaMemcpyAsync(
                source, batch.ctypes.data, batch.nbytes, kind.cudaMemcpyHostToDevice, stream
            )
        )
        if not self._context.execute_async_v3(int(stream)):
            raise InferenceError(
                f"{self._name} failed while it ran; use a smaller tile, or the .onnx beside it"
            )
        self._checked(
            *cuda.cudaMemcpyAsync(out.ctypes.data, target, out.nbytes, kind.cudaMemcpyDeviceToHost, stream)
        )
        self._checked(*cuda.cudaStreamSynchronize(stream))
        return out

    def close(self) -> None:
        """Release the device memory and the stream; a second call does nothing."""
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        for pointer, _ in self._buffers.values():
            self._cuda.cudaFree(pointer)
        self._buffers.clear()
        self._cuda.cudaStreamDestroy(stream)
        self._context = self._engine = None

    def _buffer(self, name: str, size: int) -> int:
        pointer, held = self._buffers.get(name, (0, 0))
        if held < size:
            if pointer:
                del self._buffers[name]
                self._checked(*self._cuda.cudaFree(pointer))
            pointer = int(self._checked(*self._cuda.cudaMalloc(size)))
            self._buffers[name] = (pointer, size)
            if not self._context.set_tensor_address(name, pointer):
                raise InferenceError(f"{self._name} refused a buffer for {name}")
        return pointer

    def _described(self, flavour: Flavour, known: Artefact | None) -> SessionInfo:
        trt, engine = flavour.module, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(names) != 2 or len(inputs) != 1:
            raise InferenceError(
                f"{self._path} has the tensors {', '.join(names)}; one in and one out is a picture"
            )
        self._input = inputs[0]
        (self._output,) = [name for name in names if name != self._input]
        try:
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(self._input)))
            self._out_dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(self._output)))
        except TypeError as error:
            # numpy has no bfloat16.
            raise InferenceError(
                f"{self._path} takes a dtype that numpy lacks. Run: esrgan-export with --form uint8"
            ) from error
        least, usual, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(self._input, 0))
        uint8 = dtype == np.uint8
        channel, side = (3, 1) if uint8 else (1, 2)
        if not self._context.set_input_shape(self._input, usual):
            raise InferenceError(f"{self._path} does not take its own profile's size {usual}")
        made = tuple(self._context.get_tensor_shape(self._output))
        scale = Fraction(made[side], usual[side]).limit_denominator(16)
        return SessionInfo(
            name=self._name,
            form="uint8" if uint8 else "float",
            dtype=dtype,
            in_channels=usual[channel],
            out_channels=made[channel],
            scale=scale,
            size_multiple=known.size_multiple if known else 1,
            min_shape=(least[0], least[side], least[side + 1]),
            max_shape=(most[0], most[side], most[side + 1]),
            provider=f"{flavour.name} {flavour.version}",
        )

    def _checked(self, status: Any, value: Any = None) -> Any:
        if int(status) != 0:
            raise InferenceError(
                f"CUDA failed with {status.name} in {self._name}. Run: nvidia-smi to see the GPU"
            )
        return value


def _listed(path: Path) -> Artefact | None:
    place = find_manifest(path)
    return load_manifest(place).artefact(path.name) if place else None


def _loaded(path: Path, flavour: Flavour, known: Artefact | None) -> Any:
    engine = flavour.module.Runtime(flavour.logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        built = f"{known.flavour} {known.flavour_version}" if known else "an unknown version"
        raise EngineMismatchError(
            f"{path} was built with {built} and {flavour.name} {flavour.version} cannot load it on this GPU "
            f"({flavour.last_error}). Run: esrgan-export again here, with --force"
        )
    return engine
