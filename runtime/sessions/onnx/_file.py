"""What an ``.onnx`` file says of itself, read without opening the graph and without the package onnx.

An ONNX file is a ``ModelProto`` of onnx.proto in protobuf's wire format: a row of fields, each with its number, its
kind and, where it is no number, its length. All but the few that are asked for are skipped.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from esrgan_deploy._spec import METADATA_KEY

__all__ = ["describes_itself", "metadata_of", "missing_data"]

_GRAPH, _METADATA = 7, 14
_INITIALIZER, _EXTERNAL_DATA = 5, 13
_KEY, _VALUE = 1, 2


def describes_itself(path: Path) -> bool:
    """Whether a file holds the metadata that esrgan-export writes."""
    return bool(metadata_of(path))


def metadata_of(path: Path) -> str:
    """Return what esrgan-export wrote into a file's metadata, JSON; empty where it wrote nothing.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        entries = [_entry(file, end) for end in _fields(file, _size(file), _METADATA)]
    return dict(entries).get(METADATA_KEY, "")


def missing_data(path: Path) -> str:
    """Return the first file of weights that a graph names and that is not beside it; empty where none is missing."""
    with path.open("rb") as file:
        for graph in _fields(file, _size(file), _GRAPH):
            for tensor in _fields(file, graph, _INITIALIZER):
                for end in _fields(file, tensor, _EXTERNAL_DATA):
                    key, value = _entry(file, end)
                    if key == "location" and not (path.parent / value).is_file():
                        return value
    return ""


def _fields(file: BinaryIO, end: int, wanted: int) -> Iterator[int]:
    """Go to each field of a number in a message that ends at ``end``.

    Yields:
        Where the field ends, with the file at its beginning.
    """
    while file.tell() < end:
        tag = _varint(file)
        kind = tag & 7
        if kind == 0:
            _varint(file)
            continue
        # Fixed widths; what else there is, is no message.
        length = {1: 8, 5: 4}.get(kind) or (_varint(file) if kind == 2 else end)
        stop = min(file.tell() + length, end)
        if kind == 2 and tag >> 3 == wanted:
            yield stop
        file.seek(stop)


def _entry(file: BinaryIO, end: int) -> tuple[str, str]:
    start, found = file.tell(), []
    for number in (_KEY, _VALUE):
        file.seek(start)
        texts = [file.read(stop - file.tell()) for stop in _fields(file, end, number)]
        found.append(texts[0].decode(errors="replace") if texts else "")
    return found[0], found[1]


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            break
    return value


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
