"""Enlarge PyCUDA arrays on a stream of the program's own, without a copy and without a wait.

    python embed_pycuda.py out/model.fp16.plan

The primary context (``autoprimaryctx``) is the one that PyTorch and ONNX Runtime compute in as well. A TensorRT plan
also works in a context that was made by ``pycuda.autoinit``, if the model is opened while that is current.
"""

import sys
from pathlib import Path

try:
    import pycuda.driver as cuda
except ImportError as error:
    sys.exit(f"PyCUDA does not import ({error}). Run: pip install 'esrgan-deploy[pycuda]'")
try:
    import pycuda.autoprimaryctx  # noqa: F401 - makes the context current
except (cuda.Error, RuntimeError) as error:
    sys.exit(f"PyCUDA finds no GPU ({error}). Run: nvidia-smi")

import numpy as np
from pycuda import gpuarray

from esrgan_deploy import EsrganDeployError, Upscaler


def main(model: str) -> None:
    with Upscaler(model) as up:
        info = up.info
        if info.device < 0:
            sys.exit(
                f"{info.name} runs on {info.provider}; give a plan, or install esrgan-deploy[cuda] on a GPU"
            )
        height, width = (int(side * info.scale) for side in (256, 256))
        shape, dtype = info.batch_shape(1, height, width), info.dtype

        stream = cuda.Stream()
        # Pinned, so that the copies do not wait either.
        frame = cuda.pagelocked_empty(info.batch_shape(1, 256, 256), dtype)
        frame[:] = np.random.default_rng(0).random(frame.shape) * (255 if info.form == "uint8" else 1)
        enlarged = cuda.pagelocked_empty(shape, dtype)

        batch, out = gpuarray.empty(frame.shape, dtype), gpuarray.empty(shape, dtype)
        batch.set_async(frame, stream=stream)
        up.run(batch, stream=stream, out=out)
        out.get_async(stream=stream, ary=enlarged)
        stream.synchronize()
        print(info.provider)
        print(frame.shape, "->", enlarged.shape, "with a mean of", float(enlarged.mean()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(sys.argv[0]).name} MODEL")
    try:
        main(sys.argv[1])
    except EsrganDeployError as error:
        sys.exit(str(error))
