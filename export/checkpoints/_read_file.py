"""The bytes of a checkpoint, read without ever executing them."""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._optional import require
from esrgan_deploy.export.checkpoints._ncnn import is_ncnn, pair_of, tensors_of
from esrgan_deploy.export.checkpoints._official import near_misses
from esrgan_deploy.export.checkpoints._refusals import few, globals_named, what_else
from esrgan_deploy.export.checkpoints._unpickle import MAX_BYTES, unpickle
from esrgan_deploy.export.checkpoints._wrappers import unwrap

__all__ = ["read_tensors", "read_with_files"]

# Deflated weights keep 90 % of their size and deflate never gets over 1032:1; small files may be all zeros.
_MAX_RATIO = 50
_RATIO_FROM_BYTES = 64 * 2**20
_ENCRYPTED = 1

# The first pickle is the number 0x1950a86a20f9469cfc6c, in protocols above 1 and below 2.
_LEGACY_MAGICS = (b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"L119547037146038801333356L\n.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a generator from a checkpoint, on the CPU.

    The content decides what a file is, not its suffix: the zip form of ``torch.save`` (stored or deflated),
    its older form, and safetensors. Pickles are read as data: dense tensors and plain containers are built,
    and of any other object its attributes are kept, while its class is not even looked for. The wrappers of
    training code are taken off (see `unwrap`).

    Of ncnn's two files, ``.param`` and ``.bin``, either is given and the other is read beside it.

    Args:
        path: A ``.pth``, ``.pt``, ``.ckpt``, ``.safetensors``, ``.param`` or ``.bin`` file.

    Returns:
        Tensors by the name that the file gives them (of ncnn's, which have none, by BasicSR's), in no order that
        means anything, dtypes as stored.

    Raises:
        CheckpointError: The file is not there, is not a checkpoint, is damaged, or holds no weights.
    """
    tensors, _ = read_with_files(path)
    return tensors


def read_with_files(path: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """Do as `read_tensors`, and return the files that were read as well: two of an ncnn net, its graph first.

    Raises:
        CheckpointError: See `read_tensors`.
    """
    with _file_errors(path):
        _refuse_by_size(path.stat(), path)
        with path.open("rb") as file:
            loaded = _decode(file, path)
    if isinstance(loaded, _NcnnFile):
        return _read_pair(path, loaded.data)
    return unwrap(loaded, str(path)), (path,)


@dataclasses.dataclass(frozen=True)
class _NcnnFile:
    data: bytes


def _read_pair(path: Path, data: bytes) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    graph, weights = pair_of(path)
    other = weights if path == graph else graph
    with _file_errors(other):
        _refuse_by_size(other.stat(), other)
        beside = other.read_bytes()
    text, numbers = (data, beside) if path == graph else (beside, data)
    return tensors_of(text, numbers, graph, weights), (graph, weights)


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        meant = near_misses(path.name)
        hint = f"; did you mean the official {' or '.join(meant)}?" if meant else ""
        raise CheckpointError(f"{path} does not exist{hint}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _refuse_by_size(facts: os.stat_result, path: Path) -> None:
    # Before the file is opened: opening a pipe waits for someone to write into it.
    if stat.S_ISDIR(facts.st_mode):
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it")
    if not stat.S_ISREG(facts.st_mode):
        raise CheckpointError(f"{path} is a pipe or a device and no regular file; save it to a file first")
    if facts.st_size > MAX_BYTES:
        raise CheckpointError(
            f"{path} has {facts.st_size} bytes, over {MAX_BYTES >> 30} GiB, which no ESRGAN-family checkpoint "
            "has; give the generator's file"
        )
    if facts.st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); download it again")


def _decode(file: io.BufferedReader, path: Path) -> object:
    if file.read(4) == b"PK\x03\x04":
        return _decode_zip(file, path)
    file.seek(0)
    data = file.read()
    if is_ncnn(path, data):
        return _NcnnFile(data)
    header = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and 2 <= header <= 100_000_000:
        return _decode_safetensors(data, path)
    if any(magic in data[:32] for magic in _LEGACY_MAGICS):
        with _pickle_errors(len(data), path):
            return _decode_legacy(data)
    if data[:1] == b"\x80" and 2 <= int.from_bytes(data[1:2]) <= pickle.HIGHEST_PROTOCOL:
        raise CheckpointError(
            f"{path} is a pickle that torch.save did not write{globals_named(data)}; it was not executed. "
            "Give a file of torch.save or safetensors"
        )
    raise CheckpointError(f"{path} {what_else(data, path)}")


def _decode_zip(file: io.BufferedReader, path: Path) -> object:
    size = file.seek(0, os.SEEK_END)
    with _zip_errors(size, path):
        archive = zipfile.ZipFile(file)
        root = _root_of(archive, size, path)
    buffers: dict[str, bytearray] = {}

    def read(name: str) -> bytearray:
        with _zip_errors(size, path):
            return _member(archive, archive.getinfo(root + name), file)

    def buffer_of(key: str, numbers: int, itemsize: int) -> bytearray:
        if key not in buffers:
            buffers[key] = read(f"data/{key}")
        if len(buffers[key]) < numbers * itemsize:
            raise ValueError(
                f"storage {key!r} has {len(buffers[key])} bytes where {numbers * itemsize} are named"
            )
        return buffers[key]

    with _pickle_errors(size, path):
        if f"{root}byteorder" in archive.namelist() and read("byteorder") == b"big":
            raise CheckpointError(
                f"{path} was saved on a big-endian machine; save its weights there as safetensors"
            )
        return unpickle(io.BytesIO(read("data.pkl")), buffer_of)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: io.BufferedReader) -> bytearray:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        return bytearray(archive.read(member))
    # zipfile would copy the weights twice more. A member's own header has 30 bytes, its name and what else it says.
    file.seek(member.header_offset)
    _, name, others = struct.unpack("<26sHH", file.read(30))
    file.seek(name + others, os.SEEK_CUR)
    content = bytearray(member.file_size)
    # A flipped bit in a weight would pass for a weight.
    if file.readinto(content) != len(content) or zlib.crc32(content) != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")
    return content


def _decode_legacy(data: bytes) -> object:
    """Read the form of before torch 1.6: pickles (the third after the head is what was saved), then the storages.

    Raises:
        ValueError: A storage is missing, or has fewer numbers than it names.
    """
    file = io.BytesIO(data)
    buffers: dict[str, tuple[bytearray, int]] = {}
    left = len(data)

    def buffer_of(key: str, numbers: int, itemsize: int) -> bytearray:
        nonlocal left
        if key not in buffers:
            # The numbers follow, so that nothing is allocated for which the file has no room.
            left -= numbers * itemsize
            if left < 0:
                raise ValueError(f"storage {key!r} has {numbers} numbers, more than follow")
            buffers[key] = bytearray(numbers * itemsize), numbers
        buffer, _ = buffers[key]
        if len(buffer) < numbers * itemsize:
            raise ValueError(f"storage {key!r} has {len(buffer)} bytes where {numbers * itemsize} are named")
        return buffer

    _magic, _version, _machine, loaded, keys = (unpickle(file, buffer_of) for _ in range(5))
    for key in keys if isinstance(keys, list) else ():
        buffer, numbers = buffers.pop(key)
        if int.from_bytes(file.read(8), "little") != numbers or file.readinto(buffer) != len(buffer):
            raise ValueError(f"the numbers of storage {key!r} are not all there")
    if buffers:
        raise ValueError(f"{len(buffers)} storages are not there")
    return loaded


@contextlib.contextmanager
def _pickle_errors(size: int, path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # A damaged pickle fails in as many ways as there are instructions in it: KeyError, struct.error,
        # UnicodeDecodeError, MemoryError, …; each of them means that the file is not what torch.save wrote.
        reason = one_line(error)[:200] or type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or damaged at {size} bytes ({reason}); download it again"
        ) from error


@contextlib.contextmanager
def _zip_errors(size: int, path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OverflowError, struct.error) as error:
        if damaged := re.match(r"Bad CRC-32 for file (.*)", str(error)):
            raise CheckpointError(
                f"{path} is damaged: the checksum of {damaged[1]} does not match its bytes; download it again "
                "(or, if torch.serialization.set_crc32_options(False) was on when it was saved, save it without)"
            ) from error
        raise CheckpointError(
            f"{path} is a truncated or damaged zip of {size} bytes ({_zip_reason(error)}); download it again"
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is a zip that torch.save did not write ({one_line(error)}); unpack it first"
        ) from error


def _zip_reason(error: Exception) -> str:
    if "not a zip file" in str(error):
        return "its directory, the last part of a zip, is missing"
    return one_line(error) or type(error).__name__


def _root_of(archive: zipfile.ZipFile, size: int, path: Path) -> str:
    """Return the folder that a checkpoint's members are in, with its slash; refuse what is no checkpoint.

    Raises:
        CheckpointError: It unpacks to more than weights do, is a TorchScript archive, or torch.save did not write it.
    """
    members = archive.infolist()
    declared = sum(member.file_size for member in members)
    if declared > MAX_BYTES or (declared > _RATIO_FROM_BYTES and declared > _MAX_RATIO * size):
        raise CheckpointError(
            f"{path} has {size} bytes and unpacks to {declared}, which weights never do; it was not unpacked"
        )
    names = [member.filename for member in members]
    leaves = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in leaves:
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program that carries its weights; it was not executed. "
            "Give the checkpoint that it was made from, or have its author save the state_dict with torch.save"
        )
    if "data.pkl" not in leaves:
        raise CheckpointError(
            f"{path} is a zip that torch.save did not write (it holds {few(names)}); "
            "unpack it first and give the checkpoint in it"
        )
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    return min(pickles, key=len).removesuffix("data.pkl")


def _decode_safetensors(data: bytes, path: Path) -> object:
    load = require("safetensors.torch", extra="export").load
    length = int.from_bytes(data[:8], "little")
    try:
        # Sorted, because the library's own order changes from run to run and shows in messages.
        return dict(sorted(load(data).items()))
    except Exception as error:
        reason = one_line(error)
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            header = json.loads(data[8 : 8 + length])
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            reason = f"{len(data)} bytes where its header announces {8 + length + max(ends)}; {reason}"
        raise CheckpointError(
            f"{path} is a truncated or damaged safetensors file ({reason}); download it again"
        ) from error
