"""Enlarge pictures from a program that runs on asyncio, without holding up its loop.

python embed_asyncio.py out/model.onnx
"""

import asyncio
import sys
from pathlib import Path

import numpy as np

from esrgan_deploy import EsrganDeployError, Upscaler


async def enlarge(up: Upscaler, picture: np.ndarray) -> np.ndarray:
    # submit waits while enough is on its way, so it is called in a thread; the future then costs none.
    future = await asyncio.to_thread(up.submit, picture)
    return await asyncio.wrap_future(future)


async def main(model: str) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20 + number, 30, 3), np.uint8) for number in range(6)]
    with Upscaler(model) as up:
        one = await asyncio.to_thread(up.upscale, pictures[0])
        print("one", one.shape)

        many = asyncio.gather(*(enlarge(up, picture) for picture in pictures))
        ticks = 0
        while not many.done():
            ticks += 1
            await asyncio.sleep(0.001)
        print("many", [made.shape for made in await many])
        print("the loop went on meanwhile" if ticks > 1 else "the loop was held up")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(sys.argv[0]).name} MODEL")
    try:
        asyncio.run(main(sys.argv[1]))
    except EsrganDeployError as error:
        sys.exit(str(error))
