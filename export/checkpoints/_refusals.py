"""Files that are no checkpoints, and what to tell of them."""

import contextlib
import pickletools
from itertools import islice
from pathlib import Path

from esrgan_deploy._console import one_line
from esrgan_deploy._files import PLANS

__all__ = ["few", "globals_named", "what_else"]

_ONNX_FIELDS = {b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"}
_FOREIGN = {
    b"\x1f\x8b": "a gzip file: unpack it first (gunzip)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\xfd7zXZ": "an xz file: unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes them; weights of PyTorch are needed",
    b"\x89PNG": "a PNG picture, not weights",
    b"\xff\xd8\xff": "a JPEG picture, not weights",
    b"\x93NUMPY": "a NumPy array, not a dictionary of named weights",
    b"%PDF": "a PDF, not weights",
}


def what_else(data: bytes, path: Path) -> str:
    """Return the end of a sentence that begins with the file's name: what it is, and what to do.

    Args:
        data: The file's bytes, at least one of them.
        path: Its name, whose suffix decides where bytes do not.
    """
    head = data[:4096]
    text = _as_text(head)
    if text is not None:
        begins = repr(one_line(text)[:50])
        if text.startswith("version https://git-lfs"):
            return "is a Git LFS pointer, not the file it points to; run: git lfs pull"
        if text.lstrip("\ufeff").lstrip().startswith("<"):
            return (
                f"is a web page, not weights (it begins {begins}): the link asks for a log-in or a "
                "confirmation; download the file itself"
            )
        return f"is a text, not weights (it begins {begins}); give a .pth, .safetensors or .param file"
    # An ONNX file begins with its version of the format (field 1) and goes on with one of these fields.
    if path.suffix == ".onnx" or (head[0] == 8 and head[1:2] < b"\x20" and head[2:3] in _ONNX_FIELDS):
        return "is an ONNX graph, not a checkpoint; hand it over under a name that ends in .onnx"
    if path.suffix in PLANS:
        return "is a TensorRT plan, which holds no weights that could be exported; give the checkpoint"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first; if torch wrote it, before 2017, save its weights again"
    for magic, noun in _FOREIGN.items():
        if head.startswith(magic):
            return f"is {noun}"
    return (
        f"is of no format that is known (it begins {head[:8].hex(' ')}); "
        "torch.save files (.pth, .pt, .ckpt), .safetensors and ncnn's .param with .bin are read"
    )


def _as_text(head: bytes) -> str | None:
    # The cut at 4096 bytes may split a character: the last three bytes are allowed to be half of one.
    for end in range(len(head), max(len(head) - 4, 0), -1):
        with contextlib.suppress(UnicodeDecodeError):
            text = head[:end].decode("utf-8")
            return text if all(c.isprintable() or c in "\r\n\t\f\ufeff" for c in text) else None
    return None


def globals_named(data: bytes) -> str:
    """Return what a pickle would import, as a part of a sentence; it is disassembled and not executed."""
    # STACK_GLOBAL takes its two names from the stack: nearly always the last two strings pushed.
    found, strings = [], ["?", "?"]
    with contextlib.suppress(Exception):
        for opcode, argument, _ in islice(pickletools.genops(data), 100_000):
            if opcode.name == "GLOBAL":
                found.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                found.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return f" and that names {few(found)}" if found else ""


def few(names: list[str]) -> str:
    """Return the first three of some names and the number of the others."""
    shown = ", ".join(repr(one_line(name)[:80]) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "nothing"
