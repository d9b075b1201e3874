"""A TensorRT engine that is simulated on `helpers_cuda`: it enlarges by the nearest pixel.

It keeps the rules that the bindings write down: shapes before addresses, memory before work, no memory smaller than
the shape needs, a context that stays as it was for as long as a graph that was captured from it is launched. The
enumerations are the real ones, and so is the logger: an error that was logged once stays its last. Scratch that is
too small is refused by the log alone, a size of 0 is no answer, the first work after a broken capture is refused
once, a context cannot be made while one is captured, and none on a lost device. That TensorRT itself computes
anything is not shown.
"""

import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorrt_rtx as trt

SCRATCH = 8


class FakeContext:
    """Stands in for ``IExecutionContext``."""

    def __init__(self, engine: "FakeEngine", strategy: Any) -> None:
        self.engine, self.strategy, self.version = engine, strategy, 0
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.shaken = False
        engine.contexts.add(self)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "input"
        least, _, most = self.engine.profile
        if len(shape) != 4 or not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            self.engine.log("setInputShape: the shape is outside of the profile")
            return False
        if self.shape != shape:
            self.shape, self.version = shape, self.version + 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        return {"input": self.shape, **self.engine.made(self.shape)}[name]

    def update_device_memory_size_for_shapes(self) -> int:
        return 0 if self.engine.sizeless else self.needs()

    def needs(self) -> int:
        assert self.shape is not None
        return int(np.prod(self.shape)) * SCRATCH

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self.engine.driver.array(memory, size)
        if size < self.needs() + self.engine.wants:
            self.engine.log(f"setDeviceMemoryV2: Error Code 3: {size} is less than what is needed")
            return
        if self.memory != (memory, size):
            self.memory, self.version = (memory, size), self.version + 1

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self.engine.names
        assert memory % 256 == 0
        if self.addresses.get(name) != memory:
            self.addresses[name], self.version = memory, self.version + 1
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        engine.executions += 1
        if engine.refuses:
            engine.log(engine.refuses)
            return False
        if engine.silent:
            return False
        assert self.shape is not None
        assert set(self.addresses) == set(engine.names)
        assert self.memory[1] >= self.needs(), "too little scratch"
        assert engine.driver.current, "no context is current"
        shape, addresses, memory, version = self.shape, dict(self.addresses), self.memory, self.version
        at = engine.driver.streams[stream]
        captured = at.captured is not None
        if self.shaken and not captured:
            self.shaken = False
            return False
        if captured and engine.refuses_capture:
            engine.log("operation not permitted when stream is capturing")
            return False
        if captured:
            at.on_break.append(self.shake)
            if engine.during is not None:
                engine.during()
        if captured and engine.uncapturable:
            engine.driver.cuStreamSynchronize(stream)
        if captured and at.broken:
            engine.log("operation failed due to a previous error during capture")
            return False
        # Held weakly: neither a stream nor a graph keeps it in TensorRT either.
        origin = weakref.ref(self)

        def run() -> None:
            context = origin()
            assert context is not None, "work is run whose context is gone"
            assert not captured or context.version == version, "a graph is launched whose context was changed"
            engine.compute(shape, addresses, memory)

        engine.driver.streams[stream].push(run)
        # The last of its kernels may be refused, with the others on their way.
        return not engine.stumbles

    def shake(self) -> None:
        self.shaken = True


class FakeCache:
    """Stands in for ``IRuntimeCache``; knows one environment."""

    def __init__(self) -> None:
        self.kernels = b""
        self.offered: bytes | None = None

    def deserialize(self, blob: bytes) -> bool:
        self.offered = bytes(blob)
        if not blob.startswith(b"kernels"):
            return False
        self.kernels = bytes(blob)
        return True

    def serialize(self) -> bytes:
        return self.kernels or b"kernels of nothing"


class FakeConfig:
    """Stands in for ``IRuntimeConfig`` of TensorRT for RTX."""

    cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.LAZY

    def __init__(self, engine: "FakeEngine") -> None:
        self.engine = engine
        self.cache: FakeCache | None = None
        self.strategy = trt.ExecutionContextAllocationStrategy.STATIC

    def create_runtime_cache(self) -> FakeCache:
        self.engine.cache = FakeCache()
        return self.engine.cache

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class FakeEngine:
    """Stands in for ``ICudaEngine``: ``input`` and ``output``, and ``health`` where it is asked for."""

    def __init__(
        self,
        driver: Any,
        logger: Any,
        *,
        form: str = "uint8",
        health: bool = False,
        scale: int = 2,
        most: tuple[int, int, int] = (4, 64, 64),
    ) -> None:
        self.driver, self.logger, self.form, self.scale = driver, logger, form, scale
        self.contexts: weakref.WeakSet[FakeContext] = weakref.WeakSet()
        self.configs: list[Any] = []
        self.cache: FakeCache | None = None
        self.refuses = ""
        self.silent = self.sizeless = False
        self.stumbles = False
        # Bytes of scratch that it wants beyond what it says.
        self.wants = 0
        # What happens while its work is captured.
        self.during: Callable[[], None] | None = None
        self.uncapturable = self.refuses_capture = False
        self.executions = 0
        self.names = ["input", "output", *(["health"] if health else [])]
        self.profile = tuple(self._batch(*sides) for sides in ((1, 1, 1), (1, 8, 8), most))
        self.formats: dict[str, Any] = {}

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return trt.TensorIOMode.INPUT if name == "input" else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        if name == "health":
            return trt.float32
        return trt.uint8 if self.form == "uint8" else trt.float16

    def get_tensor_location(self, name: str) -> Any:
        return trt.TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> Any:
        return self.formats.get(name, trt.TensorFormat.LINEAR)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("input", 0)
        return list(self.profile)

    def create_execution_context(self, strategy: Any) -> FakeContext | None:
        assert self.driver.current, "no context is current"
        self.configs.append(strategy)
        if self.driver.breaks_captures():
            self.log("operation not permitted when stream is capturing")
            return None
        if self.driver.lost:
            return None
        asked = strategy.strategy if isinstance(strategy, FakeConfig) else strategy
        assert asked == trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.refuses:
            self.log(self.refuses)
        return FakeContext(self, strategy) if not (self.refuses or self.silent) else None

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        assert profile == 0
        return int(np.prod(self.profile[2])) * SCRATCH

    def log(self, text: str) -> None:
        """Log an error, as TensorRT does."""
        self.logger.log(trt.ILogger.Severity.ERROR, text)

    def made(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        sides = list(shape)
        for axis in (1, 2) if self.form == "uint8" else (2, 3):
            sides[axis] *= self.scale
        return {"output": tuple(sides), "health": (shape[0], 3)}

    def compute(self, shape: tuple[int, ...], addresses: dict[str, int], memory: tuple[int, int]) -> None:
        kind = np.uint8 if self.form == "uint8" else np.float16

        def at(name: str, sides: tuple[int, ...], dtype: Any) -> np.ndarray:
            size = int(np.prod(sides)) * np.dtype(dtype).itemsize
            return np.frombuffer(self.driver.array(addresses[name], size), dtype).reshape(sides)

        np.frombuffer(self.driver.array(*memory), np.uint8)[:] = 0x5A
        picture, made = at("input", shape, kind), self.made(shape)
        first = 1 if self.form == "uint8" else 2
        large = picture.repeat(self.scale, first).repeat(self.scale, first + 1)
        at("output", made["output"], kind)[:] = large
        if "health" in addresses:
            at("health", made["health"], np.float32)[:] = picture.reshape(len(picture), -1).mean(1)[:, None]

    def _batch(self, n: int, h: int, w: int) -> tuple[int, ...]:
        return (n, h, w, 3) if self.form == "uint8" else (n, 3, h, w)


FEATURES = 4
REACH = 2


class FakeTrunk(FakeEngine):
    """Folds ``step`` rows and columns into one, and gives each sample of a pixel a channel of its map."""

    def __init__(self, *given: Any, step: int = 1, **how: Any) -> None:
        super().__init__(*given, **how)
        self.step, self.kind = step, trt.float16

    def get_tensor_dtype(self, name: str) -> Any:
        return self.kind if name == "output" else super().get_tensor_dtype(name)

    def made(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        sides = shape[1:3] if self.form == "uint8" else shape[2:]
        return {"output": (1, FEATURES, *(side // self.step for side in sides))}

    def compute(self, shape: tuple[int, ...], addresses: dict[str, int], memory: tuple[int, int]) -> None:
        np.frombuffer(self.driver.array(*memory), np.uint8)[:] = 0x5A
        picture = self.read(addresses["input"], shape, np.uint8 if self.form == "uint8" else np.float16)
        planes = picture.transpose(0, 3, 1, 2) if self.form == "uint8" else picture
        made = self.read(addresses["output"], self.made(shape)["output"], np.float16)
        made[:, :3] = planes[:, :, :: self.step, :: self.step]
        made[:, 3:] = 1

    def read(self, pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(self.driver.array(pointer, size), dtype).reshape(shape)


class FakeTail(FakeTrunk):
    """Takes for each pixel the largest one within its reach, in a map that it pads with zeros, and enlarges it."""

    spoil: Callable[[np.ndarray], tuple[float, float]] | None = None

    def get_tensor_dtype(self, name: str) -> Any:
        return self.kind if name == "input" else FakeEngine.get_tensor_dtype(self, name)

    def made(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        height, width = (side * self.scale for side in shape[2:])
        return {"output": self._batch(1, height, width), "health": (1, 2)}

    def compute(self, shape: tuple[int, ...], addresses: dict[str, int], memory: tuple[int, int]) -> None:
        np.frombuffer(self.driver.array(*memory), np.uint8)[:] = 0x5A
        features = self.read(addresses["input"], shape, np.float16)
        made = self.made(shape)
        output = tail_of(features, self.scale, self.form)
        self.read(addresses["output"], made["output"], output.dtype)[:] = output
        if "health" in addresses:
            health = self.read(addresses["health"], made["health"], np.float32)
            health[:] = self.spoil(output) if self.spoil else (0.5, 0.5)


def tail_of(features: np.ndarray, scale: int, form: str) -> np.ndarray:
    """What the tail makes of a map, or of a piece of one."""
    assert (features[:, 3:] == 1).all(), "a map that was torn"
    padded = np.pad(features[:, :3], ((0, 0), (0, 0), (REACH, REACH), (REACH, REACH)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * REACH + 1,) * 2, (2, 3))
    large = windows.max((4, 5)).repeat(scale, 2).repeat(scale, 3)
    return large.transpose(0, 2, 3, 1).astype(np.uint8) if form == "uint8" else large


def parts_of(
    engine: "FakeEngine", *, step: int, most: tuple[int, int], tile: int, map_dtype: Any
) -> tuple[Any, Any]:
    """Trunk and tail of an engine; the tail takes tiles of up to so many rows and columns."""
    how = {"form": engine.form, "scale": engine.scale * step, "step": step}
    trunk = FakeTrunk(engine.driver, engine.logger, **how)
    trunk.profile = tuple(trunk._batch(1, *sides) for sides in ((8, 8), (16, 16), most))
    tail = FakeTail(engine.driver, engine.logger, health="health" in engine.names, **how)
    tail.profile = tuple((1, FEATURES, side, side) for side in (2, tile, tile))
    trunk.kind = tail.kind = map_dtype
    return trunk, tail


class FakeRtxEngine(FakeEngine):
    """An engine with the runtime configuration of TensorRT for RTX."""

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self)


def flavour_of(engine: FakeEngine, Flavour: Any) -> Any:
    """A `Flavour` whose runtime loads that engine from ``b"plan"``, and nothing else."""

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            assert logger is engine.logger

        def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
            assert engine.driver.current, "no context is current"
            if content != b"plan":
                engine.log("the plan is of another version")
                return None
            return engine

    names = (
        "TensorIOMode", "TensorLocation", "TensorFormat", "ExecutionContextAllocationStrategy", "CudaGraphStrategy",
        "DynamicShapesKernelSpecializationStrategy", "nptype",
    )  # fmt: skip
    module = types.SimpleNamespace(Runtime=Runtime, **{name: getattr(trt, name) for name in names})
    rtx = isinstance(engine, FakeRtxEngine)
    return Flavour(
        module=module, name="tensorrt_rtx" if rtx else "tensorrt", version="1.7.1" if rtx else "11.4.0",
        capabilities=frozenset(), logger=engine.logger,
    )  # fmt: skip
