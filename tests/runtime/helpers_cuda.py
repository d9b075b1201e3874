"""A CUDA driver that is simulated on the processor's memory, for the logic of the layer above it.

What it shows: which calls are made, in which order, in which context and on which stream; that copies go to the right
addresses with the right sizes, that nothing reads a result before its stream was waited for (work runs when it is
waited for, not before), that a captured graph replays what was recorded, that whatever was allocated is released, and
what becomes of each status. Waiting for a context, and making one, breaks the captures of its streams and is refused
meanwhile, whichever thread does it; a thread that captures can neither allocate nor free.

What it does not show: that a real driver agrees, that anything overlaps, how long anything takes, and every rule of
CUDA that is not written down here. Handles, enumerations and numbers of arguments are those of the real bindings.
"""

import contextlib
import ctypes
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import cuda.bindings.driver as real
import numpy as np

Op = Callable[[], None]

UNSUPPORTED = real.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED

# Calls that work in no context; everything else needs the one of its objects to be current.
ANYWHERE = {
    "cuInit", "cuCtxGetCurrent", "cuCtxSetCurrent", "cuDeviceGet", "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease", "cuDeviceGetName", "cuDeviceGetCount", "cuDeviceGetPCIBusId",
}  # fmt: skip


class Stream:
    """Work that waits to be waited for."""

    def __init__(self, context: int) -> None:
        self.context = context
        self.pending: list[Op] = []
        self.captured: list[Op] | None = None
        self.broken = False
        self.thread = 0
        self.on_break: list[Op] = []

    def push(self, op: Op) -> None:
        (self.pending if self.captured is None else self.captured).append(op)

    def interrupt(self) -> None:
        """Break the capture; what was recorded in it is told."""
        self.broken = True
        while self.on_break:
            self.on_break.pop()()

    def drain(self, most: int | None = None) -> None:
        while self.pending and (most is None or most > 0):
            most = None if most is None else most - 1
            self.pending.pop(0)()


class FakeDriver:
    """Stands in for ``cuda.bindings.driver``.

    Attributes:
        calls: Names of the functions called, in order.
        memory: Bytes of the device.
        alive: Kinds of objects that exist: ``device``, ``pinned``, ``stream``, ``event``, ``graph``, ``exec``,
            ``primary``.
    """

    def __init__(self, *, devices: int = 1, memory: int = 1 << 30) -> None:
        self.devices, self.memory = devices, memory
        self.calls: list[str] = []
        self.failing: dict[str, tuple[Any, int]] = {}
        self.lost = False
        self.alive: Counter[str] = Counter()
        self.contexts: dict[int, int] = {}
        self.retained: dict[int, int] = {}
        self.blocks: dict[int, tuple[Any, int, str, int]] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Op]] = {}
        self.events: dict[int, tuple[Stream, int] | None] = {}
        self._handles = itertools.count(0x1000, 0x10)
        self._lock = threading.RLock()
        self._current = threading.local()

    def __getattribute__(self, name: str) -> Any:
        if not (name.startswith("cu") and name[2].isupper()):
            return super().__getattribute__(name)
        body = super().__getattribute__(name)
        arity = len(getattr(real, name).__doc__.splitlines()[0].split("(", 1)[1].rstrip(")").split(","))
        arity = 0 if "()" in getattr(real, name).__doc__.splitlines()[0] else arity

        def called(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == arity, f"{name} takes {arity} arguments, not {len(arguments)}"
            with self._lock:
                self.calls.append(name)
                status = self._status(name)
                if name not in ANYWHERE and not self.current and status == real.CUresult.CUDA_SUCCESS:
                    status = real.CUresult.CUDA_ERROR_INVALID_CONTEXT
                if status != real.CUresult.CUDA_SUCCESS:
                    self._failed(name, arguments)
                    # The bindings give the values all the same, as zeros.
                    return (status, *self._nothing(name))
                made = body(*arguments)
                if isinstance(made, real.CUresult):
                    return (made, *self._nothing(name))
                values = () if made is None else made if isinstance(made, tuple) else (made,)
                return (status, *values)

        return called

    def __getattr__(self, name: str) -> Any:
        # The enumerations.
        return getattr(real, name)

    @property
    def current(self) -> int:
        """The context of this thread."""
        return getattr(self._current, "context", 0)

    def make_context(self, device: int = 0) -> int:
        """Make a context and make it current, as PyCUDA does."""
        handle = next(self._handles)
        self.contexts[handle] = device
        self._current.context = handle
        return handle

    def make_stream(self, context: int = 0) -> int:
        """Make a stream in a context, or in the current one, as another library does."""
        handle = next(self._handles)
        self.streams[handle] = Stream(context or self.current)
        return handle

    def primary(self, device: int) -> int:
        """The device's primary context, whether it is active or not."""
        handle = 0xA000 + device
        self.contexts[handle] = device
        return handle

    def fail(self, name: str, status: str = "CUDA_ERROR_INVALID_VALUE", *, after: int = 0) -> None:
        """Let a call fail, once, after that many good ones."""
        self.failing[name] = (getattr(real.CUresult, status), after)

    @contextlib.contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Count the calls of the block by name."""
        begin, found = len(self.calls), Counter[str]()
        yield found
        found.update(self.calls[begin:])

    def array(self, pointer: int, size: int) -> Any:
        """Memory behind an address; an address outside of what is allocated is a bug."""
        # A copy: other threads allocate meanwhile.
        for start, (_, length, _, _) in self.blocks.copy().items():
            if start <= pointer and pointer + size <= start + length:
                return (ctypes.c_ubyte * size).from_address(pointer)
        raise AssertionError(f"{size} bytes at {pointer:#x} are not allocated")

    def allocate(self, size: int, kind: str) -> int:
        """Reserve memory, filled with rubbish."""
        room = (ctypes.c_ubyte * (size + 256))()
        ctypes.memset(room, 0xA5, size + 256)
        pointer = -(-ctypes.addressof(room) // 256) * 256
        self.blocks[pointer] = (room, size, kind, self.current)
        self.alive[kind] += 1
        return pointer

    def used(self) -> int:
        """Bytes of the device that are taken."""
        return sum(size for _, size, kind, _ in self.blocks.values() if kind == "device")

    def free(self, pointer: int, kind: str) -> None:
        _, _, was, _ = self.blocks.pop(int(pointer))
        assert was == kind, f"{was} memory was freed as {kind}"
        self.alive[kind] -= 1

    def breaks_captures(self, device: int | None = None) -> bool:
        """Do what no capture of the current context, or of a device, survives; return whether there was one."""
        contexts = (
            {self.current} if device is None else {key for key, at in self.contexts.items() if at == device}
        )
        hit = [one for one in self.streams.values() if one.captured is not None and one.context in contexts]
        for stream in hit:
            stream.interrupt()
        return bool(hit)

    def thread_captures(self) -> bool:
        """Break the captures of this thread by what it may not do meanwhile; return whether there was one."""
        me = threading.get_ident()
        hit = [one for one in self.streams.values() if one.captured is not None and one.thread == me]
        for stream in hit:
            stream.interrupt()
        return bool(hit)

    def left(self) -> dict[str, int]:
        """What still exists."""
        return {kind: count for kind, count in self.alive.items() if count}

    # Contexts and devices.

    def cuInit(self, flags: int) -> None:
        assert flags == 0

    def cuCtxGetCurrent(self) -> Any:
        return real.CUcontext(self.current)

    def cuCtxSetCurrent(self, context: int) -> Any:
        if context and context not in self.contexts:
            return real.CUresult.CUDA_ERROR_INVALID_CONTEXT
        self._current.context = int(context)
        return None

    def cuCtxGetDevice(self) -> Any:
        return real.CUdevice(self.contexts[self.current])

    def cuCtxSynchronize(self) -> Any:
        if self.breaks_captures():
            return UNSUPPORTED
        for stream in self.streams.values():
            if stream.context == self.current:
                stream.drain()
        return None

    def cuDeviceGet(self, ordinal: int) -> Any:
        if ordinal >= self.devices:
            return real.CUresult.CUDA_ERROR_INVALID_DEVICE
        return real.CUdevice(ordinal)

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        if self.breaks_captures(int(device)):
            return UNSUPPORTED
        self.alive["primary"] += 1
        return real.CUcontext(self.primary(int(device)))

    def cuDevicePrimaryCtxRelease(self, device: int) -> None:
        assert self.alive["primary"] > 0
        self.alive["primary"] -= 1

    def cuDeviceGetName(self, length: int, device: int) -> bytes:
        return b"Simulated GPU".ljust(length, b"\0")

    def cuDeviceGetCount(self) -> int:
        return self.devices

    def cuDeviceGetPCIBusId(self, length: int, device: int) -> bytes:
        return f"0000:{0x1B + int(device):02X}:00.0".encode().ljust(length, b"\0")

    def cuMemGetInfo(self) -> tuple[int, int]:
        return self.memory - self.used(), self.memory

    # Memory.

    def cuMemAlloc(self, size: int) -> Any:
        assert size > 0
        if self.thread_captures():
            return UNSUPPORTED
        if self.used() + size > self.memory:
            return real.CUresult.CUDA_ERROR_OUT_OF_MEMORY
        return real.CUdeviceptr(self.allocate(size, "device"))

    def cuMemFree(self, pointer: int) -> Any:
        if self.thread_captures():
            return UNSUPPORTED
        self._drain_context()
        self.free(pointer, "device")
        return None

    def cuMemHostAlloc(self, size: int, flags: int) -> Any:
        assert size > 0
        if self.thread_captures():
            return UNSUPPORTED
        return self.allocate(size, "pinned")

    def cuMemFreeHost(self, pointer: int) -> Any:
        if self.thread_captures():
            return UNSUPPORTED
        self.free(pointer, "pinned")
        return None

    def cuMemAllocAsync(self, size: int, stream: int) -> Any:
        self._stream(stream)
        if self.used() + size > self.memory:
            return real.CUresult.CUDA_ERROR_OUT_OF_MEMORY
        return real.CUdeviceptr(self.allocate(size, "device"))

    def cuMemFreeAsync(self, pointer: int, stream: int) -> None:
        at = self._stream(stream)
        # Counted at once, and gone when the stream gets there.
        self.alive["device"] -= 1

        def free() -> None:
            self.alive["device"] += 1
            self.free(pointer, "device")

        at.push(free)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self._copy(target, source, size, stream, "device", "pinned")

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> None:
        self._copy(target, source, size, stream, "pinned", "device")

    def cuMemcpy3DAsync(self, how: Any, stream: int) -> None:
        ends = []
        for side in ("dst", "src"):
            kind = getattr(how, f"{side}MemoryType")
            pinned = kind == real.CUmemorytype.CU_MEMORYTYPE_HOST
            assert pinned or kind == real.CUmemorytype.CU_MEMORYTYPE_DEVICE
            pointer = int(getattr(how, f"{side}Host" if pinned else f"{side}Device"))
            pitch, height = getattr(how, f"{side}Pitch"), getattr(how, f"{side}Height")
            assert how.WidthInBytes <= pitch
            assert how.Height <= height
            ends.append((pointer, pitch, height, "pinned" if pinned else "device"))
        size, rows, planes = how.WidthInBytes, how.Height, how.Depth
        assert size * rows * planes > 0
        (target, *to), (source, *of) = ends
        for plane, row in itertools.product(range(planes), range(rows)):
            self._copy(
                target + (plane * to[1] + row) * to[0], source + (plane * of[1] + row) * of[0], size, stream,
                to[2], of[2],
            )  # fmt: skip

    # Streams, events, graphs.

    def cuStreamCreate(self, flags: Any) -> Any:
        assert int(flags) == int(real.CUstream_flags.CU_STREAM_NON_BLOCKING)
        handle = self.make_stream()
        self.alive["stream"] += 1
        return real.CUstream(handle)

    def cuStreamDestroy(self, stream: int) -> None:
        # What was enqueued runs to its end.
        self._stream(stream).drain()
        del self.streams[stream]
        self.alive["stream"] -= 1

    def cuStreamSynchronize(self, stream: int) -> Any:
        found = self._stream(stream)
        if found.captured is not None:
            found.interrupt()
            return UNSUPPORTED
        found.drain()
        return None

    def cuStreamQuery(self, stream: int) -> Any:
        return real.CUresult.CUDA_ERROR_NOT_READY if self._stream(stream).pending else None

    def cuStreamGetCtx(self, stream: int) -> Any:
        return real.CUcontext(self.streams[stream].context)

    def cuStreamIsCapturing(self, stream: int) -> Any:
        captured = self._stream(stream).captured is not None
        return real.CUstreamCaptureStatus(int(captured))

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> None:
        assert isinstance(mode, real.CUstreamCaptureMode)
        found = self._stream(stream)
        assert found.captured is None
        found.captured, found.broken = [], False
        found.thread, found.on_break = threading.get_ident(), []

    def cuStreamEndCapture(self, stream: int) -> Any:
        found = self._stream(stream)
        captured, found.captured = found.captured, None
        assert captured is not None
        if found.broken:
            return real.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        handle = next(self._handles)
        self.graphs[handle] = captured
        self.alive["graph"] += 1
        return real.CUgraph(handle)

    def cuGraphInstantiate(self, graph: int, flags: int) -> Any:
        handle = next(self._handles)
        self.graphs[handle] = [*self.graphs[graph]]
        self.alive["exec"] += 1
        return real.CUgraphExec(handle)

    def cuGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]
        self.alive["graph"] -= 1

    def cuGraphExecDestroy(self, graph: int) -> None:
        del self.graphs[graph]
        self.alive["exec"] -= 1

    def cuGraphLaunch(self, graph: int, stream: int) -> None:
        for op in self.graphs[graph]:
            self._stream(stream).push(op)

    def cuEventCreate(self, flags: Any) -> Any:
        handle = next(self._handles)
        self.events[handle] = None
        self.alive["event"] += 1
        return real.CUevent(handle)

    def cuEventDestroy(self, event: int) -> None:
        del self.events[event]
        self.alive["event"] -= 1

    def cuEventRecord(self, event: int, stream: int) -> None:
        found = self.streams[stream]
        self.events[event] = (found, len(found.pending))

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        point = self.events[event]
        if point is not None:
            self._stream(stream).push(lambda: point[0].drain(point[1]))

    def cuEventSynchronize(self, event: int) -> None:
        point = self.events[event]
        if point is not None:
            point[0].drain(point[1])

    def _drain_context(self) -> None:
        for stream in [*self.streams.values()]:
            if stream.context == self.current and stream.captured is None:
                stream.drain()

    def _stream(self, handle: int) -> Stream:
        assert int(handle) in self.streams, "a stream that was destroyed"
        stream = self.streams[int(handle)]
        assert stream.context == self.current, "a stream of another context than the current one"
        return stream

    def _copy(self, target: int, source: int, size: int, stream: int, to: str, of: str) -> None:
        def copy() -> None:
            assert self._kind(target) == to, f"a copy to {self._kind(target)}, not {to}"
            assert self._kind(source) == of, f"a copy from {self._kind(source)}, not {of}"
            ctypes.memmove(self.array(target, size), self.array(source, size), size)

        self._stream(stream).push(copy)

    def _kind(self, pointer: int) -> str:
        return next(
            (kind for start, (_, size, kind, _) in self.blocks.items() if start <= pointer < start + size),
            "nothing",
        )

    def _status(self, name: str) -> Any:
        status, after = self.failing.get(name, (None, 0))
        if status is not None:
            if after:
                self.failing[name] = (status, after - 1)
            else:
                del self.failing[name]
                return status
        if self.lost and name not in {"cuInit", "cuCtxGetCurrent", "cuCtxSetCurrent", "cuDeviceGet"}:
            return real.CUresult.CUDA_ERROR_LAUNCH_FAILED
        return real.CUresult.CUDA_SUCCESS

    def _failed(self, name: str, arguments: tuple[Any, ...]) -> None:
        # What fails to be released went with its context; a capture that fails to end has ended all the same.
        kinds = {
            "cuMemFree": "device", "cuMemFreeAsync": "device", "cuMemFreeHost": "pinned", "cuStreamDestroy": "stream",
            "cuEventDestroy": "event", "cuGraphDestroy": "graph", "cuGraphExecDestroy": "exec",
            "cuDevicePrimaryCtxRelease": "primary",
        }  # fmt: skip
        if name in kinds:
            self.alive[kinds[name]] -= 1
        if name.startswith("cuMemFree"):
            self.blocks.pop(int(arguments[0]), None)
        if name == "cuStreamEndCapture":
            self.streams[arguments[0]].captured = None

    def _nothing(self, name: str) -> tuple[Any, ...]:
        returns = getattr(real, name).__doc__
        return (None,) if "\nReturns\n" in returns and " : " in returns.split("\nReturns\n")[1][:600] else ()


class FakeArray:
    """An array of another library on the simulated device, filled with zeros; CuPy's in its protocols."""

    def __init__(
        self, driver: FakeDriver, shape: tuple[int, ...], dtype: Any = np.uint8, device: int = 0
    ) -> None:
        self.shape, self.device, self.dtype = shape, device, np.dtype(dtype)
        self.stream: int | None = None
        size = int(np.prod(shape)) * self.dtype.itemsize
        self.pointer = driver.allocate(size, "foreign")
        driver.alive["foreign"] -= 1
        driver.blocks[self.pointer] = (*driver.blocks[self.pointer][:2], "device", 0)
        self.seen = np.frombuffer(driver.array(self.pointer, size), self.dtype).reshape(shape)
        self.seen[...] = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "version": 3,
            "stream": self.stream,
        }  # fmt: skip
