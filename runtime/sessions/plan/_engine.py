"""A plan that is loaded: its tensors, and the execution contexts that are made of it. Not run on a GPU so far.

Names are those of TensorRT 11.4 and TensorRT for RTX 1.7; what only one of them has is looked for, never inferred
from a version.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from esrgan_deploy._cache import KeyedFile, cache_folder
from esrgan_deploy._errors import DeviceLostError, EngineMismatchError, InferenceError, OutOfMemoryError
from esrgan_deploy._manifest import manifest_beside
from esrgan_deploy._spec import HEALTH_OUTPUT, ModelSpec
from esrgan_deploy.runtime.device import Device, call, fault_of, gpu_label
from esrgan_deploy.runtime.sessions._protocol import SLOTS_ON_GPU, SessionInfo
from esrgan_deploy.runtime.sessions.plan._admit import Admitted
from esrgan_deploy.runtime.sessions.plan._fit import rebuild_command

__all__ = ["ALIGNMENT", "PlanEngine", "aligned"]

ALIGNMENT = 256
"""Of what TensorRT reads and writes, in bytes."""

DTYPES = ("uint8", "float16", "float32")


class PlanEngine:
    """An engine with one picture in and one out, and maybe a `BatchOutput.health` beside it.

    **Who captures.** TensorRT for RTX has a strategy of its own, whole-graph capture, and is given it instead of
    being captured from outside: that needs a plan built with ``REQUIRE_USER_ALLOCATION`` and a context that says
    it can be captured, and it would freeze whatever kernels were there at that moment, while RTX knows when those
    of a new shape are ready. Two more calls a batch, upload and download, are the price. Full TensorRT has no
    such strategy and is captured whole.

    Args:
        admitted: The plan, as it was checked.
        device: Its context is current in the calling thread.
        cuda_graph: Whether work may be captured at all.

    Raises:
        EngineMismatchError: TensorRT cannot load it here.
        InferenceError: It is not a plan that enlarges pictures.
    """

    def __init__(self, admitted: Admitted, device: Device, *, cuda_graph: bool) -> None:
        self.flavour = admitted.flavour
        self.name = admitted.path.name
        self._admitted = admitted
        self._lock = threading.Lock()
        self._device = device
        with device.exclusive:
            self._runtime, self._engine = _loaded(admitted)
        self._read_tensors()
        config = getattr(self._engine, "create_runtime_config", lambda: None)()
        captures_itself = hasattr(config, "cuda_graph_strategy")
        self.captured = cuda_graph and not captures_itself
        self._cache: Any = None
        self._disk: KeyedFile | None = None
        self._saved = b""
        if hasattr(config, "create_runtime_cache"):
            self._open_cache(config)
        # Arrays of others come at addresses that change with each call, which a captured graph cannot follow.
        configured = captures_itself or self._cache is not None
        self._in_slots = self._configured(graph=cuda_graph) if configured else None
        self._on_device = self._configured(graph=False) if configured else None
        self._spare: Any = None

    @property
    def profile(self) -> tuple[tuple[int, ...], ...]:
        """The smallest, the usual and the largest shape of the input."""
        return tuple(tuple(shape) for shape in self._engine.get_tensor_profile_shape(self.input, 0))

    def describe(self) -> SessionInfo:
        """Return what the plan takes and gives, by its first profile.

        Raises:
            InferenceError: It does not enlarge both sides by one factor, or its channels are no picture.
        """
        least, usual, most = self.profile
        uint8 = self.dtype == np.uint8
        channel, side = (3, 1) if uint8 else (1, 2)
        # A context costs seconds where its kernels are compiled with it: the first slot gets this one.
        self._spare = context = self.context()
        made = self.shape_context(context, usual)[self.output]
        if made[channel] != usual[channel] or usual[channel] not in (1, 3):
            raise InferenceError(
                f"{self._admitted.path} makes {made[channel]} channels of {usual[channel]}; "
                "a picture is 3 to 3 (RGB) or 1 to 1 (gray)"
            )
        known = self._admitted.artefact
        return SessionInfo(
            name=self.name,
            form="uint8" if uint8 else "float",
            dtype=self.dtype,
            in_channels=usual[channel],
            out_channels=made[channel],
            scale=self._scale(usual[side : side + 2], made[side : side + 2]),
            size_multiple=known.size_multiple if known else 1,
            min_shape=(least[0], least[side], least[side + 1]),
            max_shape=(most[0], most[side], most[side + 1]),
            provider=f"{self.flavour.name} {self.flavour.version}, {gpu_label(self._device.ordinal)}",
            spec=self._spec(),
            precision=known.precision if known else "",
            device=self._device.ordinal,
            slots=SLOTS_ON_GPU,
            watched=self.health is not None,
        )

    def context(self, *, on_device: bool = False) -> Any:
        """Return a new execution context that brings no memory of its own.

        Args:
            on_device: Whether it works on arrays of others, at addresses that change.

        Raises:
            OutOfMemoryError: There is no memory for its kernels.
            DeviceLostError: The device computes nothing any more.
            InferenceError: TensorRT refuses.
        """
        with self._lock:
            if self._engine is None:
                raise InferenceError(f"the session of {self.name} is closed; open it again")
            spare = None
            if not on_device:
                spare, self._spare = self._spare, None
            self.flavour.forget_errors()
            context = spare
            if context is None:
                with self._device.exclusive:
                    context = self._engine.create_execution_context(self._strategy(on_device))
        if context is None:
            raise self.failure("got no execution context")
        return context

    def shape_context(self, context: Any, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Set the shape of the input and return those of the outputs.

        Raises:
            InferenceError: The plan was not built for it.
        """
        if not context.set_input_shape(self.input, tuple(shape)):
            _raise_if_lost()
            raise InferenceError(f"{self.name} was not built for a batch of {'x'.join(map(str, shape))}")
        outputs = [self.output, *([self.health] if self.health else [])]
        shapes = {name: tuple(int(side) for side in context.get_tensor_shape(name)) for name in outputs}
        if any(side < 0 for sides in shapes.values() for side in sides):
            raise InferenceError(f"{self.name} does not say how large its output is before it is run")
        return shapes

    def scratch_size(self, context: Any) -> int:
        """Return the bytes that a context works in, at the shape that it is set to.

        Where it gives no number for its shape, be it that it failed, the profile's is taken: enough for each.
        """
        size = int(context.update_device_memory_size_for_shapes())
        return size if size > 0 else int(self._engine.get_device_memory_size_for_profile_v2(0))

    def give_memory(
        self, context: Any, scratch: tuple[int, int], addresses: Iterable[tuple[str, int]]
    ) -> None:
        """Tell a context where it works and where its tensors are.

        Args:
            context: Set to its shape.
            scratch: Address and size of what it works in.
            addresses: Each tensor's name and address.

        Raises:
            InferenceError: TensorRT refuses.
        """
        self.flavour.forget_errors()
        context.set_device_memory(*scratch)
        if self.flavour.last_error:
            # It returns nothing.
            raise self.failure(f"refused {scratch[1]:,} bytes to work in")
        for name, address in addresses:
            if not context.set_tensor_address(name, address):
                raise self.failure(f"refused the memory for {name}")

    def enqueue(self, context: Any, stream: int, *, again: bool = False) -> None:
        """Enqueue the work of a context.

        Args:
            context: Set to its shape and its memory.
            stream: Handle.
            again: Whether to try a second time: the first work after a broken capture may be refused once.

        Raises:
            InferenceError: TensorRT refuses.
        """
        for _ in range(1 + again):
            self.flavour.forget_errors()
            if context.execute_async_v3(stream):
                return
        raise self.failure("failed while it ran")

    def failure(self, what: str) -> InferenceError:
        """Return the error for something that TensorRT refused, with the reason that it logged.

        Call `Flavour.forget_errors` before what may be refused.
        """
        reason = self.flavour.last_error or "TensorRT gives no reason"
        text = f"{self.name} {what} ({reason[:300]})"
        kind = fault_of(reason)
        if kind is InferenceError:
            # It may have said nothing of the device.
            try:
                _raise_if_lost()
            except DeviceLostError as lost:
                return lost
        advice = {
            DeviceLostError: "the GPU's context is broken; start the process again",
            OutOfMemoryError: "use a smaller tile",
        }
        return kind(f"{text}; {advice.get(kind, 'use a smaller tile, or the .onnx beside it')}")

    def keep_kernels(self) -> None:
        """Write what was compiled so far to the disk, where that is new."""
        if self._cache is None or self._disk is None:
            return
        with self._lock:
            serialized = self._cache.serialize()
            kernels = b"" if serialized is None else bytes(memoryview(serialized))
            if kernels and kernels != self._saved and self._disk.save(kernels):
                self._saved = kernels

    def close(self) -> None:
        """Let go of the engine; contexts that are still held keep it alive. A second call does nothing."""
        with self._lock:
            self._spare = self._in_slots = self._on_device = self._cache = None
            self._engine = self._runtime = None

    def give_up_capture(self, reason: InferenceError) -> None:
        """Go on without captured graphs, and say so once."""
        with self._lock:
            first, self.captured = self.captured, False
        if first:
            warnings.warn(
                f"the work of {self.name} cannot be captured as a CUDA graph ({reason}): each batch is enqueued "
                "piece by piece, which costs the processor some more. cuda_graph=False says so from the start",
                RuntimeWarning,
                stacklevel=2,
            )

    def _strategy(self, on_device: bool) -> Any:
        config = self._on_device if on_device else self._in_slots
        if config is not None:
            return config
        return self.flavour.module.ExecutionContextAllocationStrategy.USER_MANAGED

    def _configured(self, *, graph: bool) -> Any:
        trt, config = self.flavour.module, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if hasattr(config, "cuda_graph_strategy"):
            strategy = trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graph else strategy.DISABLED
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # Lazily, the first batches of a shape would run on a slow kernel for all sizes.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        if self._cache is not None:
            config.set_runtime_cache(self._cache)
        return config

    def _open_cache(self, config: Any) -> None:
        facts = self._admitted.facts
        # Everything that compiled kernels depend on.
        key = {
            "plan": self._admitted.sha256,
            "version": self.flavour.version,
            "gpu": facts.name if facts else "",
            "driver": facts.driver if facts else 0,
        }
        self._disk = KeyedFile(cache_folder("kernels"), "kernels", key)
        self._cache = config.create_runtime_cache()
        kernels = self._disk.load()
        # False is what TensorRT says of another card or version: it compiles, and the file is replaced.
        if kernels and self._cache.deserialize(kernels):
            self._saved = kernels

    def _read_tensors(self) -> None:
        trt, engine, path = self.flavour.module, self._engine, self._admitted.path
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs and name != HEALTH_OUTPUT]
        if len(inputs) != 1 or len(outputs) != 1:
            raise InferenceError(
                f"{path} takes {', '.join(inputs) or 'nothing'} and makes {', '.join(outputs) or 'nothing'}; "
                f"one in, one out, and maybe {HEALTH_OUTPUT!r}, is a plan that enlarges pictures"
            )
        self.input, self.output = inputs[0], outputs[0]
        self.health = HEALTH_OUTPUT if HEALTH_OUTPUT in names else None
        self.dtype, self.out_dtype = self._dtype(self.input), self._dtype(self.output)
        if self.health and self._dtype(HEALTH_OUTPUT) != np.float32:
            raise InferenceError(
                f"{path} has an output {HEALTH_OUTPUT!r} that is not float32; export it again"
            )
        for name in names:
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise InferenceError(f"{path} wants {name} in the processor's memory; export it again")
            if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
                raise InferenceError(
                    f"{path} has {name} in the format {engine.get_tensor_format(name).name}; only LINEAR is read. "
                    "Build it without formats of its own"
                )

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._engine.get_tensor_dtype(name)
        dtype: np.dtype[Any] | None = None
        with contextlib.suppress(TypeError):
            dtype = np.dtype(self.flavour.module.nptype(kind))
        if dtype is None or dtype.name not in DTYPES:
            # numpy has no bfloat16.
            raise InferenceError(
                f"{self._admitted.path} has {name} in {kind.name}; allowed are {', '.join(DTYPES)}. "
                "Run: esrgan-export with --form uint8"
            )
        return dtype

    def _scale(self, given: tuple[int, ...], made: tuple[int, ...]) -> Fraction:
        known = self._admitted.artefact
        if known is not None and known.outscale:
            scale = Fraction(known.outscale).limit_denominator(10000)
        else:
            scale = Fraction(made[0], given[0]).limit_denominator(16)
        if tuple(side * scale // 1 for side in given) != tuple(made):
            raise InferenceError(
                f"{self._admitted.path} makes {made[0]}x{made[1]} of {given[0]}x{given[1]} and {float(scale):g} is "
                "what both sides must grow by; export it again"
            )
        return scale

    def _spec(self) -> ModelSpec | None:
        manifest = manifest_beside(self._admitted.path) if self._admitted.artefact is not None else None
        return None if manifest is None else manifest.spec


def _raise_if_lost() -> None:
    # It gives what broke the context, if anything did, and neither waits nor breaks a capture.
    try:
        call("cuMemGetInfo")
    except DeviceLostError:
        raise
    except InferenceError:
        return


def _loaded(admitted: Admitted) -> tuple[Any, Any]:
    flavour, known = admitted.flavour, admitted.artefact
    runtime = flavour.module.Runtime(flavour.logger)
    if admitted.host_code and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    flavour.forget_errors()
    engine = runtime.deserialize_cuda_engine(admitted.content)
    if engine is None:
        _raise_if_lost()
        built = f"{known.flavour} {known.flavour_version}" if known else "an unknown version"
        again = (
            f"Run: {rebuild_command(admitted.path, '--force')}"
            if known and known.built_from
            else "Export it again here"
        )
        raise EngineMismatchError(
            f"{admitted.path} was built with {built} and {flavour.name} {flavour.version} does not load it on this "
            f"GPU ({flavour.last_error or 'it gives no reason'}). {again}"
        )
    return runtime, engine


def aligned(size: int) -> int:
    """Return the bytes to take for so many: a multiple of the alignment, above 0."""
    return max(-(-size // ALIGNMENT), 1) * ALIGNMENT
