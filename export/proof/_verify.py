"""Holds a graph against PyTorch, on pictures and on shapes."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy._errors import MediaError, ParityError
from esrgan_deploy._files import picture_files
from esrgan_deploy._optional import require
from esrgan_deploy._parity import Comparer, Comparison, Pairs, planar
from esrgan_deploy.export.graphs import measured_as, rounding_model, runs_as_it_is, to_bytes
from esrgan_deploy.export.proof._ort import run, session_of
from esrgan_deploy.export.proof._reference import Reference

__all__ = ["affordable", "graph_input", "pictures_in", "verify_graph", "verify_shapes", "verifying_session"]

SHAPE_BUDGET = 4e11
"""Floating-point operations that proving one shape may cost: a few seconds on two cores, for each side."""

_CROP = 96
_MOST_PICTURES = 24


def verify_graph(path: Path, precision: str, sets: Mapping[str, Pairs]) -> list[Comparison]:
    """Compare a written graph with the reference on every set of pictures.

    Args:
        path: The .onnx file, either form.
        precision: What its tensors are; ``"fp16"`` and ``"bf16"`` are measured with every tensor rounded,
            because ONNX Runtime's CPU provider would compute them in fp32.
        sets: By name of the set, pictures with their reference output.

    Raises:
        ExportError: ONNX Runtime refuses the graph.
        ParityError: The output has another shape than PyTorch's.
    """
    session = verifying_session(path, precision)
    arithmetic = measured_as(precision)
    results = []
    for on, pairs in sets.items():
        comparer = Comparer(on, arithmetic)
        for name, (picture, expected) in pairs.items():
            out = run(session, graph_input(session, picture))[0]
            try:
                comparer.add(name, expected, out)
            except ValueError as error:
                raise ParityError(f"{path.name}: {error}") from error
        results.append(comparer.result())
    return results


def verifying_session(path: Path, precision: str) -> Any:
    """Return a session of ONNX Runtime that computes what a graph's dtypes say, on a processor that may have none.

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    if runs_as_it_is(precision):
        return session_of(path)
    return session_of(to_bytes(rounding_model(ir.load(path), precision)))


def verify_shapes(
    path: Path,
    reference: Reference,
    shapes: Iterable[tuple[int, int, int]],
    *,
    channels: int,
    multiple: int,
    flops_per_pixel: int | None,
) -> tuple[Comparison, list[str]]:
    """Prove dynamic shapes: 1×1, odd sizes, a batch of three, and those given where they can be afforded.

    Args:
        path: An fp32 graph in the float form.
        reference: PyTorch.
        shapes: Further ``(N, H, W)``, the corners of the plan's range.
        channels: Channels of the input.
        multiple: What height and width have to be multiples of.
        flops_per_pixel: Cost of the net, to leave out what would take minutes; None tries up to 256² pixels.

    Returns:
        The comparison, and a sentence for each shape that was left out.

    Raises:
        ParityError: An output has another size than PyTorch's.
    """
    m = multiple
    wanted = [(1, m, m), (1, 17 * m, 9 * m), (3, 5 * m, 11 * m)]
    left_out = []
    for n, h, w in dict.fromkeys(shapes):
        if affordable((n, h, w), flops_per_pixel):
            wanted.append((n, h, w))
        else:
            left_out.append(
                f"{n}x{h}x{w} was not run here: {_cost((n, h, w), flops_per_pixel) / 1e12:.1f} TFLOP"
            )
    session = session_of(path)
    on = "shapes " + " ".join("x".join(map(str, shape)) for shape in dict.fromkeys(wanted))
    comparer = Comparer(on, "fp32 (ONNX Runtime CPU)", structure=False)
    random = np.random.default_rng(5)
    for n, h, w in dict.fromkeys(wanted):
        picture = random.integers(0, 256, (n, h, w, channels), np.uint8)
        batch = planar(picture)
        try:
            comparer.add(f"{n}x{h}x{w}", reference(batch), run(session, batch)[0])
        except ValueError as error:
            raise ParityError(f"{path.name}: {error}") from error
    return comparer.result(), left_out


def affordable(shape: tuple[int, int, int], flops_per_pixel: int | None) -> bool:
    """Whether a batch of ``(N, H, W)`` costs no more than `SHAPE_BUDGET`."""
    return _cost(shape, flops_per_pixel) <= SHAPE_BUDGET


def _cost(shape: tuple[int, int, int], flops_per_pixel: int | None) -> float:
    return math.prod(shape) * (flops_per_pixel or SHAPE_BUDGET / 256**2)


def graph_input(session: object, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.generic]:
    """Return a picture ``(N, H, W, C)`` uint8 as the graph's form and dtype want it."""
    kind = session.get_inputs()[0].type  # type: ignore[attr-defined]
    if kind == "tensor(uint8)":
        return picture
    return planar(picture).astype(np.float16 if kind == "tensor(float16)" else np.float32)


def pictures_in(folder: Path, channels: int, multiple: int) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the middle of each picture in a folder, up to 24 of them, ``(1, H, W, C)`` uint8, sides up to 96.

    Raises:
        MediaError: The folder is not there, or holds no picture that can be read.
        MissingDependencyError: Pillow is not installed.
    """
    if not folder.is_dir():
        raise MediaError(
            f"--images {folder} is not a folder. Name one that holds .png, .jpg or .webp pictures"
        )
    image = require("PIL.Image", extra="media")
    found: dict[str, npt.NDArray[np.uint8]] = {}
    for path in picture_files(folder):
        try:
            with image.open(path) as opened:
                picture = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
        except (OSError, ValueError, SyntaxError):
            continue
        picture = picture.reshape(*picture.shape[:2], -1)
        height, width = (min(_CROP, side) // multiple * multiple for side in picture.shape[:2])
        if height and width and picture.shape[2] == channels:
            y, x = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
            found[path.name] = picture[None, y : y + height, x : x + width].copy()
        if len(found) == _MOST_PICTURES:
            break
    if not found:
        raise MediaError(f"--images {folder} holds no picture that can be read with {channels} channels")
    return found
