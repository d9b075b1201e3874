"""One CUDA device: driver, context, streams and buffers, what is known of it, and arrays of other libraries."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.device._array import DeviceArray
    from esrgan_deploy.runtime.device._borrow import ForeignArray, borrow_array, stream_handle
    from esrgan_deploy.runtime.device._context import Device
    from esrgan_deploy.runtime.device._driver import call, cuda_device_count, gpu_is_there, gpu_label, quietly
    from esrgan_deploy.runtime.device._facts import (
        DeviceFacts,
        MemoryFacts,
        device_facts,
        device_memory,
        processor_memory,
    )
    from esrgan_deploy.runtime.device._faults import (
        CaptureBrokenError,
        DeviceLostError,
        OutOfMemoryError,
        fault_of,
    )
    from esrgan_deploy.runtime.device._resources import (
        CudaGraph,
        DeviceBuffer,
        Event,
        PinnedBuffer,
        Stream,
        StreamBuffer,
    )

__all__ = [
    "CaptureBrokenError",
    "CudaGraph",
    "Device",
    "DeviceArray",
    "DeviceBuffer",
    "DeviceFacts",
    "DeviceLostError",
    "Event",
    "ForeignArray",
    "MemoryFacts",
    "OutOfMemoryError",
    "PinnedBuffer",
    "Stream",
    "StreamBuffer",
    "borrow_array",
    "call",
    "cuda_device_count",
    "device_facts",
    "device_memory",
    "fault_of",
    "gpu_is_there",
    "gpu_label",
    "processor_memory",
    "quietly",
    "stream_handle",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_array": ("DeviceArray",),
        "_borrow": ("ForeignArray", "borrow_array", "stream_handle"),
        "_context": ("Device",),
        "_driver": ("call", "cuda_device_count", "gpu_is_there", "gpu_label", "quietly"),
        "_facts": ("DeviceFacts", "MemoryFacts", "device_facts", "device_memory", "processor_memory"),
        "_faults": ("CaptureBrokenError", "DeviceLostError", "OutOfMemoryError", "fault_of"),
        "_resources": ("CudaGraph", "DeviceBuffer", "Event", "PinnedBuffer", "Stream", "StreamBuffer"),
    },
)
