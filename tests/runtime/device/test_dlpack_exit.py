"""What consumers of our DLPack capsules do when the interpreter ends."""

import subprocess
import sys

PROGRAM = """
import builtins, ctypes, types
import numpy as np, torch
from esrgan_deploy.runtime.device import DeviceArray

memory = (ctypes.c_float * 64)()
lies = types.SimpleNamespace(pointer=ctypes.addressof(memory), stream=7)
capsule = DeviceArray(types.SimpleNamespace(ordinal=0), lies, (8, 8), np.dtype("float32")).__dlpack__(stream=7)
# The memory is the processor's: say so, where dlpack.h has device_type, so that PyTorch takes it without a GPU.
where = ctypes.pythonapi.PyCapsule_GetPointer
where.restype, where.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
ctypes.c_int32.from_address(where(capsule, b"dltensor") + 8).value = 1

class Holder: pass
holder = Holder()
holder.self, holder.memory, holder.tensor = holder, memory, torch.from_dlpack(capsule)
builtins.holder = holder
"""


def test_a_tensor_in_a_cycle_does_not_crash_the_interpreter_at_its_end():
    """Its deleter was freed before it: the process ended with a segmentation fault after all work was done."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
