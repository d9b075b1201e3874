"""PNG where Pillow stops: checksums are checked, and colour of 16 bits a channel is written."""

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import MediaError

__all__ = ["SIGNATURE", "PngFacts", "png_facts", "write_png16"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
KEPT = (b"IHDR", b"tRNS", *COLOUR_CHUNKS)
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PIECE = 1 << 20
STRIP = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class PngFacts:
    """What the chunks of a PNG say.

    Attributes:
        depth: Bits per sample.
        transparent: The samples of the one colour that is transparent, in the file's own depth; empty where
            there is none, and for palettes.
        colour: Chunks that say what the samples mean; see `Picture.png_colour`.
    """

    depth: int
    transparent: tuple[int, ...]
    colour: tuple[tuple[bytes, bytes], ...]


def png_facts(path: Path) -> PngFacts:
    """Walk a PNG's chunks and check each one's sum; Pillow leaves those of the samples unread.

    Source: W3C, Portable Network Graphics (third edition), chapters 5 and 11.

    Raises:
        MediaError: The file is cut off or damaged.
    """
    header, transparency = b"", b""
    colour: list[tuple[bytes, bytes]] = []
    kinds: set[bytes] = set()
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        while b"IEND" not in kinds:
            kind, data = _chunk(file, path)
            if not kinds and kind != b"IHDR":
                raise MediaError(f"{path} is damaged: it does not begin with a header; fetch it again")
            kinds.add(kind)
            if kind == b"IHDR":
                header = data
            elif kind == b"tRNS":
                transparency = data
            elif kind in COLOUR_CHUNKS:
                colour.append((kind, data))
    if b"IDAT" not in kinds or len(header) != 13:
        raise MediaError(f"{path} is damaged: it holds no samples; make or fetch it again")
    if header[8] not in DEPTHS.get(header[9], ()):
        raise MediaError(
            f"{path} says colour type {header[9]} with {header[8]} bits a sample, which PNG does not know; "
            "make or fetch it again"
        )
    values: tuple[int, ...] = ()
    if header[9] in (0, 2):
        values = tuple(np.frombuffer(transparency[: len(transparency) // 2 * 2], ">u2").tolist())
    return PngFacts(depth=header[8], transparent=values, colour=tuple(colour))


def write_png16(
    path: Path, pixels: npt.NDArray[np.uint16], chunks: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Write a PNG of 16 bits a channel.

    Args:
        path: The file.
        pixels: ``(H, W)`` or ``(H, W, C)`` with C up to 4.
        chunks: ``(name, data)`` of further chunks, in order, to stand before the samples.

    Raises:
        OSError: The file cannot be written.
    """
    cube = pixels[:, :, None] if pixels.ndim == 2 else pixels
    height, width, channels = cube.shape
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    with path.open("wb") as file:
        file.write(SIGNATURE)
        _put(file, b"IHDR", size + bytes([16, COLOUR_TYPES[channels], 0, 0, 0]))
        for kind, data in chunks:
            _put(file, kind, data)
        packer = zlib.compressobj(6)
        above = np.zeros((1, width * channels * 2), np.uint8)
        for top in range(0, height, STRIP):
            rows = cube[top : top + STRIP].astype(">u2").reshape(-1, width * channels).view(np.uint8)
            data = packer.compress(_filtered(rows, above, channels * 2).tobytes())
            if data:
                _put(file, b"IDAT", data)
            above = rows[-1:]
        _put(file, b"IDAT", packer.flush())
        _put(file, b"IEND", b"")


def _chunk(file: IO[bytes], path: Path) -> tuple[bytes, bytes]:
    head = file.read(8)
    if len(head) < 8:
        raise MediaError(f"{path} is cut off: it ends before its end mark; make or fetch it again")
    length, kind = int.from_bytes(head[:4], "big"), head[4:]
    keep = kind in KEPT and length <= PIECE
    total, data, left = zlib.crc32(kind), b"", length
    while left:
        piece = file.read(min(left, PIECE))
        if not piece:
            raise MediaError(f"{path} is cut off in the middle; make or fetch it again")
        total, left = zlib.crc32(piece, total), left - len(piece)
        data += piece if keep else b""
    if file.read(4) != total.to_bytes(4, "big"):
        name = kind.decode("ascii", "replace")
        raise MediaError(f"{path} is damaged: the checksum of its chunk {name!r} is wrong; fetch it again")
    return kind, data


def _filtered(rows: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8], step: int) -> npt.NDArray[np.uint8]:
    """Filter rows of bytes, each by the filter of the smallest sum of differences (PNG, chapter 12.7)."""
    up = np.concatenate([above, rows[:-1]])
    left = np.zeros_like(rows)
    left[:, step:] = rows[:, :-step]
    corner = np.zeros_like(rows)
    corner[:, step:] = up[:, :-step]
    mean = ((left.astype(np.uint16) + up) // 2).astype(np.uint8)
    candidates = (np.zeros_like(rows), left, up, mean, _paeth(left, up, corner))
    best = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    lowest = np.full(len(rows), np.iinfo(np.int64).max)
    for number, predicted in enumerate(candidates):
        difference: npt.NDArray[Any] = rows - predicted
        cost = np.abs(difference.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64)
        better = cost < lowest
        best[better, 0] = number
        best[better, 1:] = difference[better]
        lowest[better] = cost[better]
    return best


def _paeth(
    left: npt.NDArray[np.uint8], up: npt.NDArray[np.uint8], corner: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    a, b, c = left.astype(np.int16), up.astype(np.int16), corner.astype(np.int16)
    from_a, from_b, from_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearest: npt.NDArray[np.uint8] = np.where(
        (from_a <= from_b) & (from_a <= from_c), left, np.where(from_b <= from_c, up, corner)
    )
    return nearest


def _put(file: IO[bytes], kind: bytes, data: bytes) -> None:
    file.write(len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big"))
