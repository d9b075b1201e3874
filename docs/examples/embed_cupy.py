"""Enlarge CuPy arrays on a stream of the program's own, without a copy and without a wait.

python embed_cupy.py out/model.fp16.plan
"""

import sys
from pathlib import Path

try:
    import cupy
except ImportError:
    sys.exit("CuPy is not installed. Run: pip install cupy-cuda13x")

from esrgan_deploy import EsrganDeployError, Upscaler


def main(model: str) -> None:
    with Upscaler(model) as up:
        info = up.info
        if info.device < 0:
            sys.exit(
                f"{info.name} runs on {info.provider}; give a plan, or install esrgan-deploy[cuda] on a GPU"
            )
        with cupy.cuda.Device(info.device), cupy.cuda.Stream(non_blocking=True) as stream:
            batch = cupy.random.random(info.batch_shape(1, 256, 256), cupy.float32)
            batch = (batch * 255 if info.form == "uint8" else batch).astype(info.dtype)

            made = cupy.from_dlpack(up.run(batch, stream=stream))
            mean = made.mean()

            # Into memory that is there already, as for every further frame of a film.
            out = cupy.empty_like(made)
            up.run(batch, stream=stream, out=out)
            stream.synchronize()
        print(info.provider)
        print(batch.shape, "->", out.shape, "with a mean of", float(mean))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(sys.argv[0]).name} MODEL")
    try:
        main(sys.argv[1])
    except EsrganDeployError as error:
        sys.exit(str(error))
