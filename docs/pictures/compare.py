"""Make the README's picture with the shipped model: python docs/pictures/compare.py"""

from pathlib import Path

import numpy as np
from PIL import Image

from esrgan_deploy import Upscaler

FOLDER = Path(__file__).parent


def main() -> None:
    small = Image.open(FOLDER / "harbour.png")
    with Upscaler() as up:
        enlarged = up.upscale(np.asarray(small))
    bicubic = np.asarray(small.resize((small.width * 4, small.height * 4), Image.Resampling.BICUBIC))
    # Left of the middle bicubic, right of it ours, over the part with the thin lines and the lettering.
    part = np.s_[180:600, 130:560]
    gap = np.full((420, 8, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([bicubic[part], gap, enlarged[part]], axis=1)).save(
        FOLDER / "comparison.png", optimize=True
    )
    print(f"wrote {FOLDER / 'comparison.png'}")


if __name__ == "__main__":
    main()
