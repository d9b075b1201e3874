"""One CUDA device: driver, context, streams and buffers, what is known of it, and arrays of other libraries."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.runtime.device._array import DeviceArray as DeviceArray
    from esrgan_deploy.runtime.device._borrow import ForeignArray as ForeignArray
    from esrgan_deploy.runtime.device._borrow import borrow_array as borrow_array
    from esrgan_deploy.runtime.device._borrow import stream_handle as stream_handle
    from esrgan_deploy.runtime.device._context import Device as Device
    from esrgan_deploy.runtime.device._driver import call as call
    from esrgan_deploy.runtime.device._driver import cuda_device_count as cuda_device_count
    from esrgan_deploy.runtime.device._driver import gpu_is_there as gpu_is_there
    from esrgan_deploy.runtime.device._driver import gpu_label as gpu_label
    from esrgan_deploy.runtime.device._driver import quietly as quietly
    from esrgan_deploy.runtime.device._facts import DeviceFacts as DeviceFacts
    from esrgan_deploy.runtime.device._facts import MemoryFacts as MemoryFacts
    from esrgan_deploy.runtime.device._facts import device_facts as device_facts
    from esrgan_deploy.runtime.device._facts import device_memory as device_memory
    from esrgan_deploy.runtime.device._facts import processor_memory as processor_memory
    from esrgan_deploy.runtime.device._faults import CaptureBrokenError as CaptureBrokenError
    from esrgan_deploy.runtime.device._faults import fault_of as fault_of
    from esrgan_deploy.runtime.device._resources import CudaGraph as CudaGraph
    from esrgan_deploy.runtime.device._resources import DeviceBuffer as DeviceBuffer
    from esrgan_deploy.runtime.device._resources import Event as Event
    from esrgan_deploy.runtime.device._resources import PinnedBuffer as PinnedBuffer
    from esrgan_deploy.runtime.device._resources import Planes as Planes
    from esrgan_deploy.runtime.device._resources import Stream as Stream
    from esrgan_deploy.runtime.device._resources import StreamBuffer as StreamBuffer

__getattr__, __dir__, __all__ = handed_on(__name__)
