"""Sixteen bits a channel, in every layout that files have them in."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from esrgan_deploy import MediaError
from esrgan_deploy.runtime import Picture, read_picture, write_picture
from esrgan_deploy.runtime.pictures._png import write_png16


def raw_png16(path: Path, samples: np.ndarray, *, filters: str = "01234", extra: bytes = b"") -> None:
    """Write a 16-bit PNG, filtering row by row as the specification words it."""
    height, width, channels = samples.shape
    step = 2 * channels
    rows = samples.astype(">u2").tobytes()
    stride = width * step
    lines, above = [], bytes(stride)
    for y in range(height):
        line, kind = rows[y * stride : (y + 1) * stride], int(filters[y % len(filters)])
        out = bytearray([kind])
        for i, value in enumerate(line):
            a = line[i - step] if i >= step else 0
            b, c = above[i], above[i - step] if i >= step else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            out.append((value - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        lines.append(bytes(out))
        above = line
    header = (
        width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, (0, 0, 4, 2, 6)[channels], 0, 0, 0])
    )
    data = (
        chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def pillow(path: Path) -> np.ndarray:
    """What Pillow alone reads."""
    with Image.open(path) as image:
        return np.asarray(image)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


# Pillow reads no TIFF of gray and alpha in 16 bits; that it is written right is tested below.
@pytest.mark.parametrize(
    ("suffix", "channels"), [*((".png", c) for c in (0, 2, 3, 4)), *((".tif", c) for c in (0, 3, 4))]
)
def test_sixteen_bits_come_back_exactly(tmp_path, noise, suffix, channels):
    """Pillow alone reads 16-bit colour as 8 bits and says nothing."""
    pixels = noise(150, 37, channels, dtype=np.uint16) if channels else noise(150, 37, dtype=np.uint16)
    write_picture(tmp_path / f"out{suffix}", Picture(pixels=pixels))
    back = read_picture(tmp_path / f"out{suffix}").pixels
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 2, 3, 4])
@pytest.mark.parametrize("height", [1, 3000])
def test_own_tiff_is_read_by_others(tmp_path, noise, dtype, channels, height):
    """Of one strip and of several, read by a library that shares no code with the writer."""
    pixels = noise(height, 211, channels, dtype=dtype) if channels else noise(height, 211, dtype=dtype)
    write_picture(tmp_path / "out.tif", Picture(pixels=pixels, dpi=(72.0, 72.0)))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), pixels)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_png_from_elsewhere(tmp_path, noise, channels):
    """Each of the five filters, on samples whose high and low bytes differ."""
    pixels = noise(11, 7, channels, dtype=np.uint16)
    raw_png16(tmp_path / "in.png", pixels)
    np.testing.assert_array_equal(read_picture(tmp_path / "in.png").pixels, pixels)


def test_own_sixteen_bit_png_is_read_by_others(tmp_path):
    """Every filter is used by some row here, and Pillow agrees on the high bytes."""
    y, x = np.mgrid[:200, :90]
    smooth = np.dstack([x * 300, y * 200, (x + y) * 100, np.full_like(x, 60000)]).astype(np.uint16)
    smooth[150:] = np.random.default_rng(0).integers(0, 65536, smooth[150:].shape)
    write_png16(tmp_path / "own.png", smooth)
    np.testing.assert_array_equal(pillow(tmp_path / "own.png"), smooth >> 8)
    np.testing.assert_array_equal(read_picture(tmp_path / "own.png").pixels, smooth)
    packed = (tmp_path / "own.png").read_bytes().split(b"IDAT")[1:]
    # Each part ends with its checksum and the next one's length; the last one with the whole end chunk.
    ends = [-8] * (len(packed) - 1) + [-16]
    lines = zlib.decompress(b"".join(part[:end] for part, end in zip(packed, ends, strict=True)))
    assert len(set(lines[:: 90 * 4 * 2 + 1])) >= 3, "one filter for every row is no choice"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [0, 3, 4])
def test_sixteen_bit_tiff(tmp_path, noise, order, compression, channels):
    """Photographers' TIFFs come in both byte orders, with and without compression."""
    pixels = noise(9, 14, channels, dtype=np.uint16) if channels else noise(9, 14, dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "in.tif",
        pixels,
        byteorder=order,
        compression=compression,
        photometric="rgb" if channels else "minisblack",
        extrasamples=["unassalpha"] if channels == 4 else None,
    )
    np.testing.assert_array_equal(read_picture(tmp_path / "in.tif").pixels, pixels)


def test_inverted_gray_tiff(tmp_path, noise):
    """Pillow takes 'white is 0' of 16 bits for 'black is 0'."""
    pixels = noise(9, 14, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", 65535 - pixels, photometric="miniswhite", byteorder="<")
    np.testing.assert_array_equal(read_picture(tmp_path / "in.tif").pixels, pixels)


@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "zlib"},
        {"extrasamples": ["assocalpha"]},
    ],
)
def test_sixteen_bit_tiff_of_an_odd_layout_is_refused(tmp_path, noise, options):
    """The trick that reads the low bytes fails without a word on planes: it must not be tried there."""
    channels = 4 if "extrasamples" in options else 3
    pixels = noise(channels, 9, 14, dtype=np.uint16)
    if options.get("planarconfig") is None:
        pixels = pixels.transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", **options)
    with pytest.raises(MediaError, match="16 bits a channel"):
        read_picture(tmp_path / "in.tif")


@pytest.mark.parametrize(
    ("array", "says"), [(np.zeros((4, 4), np.float32), "kind 'F'"), (np.zeros((4, 4), np.int32), "kind 'I'")]
)
def test_samples_of_other_kinds_are_refused(tmp_path, array, says):
    """Cut down to 8 bits they would come out black or white."""
    tifffile.imwrite(tmp_path / "in.tif", array)
    with pytest.raises(MediaError, match=says):
        read_picture(tmp_path / "in.tif")


def test_twelve_bits_are_refused(tmp_path, noise):
    """Pillow hands them out as 16 bits, all of them nearly black."""
    tifffile.imwrite(tmp_path / "in.tif", noise(4, 12))
    with tifffile.TiffFile(tmp_path / "in.tif", mode="r+b") as file:
        tags = file.pages[0].tags
        tags["ImageWidth"].overwrite(8)
        tags["BitsPerSample"].overwrite(12)
    with pytest.raises(MediaError, match="12 bits a sample"):
        read_picture(tmp_path / "in.tif")


def test_sixteen_bit_colour_key_is_compared_in_sixteen_bits(tmp_path):
    """Compared in 8 bits, colours next to the transparent one vanish with it."""
    pixels = np.full((2, 2, 3), 0x1234, np.uint16)
    pixels[0, 0, 2] = 0x1235
    raw_png16(tmp_path / "in.png", pixels, extra=chunk(b"tRNS", bytes.fromhex("123412341234")))
    back = read_picture(tmp_path / "in.png").pixels
    np.testing.assert_array_equal(back[..., :3], pixels)
    np.testing.assert_array_equal(back[..., 3], [[65535, 0], [0, 0]])


def test_sixteen_bits_are_rounded_not_cut(tmp_path):
    """Cutting darkens by half a level: 65535 / 257 is 255, and 254.6 of them is 255 as well."""
    pixels = np.array([[0, 128, 129, 257, 65406, 65407, 65535]], np.uint16)
    write_picture(tmp_path / "out.bmp", Picture(pixels=pixels))
    np.testing.assert_array_equal(read_picture(tmp_path / "out.bmp").pixels, [[0, 0, 1, 1, 254, 255, 255]])
