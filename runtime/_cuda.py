"""Whether there is an NVIDIA GPU, asked of the driver itself."""

import ctypes

__all__ = ["cuda_device_count"]


def cuda_device_count() -> int:
    """Return the number of CUDA devices; 0 where there is no driver or it does not start.

    The driver's library is asked directly, so that no CUDA package has to be installed to learn that there
    is nothing to run on. Creates no context.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
