"""Enlarge pictures in ordinary memory: one, a film in order, and a batch where it lies.

python embed_numpy.py out/model.onnx
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from esrgan_deploy import EsrganDeployError, Upscaler


def main(model: str) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (24, 32, 3), np.uint8) for _ in range(4)]
    with Upscaler(model) as up, tempfile.TemporaryDirectory() as folder:
        height, width = (int(side * up.info.scale) for side in (24, 32))
        print("one picture", up.upscale(frames[0]).shape)

        # Results in order; each goes straight into a file that may be larger than the memory.
        film = np.memmap(Path(folder) / "film.raw", np.uint8, "w+", shape=(4, height, width, 3))
        for number, enlarged in enumerate(up.stream(iter(frames))):
            film[number] = enlarged
        up.upscale(frames[0], out=film[0])
        film.flush()
        print("a film", film.shape)

        # A batch as the model takes it, read where it lies and written where it is wanted.
        if up.info.device >= 0:
            print("the model is on a GPU: see embed_cupy.py for batches that are there")
            return
        shape = up.info.batch_shape(1, 24, 32)
        batch = rng.random(shape).astype(up.info.dtype)
        if up.info.form == "uint8":
            batch = rng.integers(0, 256, shape, np.uint8)
        print("a batch", np.from_dlpack(up.run(batch)).shape)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(sys.argv[0]).name} MODEL")
    try:
        main(sys.argv[1])
    except EsrganDeployError as error:
        sys.exit(str(error))
