"""The kernels of TensorRT for RTX, kept between sessions."""

import numpy as np


def test_a_session_keeps_its_kernels(rig, tmp_path):
    """Written after the first batch, as a service may never be closed; loaded by the next session."""
    gpu = rig(rtx=True)
    first = gpu.open()
    assert gpu.engine.cache.offered is None
    gpu.engine.cache.kernels = b"kernels of the first"
    first.run(np.zeros((1, 8, 8, 3), np.uint8))
    (file,) = (tmp_path / "cache" / "kernels").iterdir()
    assert file.read_bytes().endswith(b"kernels of the first")
    gpu.engine.cache.kernels = b"kernels of a later shape"
    first.close()
    assert file.read_bytes().endswith(b"kernels of a later shape")
    again = gpu.open()
    assert gpu.engine.cache.offered == b"kernels of a later shape"
    written = file.stat().st_mtime_ns
    again.run(np.zeros((1, 8, 8, 3), np.uint8))
    again.close()
    assert file.stat().st_mtime_ns == written


def test_kernels_that_tensorrt_refuses_are_replaced(rig, tmp_path):
    """It knows more of the machine than the key."""
    gpu = rig(rtx=True)
    first = gpu.open()
    gpu.engine.cache.kernels = b"of another compiler"
    first.close()
    second = gpu.open()
    assert gpu.engine.cache.offered == b"of another compiler"
    second.close()
    (file,) = (tmp_path / "cache" / "kernels").iterdir()
    assert file.read_bytes().endswith(b"kernels of nothing")


def test_full_tensorrt_keeps_none(rig, tmp_path):
    """Its kernels are in the plan."""
    gpu = rig()
    with_plan = gpu.open()
    with_plan.run(np.zeros((1, 8, 8, 3), np.uint8))
    with_plan.close()
    assert not (tmp_path / "cache").exists()
