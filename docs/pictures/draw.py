"""Draw the picture that the README and the quick start enlarge.

Everything in it is computed here, so that it is ours to ship: python docs/pictures/draw.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from esrgan_deploy._metrics import bicubic_downscale

WIDTH, HEIGHT, SHORE = 960, 640, 400


def main() -> None:
    folder = Path(__file__).parent
    picture = harbour()
    Image.fromarray(bicubic_downscale(picture, 4)).save(folder / "harbour.png", optimize=True)
    print(f"wrote {folder / 'harbour.png'}, a quarter of {WIDTH}x{HEIGHT}")


def harbour() -> np.ndarray:
    """Return the full-size picture, (640, 960, 3) uint8."""
    y, _ = np.mgrid[:HEIGHT, :WIDTH]
    sky = np.stack([150 + y * 0.2, 175 + y * 0.13, 215 + y * 0.04], axis=-1)
    clouds = noise(HEIGHT, WIDTH, 3, seed=1)
    sky += 70 * np.clip(clouds - 0.52, 0, 1)[..., None]
    canvas = sky
    for seed, base, height, colour in (
        (2, 250, 190, (112, 124, 150)),
        (3, 310, 150, (84, 104, 100)),
        (4, 360, 90, (60, 84, 62)),
    ):
        ridge = base - height * (noise(1, WIDTH, 2.2, seed=seed)[0] - 0.35)
        rock = noise(HEIGHT, WIDTH, 7, seed=seed + 20)
        inside = y > ridge[None]
        shade = np.array(colour) * (0.65 + 0.7 * rock[..., None])
        canvas = np.where(inside[..., None], shade, canvas)
    land = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(land)
    houses(draw)
    full = np.asarray(land).astype(float)
    full = water(full)
    picture = Image.fromarray(np.clip(full, 0, 255).astype(np.uint8))
    boats(ImageDraw.Draw(picture))
    grain = np.random.default_rng(9).normal(0, 2.0, (HEIGHT, WIDTH, 1))
    return np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)


def noise(height: int, width: int, roughness: float, *, seed: int) -> np.ndarray:
    """Return fractal noise in 0..1: octaves of smooth interpolation."""
    random = np.random.default_rng(seed)
    total, weight, size = np.zeros((height, width)), 1.0, roughness
    for _ in range(7):
        rows, columns = max(2, round(size * height / width)) + 2, round(size) + 2
        grid = Image.fromarray(random.random((rows, columns)).astype(np.float32))
        total += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        weight, size = weight * 0.52, size * 2.1
    return (total - total.min()) / (np.ptp(total) or 1)


def houses(draw: ImageDraw.ImageDraw) -> None:
    """Draw a row of fronts with windows, roofs and a sign."""
    random = np.random.default_rng(5)
    colours = [
        (176, 62, 48),
        (222, 178, 92),
        (236, 226, 204),
        (92, 128, 152),
        (190, 120, 76),
        (128, 146, 104),
    ]
    x = 20
    for i in range(10):
        wide, tall = int(random.integers(66, 110)), int(random.integers(90, 170))
        top = SHORE - tall
        wall = colours[i % len(colours)]
        draw.rectangle([x, top, x + wide, SHORE], fill=wall)
        for line in range(top, SHORE, 6):
            draw.line([x, line, x + wide, line], fill=tuple(int(c * 0.9) for c in wall))
        roof = [(x - 6, top), (x + wide / 2, top - 46), (x + wide + 6, top)]
        draw.polygon(roof, fill=(104, 52, 40))
        for k in range(5):
            t = k / 5
            draw.line(
                [x - 6 + t * (wide / 2 + 6), top - 46 * t, x + wide + 6 - t * (wide / 2 + 6), top - 46 * t],
                fill=(80, 38, 30),
            )
        for row in range(top + 14, SHORE - 24, 36):
            for column in range(x + 10, x + wide - 18, 26):
                draw.rectangle(
                    [column, row, column + 15, row + 22], fill=(34, 44, 58), outline=(244, 240, 230), width=2
                )
                draw.line([column + 7, row, column + 7, row + 22], fill=(244, 240, 230))
        x += wide + int(random.integers(0, 12))
    draw.rectangle([300, SHORE - 44, 520, SHORE - 12], fill=(24, 46, 78), outline=(240, 236, 220), width=2)
    draw.text((312, SHORE - 43), "HARBOUR 27", font=ImageFont.load_default(28), fill=(248, 244, 230))


def water(picture: np.ndarray) -> np.ndarray:
    """Mirror what stands above the shore, rippled and darkened."""
    y, x = np.mgrid[SHORE:HEIGHT, :WIDTH]
    depth = y - SHORE
    wave = noise(HEIGHT - SHORE, WIDTH, 18, seed=6) - 0.5
    shift = np.sin(depth * 0.55 + 9 * wave) * (1 + depth * 0.05)
    source = np.clip(SHORE - 1 - depth * 1.4 + 10 * wave, 0, SHORE - 1).astype(int)
    mirrored = picture[source, np.clip(x + shift, 0, WIDTH - 1).astype(int)]
    glint = np.clip(noise(HEIGHT - SHORE, WIDTH, 60, seed=8) - 0.62, 0, 1)[..., None] * 260
    picture = picture.copy()
    picture[SHORE:] = mirrored * 0.72 + np.array([8, 22, 34]) + glint
    return picture


def boats(draw: ImageDraw.ImageDraw) -> None:
    """Draw two boats with masts and rigging: the thin lines that a bicubic loses."""
    for x, y, size, hull in ((150, 520, 1.0, (196, 44, 40)), (640, 560, 1.25, (32, 74, 110))):
        draw.polygon(
            [(x, y), (x + 190 * size, y), (x + 160 * size, y + 36 * size), (x + 28 * size, y + 36 * size)],
            fill=hull,
        )
        draw.line([x, y + 4, x + 190 * size, y + 4], fill=(246, 244, 236), width=4)
        mast = (x + 90 * size, y - 190 * size)
        draw.line([mast[0], y, *mast], fill=(86, 62, 40), width=5)
        for end in (x + 6, x + 50 * size, x + 140 * size, x + 184 * size):
            draw.line([*mast, end, y], fill=(40, 40, 44), width=2)
        draw.polygon(
            [(mast[0] + 6, mast[1] + 20), (mast[0] + 6, y - 24), (mast[0] + 74 * size, y - 24)],
            fill=(240, 236, 222),
        )
        for k in range(1, 6):
            level = mast[1] + 20 + k * (y - 44 - mast[1]) / 6
            draw.line(
                [mast[0] + 6, level, mast[0] + 6 + 74 * size * k / 6, level], fill=(206, 198, 178), width=2
            )


if __name__ == "__main__":
    main()
