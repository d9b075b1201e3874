"""The layer over the CUDA driver: contexts and statuses on a simulated one, names against the real bindings."""

import ast
import ctypes
import dataclasses
import inspect
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import esrgan_deploy.runtime
from esrgan_deploy import DeviceLostError, InferenceError, OutOfMemoryError
from esrgan_deploy.runtime.device import (
    Device,
    DeviceBuffer,
    DeviceFacts,
    Event,
    PinnedBuffer,
    Stream,
    StreamBuffer,
    device_facts,
)
from esrgan_deploy.runtime.device import _driver as _cuda


def calls() -> Iterator[ast.Call]:
    """Each call that is written in the runtime."""
    for path in sorted(Path(inspect.getfile(esrgan_deploy.runtime)).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield node


def driver_calls() -> Iterator[tuple[str, int]]:
    """Each function of the driver that is called by its name, with the number of arguments that it is given."""
    for node in calls():
        for position, argument in enumerate(node.args):
            text = argument.value if isinstance(argument, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(r"cu[A-Z]\w+", text):
                yield text, len(node.args) - position - 1


def test_every_function_is_one_of_the_real_driver():
    """No test runs the real one: a misspelt name would be met by the first user with a GPU."""
    import cuda.bindings.driver as real

    found = dict(driver_calls())
    assert len(found) > 30
    for name, given in driver_calls():
        signature = getattr(real, name).__doc__.splitlines()[0]
        inside = signature[signature.index("(") + 1 : -1]
        assert given == (inside.count(",") + 1 if inside else 0), f"{signature} is given {given}"


def test_every_constant_is_one_of_the_real_driver():
    """As with the functions."""
    import cuda.bindings.driver as real

    found = 0
    for node in calls():
        if isinstance(node.func, ast.Name) and node.func.id == "constant":
            enumeration = getattr(real, node.args[0].value)
            assert ast.literal_eval(node.args[1]) in enumeration.__members__
            found += 1
    assert found


def test_every_status_is_one_of_the_real_driver():
    """A misspelt one would never be met, and a lost device be taken for a small fault."""
    import cuda.bindings.driver as real

    assert {*_cuda.LOST, *_cuda.ADVICE, _cuda.OUT_OF_MEMORY} <= set(real.CUresult.__members__)


# What the layer uses of TensorRT: by class of both flavours, and of TensorRT for RTX alone.
USED = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context", "create_runtime_config", "get_device_memory_size_for_profile_v2",
        "get_tensor_dtype", "get_tensor_format",
        "get_tensor_location", "get_tensor_mode", "get_tensor_name", "get_tensor_profile_shape", "num_io_tensors",
    ),
    "IExecutionContext": (
        "execute_async_v3", "get_tensor_shape", "set_device_memory", "set_input_shape", "set_tensor_address",
        "update_device_memory_size_for_shapes",
    ),
    "IRuntimeConfig": ("set_execution_context_allocation_strategy",),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("INPUT",),
    "TensorLocation": ("DEVICE",),
    "TensorFormat": ("LINEAR",),
}  # fmt: skip
USED_OF_RTX = {
    "IExecutionContext": ("is_stream_capturable",),
    "IRuntimeConfig": (
        "create_runtime_cache", "cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy",
        "set_runtime_cache",
    ),
    "IRuntimeCache": ("deserialize", "serialize"),
    "CudaGraphStrategy": ("DISABLED", "WHOLE_GRAPH_CAPTURE"),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
}  # fmt: skip


def test_every_name_of_tensorrt_is_a_real_one():
    """As with the driver."""
    import tensorrt_rtx

    for table in (USED, USED_OF_RTX):
        for kind, names in table.items():
            for name in names:
                assert hasattr(getattr(tensorrt_rtx, kind), name), f"{kind}.{name}"
    assert callable(tensorrt_rtx.nptype)


def test_without_a_driver_the_error_is_one_line(monkeypatch):
    """The bindings load, and raise what they call a DynamicLibNotFoundError at the first call."""
    if _cuda.cuda_device_count():
        pytest.skip("there is a driver here")
    with pytest.raises(
        InferenceError, match=r"cuInit cannot be called.*driver does not load.*nvidia-smi"
    ) as caught:
        Device(0)
    assert "\n" not in str(caught.value)


def test_a_status_becomes_an_error_by_its_name(rig):
    """What can be answered with a smaller tile or another device must be told from the rest."""
    gpu = rig()
    for status, kind, advice in (
        ("CUDA_ERROR_OUT_OF_MEMORY", OutOfMemoryError, "smaller tile"),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", DeviceLostError, "start the process again"),
        ("CUDA_ERROR_INVALID_HANDLE", InferenceError, "nvidia-smi"),
    ):
        gpu.driver.fail("cuInit", status)
        with pytest.raises(InferenceError, match=f"^cuInit failed with {status}; .*{advice}") as caught:
            _cuda.call("cuInit", 0)
        assert type(caught.value) is kind


def test_a_device_that_is_not_there(rig):
    """`--device 3` on a machine with two; nvidia-smi may list them the other way round."""
    gpu = rig(driver={"devices": 2})
    one, two = (f"cuda:{at} (Simulated GPU, 0000:{bus}:00.0)" for at, bus in ((0, "1B"), (1, "1C")))
    says = f"there is no cuda:3; visible are {one}, {two}, in CUDA's own order"
    with pytest.raises(InferenceError, match=re.escape(says)):
        gpu.open(device=3)
    assert gpu.driver.left() == {}


def test_the_current_context_is_joined(rig):
    """PyCUDA makes a context of its own; arrays of one context cannot be used in another."""
    gpu = rig()
    mine = gpu.driver.make_context()
    device = Device(0)
    assert (device.joined, device.context) == (True, mine)
    device.close()
    assert gpu.driver.current == mine
    assert not {"cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxSetCurrent"} & {
        *gpu.driver.calls
    }


def test_a_context_of_another_device_is_not_joined(rig):
    """PyTorch's on device 0 is current, and the model is to run on device 1."""
    gpu = rig(driver={"devices": 2})
    mine = gpu.driver.make_context(0)
    device = Device(1)
    assert (device.joined, device.context) == (False, gpu.driver.primary(1))
    with device.bound():
        assert gpu.driver.current == gpu.driver.primary(1)
    assert gpu.driver.current == mine


def test_the_primary_context_is_retained_and_released_once(rig):
    """Released twice, it is taken from PyTorch; never, it keeps the card's memory."""
    gpu = rig()
    device = Device(0)
    assert gpu.driver.left() == {"primary": 1}
    device.retain()
    device.close()
    assert gpu.driver.left() == {"primary": 1}
    device.close()
    device.close()
    assert gpu.driver.left() == {}
    with pytest.raises(InferenceError, match="released"), device.bound():
        pass
    with pytest.raises(InferenceError, match="released"):
        device.retain()


def test_a_thread_is_left_as_it_was_found(rig):
    """A caller's own context, or none at all: his next call of CUDA goes where it would have gone."""
    gpu = rig()
    device, seen = Device(0), []

    def work() -> None:
        with device.bound():
            seen.append(gpu.driver.current)
        seen.append(gpu.driver.current)
        other = gpu.driver.make_context()
        with pytest.raises(KeyError), device.bound():
            raise KeyError
        seen.append(gpu.driver.current == other)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [device.context, 0, True]


def test_what_is_known_of_a_device(monkeypatch):
    """The tile is chosen by the L2 cache, the kernels are kept by name and driver."""
    import cuda.bindings.driver as real

    values = {"COMPUTE_CAPABILITY_MAJOR": 9, "COMPUTE_CAPABILITY_MINOR": 0, "L2_CACHE_SIZE": 50 << 20}

    def say(place: Any, value: Any) -> int:
        place._obj.value = value
        return 0

    def attribute(place: Any, number: int, _device: Any) -> int:
        name = real.CUdevice_attribute(number).name
        return say(place, values[name.removeprefix("CU_DEVICE_ATTRIBUTE_")])

    def named(place: Any, size: int, device: Any) -> int:
        place.value = f"Simulated GPU {device.value}".encode()
        return 0

    driver = SimpleNamespace(
        cuInit=lambda flags: 0,
        cuCtxGetDevice=lambda place: 201,
        cuDeviceGet=lambda place, ordinal: say(place, ordinal),
        cuDeviceGetAttribute=attribute,
        cuDeviceGetName=named,
        cuDriverGetVersion=lambda place: say(place, 13000),
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": driver}[name])
    facts = DeviceFacts(
        name="Simulated GPU 1", compute_capability="9.0", driver=13000, ordinal=1, l2_bytes=50 << 20
    )
    assert device_facts(1) == facts
    first = dataclasses.replace(facts, name="Simulated GPU 0", ordinal=0)
    assert device_facts() == first, "no context is current"
    driver.cuCtxGetDevice = lambda place: say(place, 1)
    assert device_facts() == facts
    driver.cuInit = lambda flags: 100
    assert device_facts() is None


def test_what_is_free_on_a_device(rig):
    """A buffer counts until it is closed."""
    rig(driver={"memory": 1 << 20})
    device = Device(0)
    with device.bound():
        held = DeviceBuffer(device, 4096)
    assert device.memory() == ((1 << 20) - 4096, 1 << 20)
    held.close()


def test_closing_twice_frees_once_and_dropping_frees(rig):
    """A double free of an address that was given out again frees somebody else's memory."""
    gpu = rig()
    device = Device(0)
    with device.bound():
        stream = Stream(device)
        made = [
            stream, Event(device), DeviceBuffer(device, 64), PinnedBuffer(device, 64),
            StreamBuffer(device, 64, stream.handle), stream.capture(lambda: None),
        ]  # fmt: skip
    for one in made[1:] + made[:1]:
        one.close()
        one.close()
    assert gpu.driver.left() == {"primary": 1}
    with device.bound():
        made = [Stream(device), Event(device), DeviceBuffer(device, 64), PinnedBuffer(device, 64)]
    made.clear()
    del one
    device.close()
    assert gpu.driver.left() == {}


def test_memory_that_a_stream_frees_can_be_freed_without_it(rig):
    """Its maker may have destroyed the stream by then."""
    gpu = rig()
    device = Device(0)
    with device.bound():
        buffer = StreamBuffer(device, 64, gpu.driver.make_stream())
    gpu.driver.streams.clear()
    buffer.close_idle()
    buffer.close_idle()
    buffer.close()
    assert gpu.driver.left() == {"primary": 1}
