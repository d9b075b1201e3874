"""What consumers of our DLPack capsules do when the interpreter ends."""

import subprocess
import sys

PROGRAM = """
import builtins, ctypes, torch
from esrgan_deploy.runtime._dlpack_export import dlpack_capsule
memory = (ctypes.c_float * 64)()
class Holder: pass
holder = Holder()
holder.self, holder.memory = holder, memory
where = ctypes.addressof(memory)
holder.tensor = torch.from_dlpack(dlpack_capsule(where, (8, 8), "float32", device=(1, 0), owner=memory))
builtins.holder = holder
"""


def test_a_tensor_in_a_cycle_does_not_crash_the_interpreter_at_its_end() -> None:
    """Its deleter was freed before it: the process ended with a segmentation fault after all work was done."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
