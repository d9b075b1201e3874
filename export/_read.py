"""The bytes of a checkpoint, read without ever executing them."""

import contextlib
import io
import json
import os
import pickle
import re
import stat
import warnings
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._optional import require
from esrgan_deploy.export._names import near_misses
from esrgan_deploy.export._read_foreign import few, globals_named, what_else
from esrgan_deploy.export._unwrap import MAX_BYTES, unwrap

__all__ = ["read_tensors"]

# Deflated weights keep 90 % of their size and deflate never gets over 1032:1; small files may be all zeros.
_MAX_RATIO = 50
_RATIO_FROM_BYTES = 64 * 2**20

_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a generator from a checkpoint, on the CPU.

    The content decides what a file is, not its suffix: the zip form of ``torch.save`` (stored or deflated),
    its older form, and safetensors. Pickles go through torch's weights-only reader, which builds tensors and
    plain containers and calls nothing else. The wrappers of training code are taken off (see `unwrap`).

    Args:
        path: A ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file.

    Returns:
        Tensors by the name that the file gives them, in no order that means anything, dtypes as stored.

    Raises:
        CheckpointError: The file is not there, is not a checkpoint, is damaged, or needs code to be read.
    """
    try:
        _refuse_by_size(path.stat(), path)
        data = path.read_bytes()
    except FileNotFoundError:
        meant = near_misses(path.name)
        hint = f"; did you mean the official {' or '.join(meant)}?" if meant else ""
        raise CheckpointError(f"{path} does not exist{hint}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return unwrap(_decode(data, path), str(path))


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


def _decode(data: bytes, path: Path) -> object:
    header = int.from_bytes(data[:8], "little")
    if data.startswith(b"PK\x03\x04"):
        return _decode_zip(data, path)
    if data[8:9] == b"{" and 2 <= header <= 100_000_000:
        return _decode_safetensors(data, path)
    pickled = data[:1] == b"\x80" and 2 <= int.from_bytes(data[1:2]) <= pickle.HIGHEST_PROTOCOL
    if pickled and data[2:].startswith(_LEGACY_MAGIC):
        return _torch_load(data, path)
    if pickled:
        raise CheckpointError(
            f"{path} is a pickle that torch.save did not write{globals_named(data)}; it was not executed. "
            "Give a file of torch.save or safetensors"
        )
    raise CheckpointError(f"{path} {what_else(data, path)}")


def _decode_zip(data: bytes, path: Path) -> object:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_members(archive, len(data), path)
            # torch does not compare the checksums, and a flipped bit in a weight would pass for a weight.
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is a truncated or damaged zip of {len(data)} bytes ({_zip_reason(error)}); "
            "download it again"
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is a zip that torch.save did not write ({one_line(error)}); unpack it first"
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of {damaged!r} does not match its bytes; download it again "
            "(or, if torch.serialization.set_crc32_options(False) was on when it was saved, save it without)"
        )
    return _torch_load(data, path)


def _zip_reason(error: Exception) -> str:
    if "not a zip file" in str(error):
        return "its directory, the last part of a zip, is missing"
    return one_line(error) or type(error).__name__


def _check_members(archive: zipfile.ZipFile, size: int, path: Path) -> None:
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
            f"{path} is a TorchScript archive, which carries code. Save the weights alone: "
            "python -c \"import torch; torch.save(torch.jit.load('FILE').state_dict(), 'w.pth')\""
        )
    if "data.pkl" not in leaves:
        raise CheckpointError(
            f"{path} is a zip that torch.save did not write (it holds {few(names)}); "
            "unpack it first and give the checkpoint in it"
        )


def _torch_load(data: bytes, path: Path) -> object:
    try:
        # Nothing that a user could act on, or what is said below. Not `catch_warnings`: it changes the process, and
        # checkpoints are opened from threads.
        for message in ("TypedStorage is deprecated", "Detected pickle protocol"):
            warnings.filterwarnings("ignore", message=message)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(str(error), path) from error
    except Exception as error:
        # A damaged pickle fails in as many ways as there are operations in it: KeyError, struct.error,
        # UnicodeDecodeError, MemoryError, …; each of them means that the file is not what torch.save wrote.
        reason = one_line(error)[:200] or type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or damaged at {len(data)} bytes ({reason}); download it again"
        ) from error


def _refused_pickle(message: str, path: Path) -> CheckpointError:
    found = re.search(r"GLOBAL (\S+)", message)
    if found is None:
        reason = re.search(r"(?:WeightsUnpickler error:|(?=Trying to ))\s*([^\n]+)", message)
        if "Unsupported operand" in message:
            # torch's reader without execution knows the instructions of pickle protocol 2 alone.
            return CheckpointError(
                f"{path} was saved with a pickle protocol above 2 ({one_line(message)[-40:]}), which cannot be read "
                "without executing it. Save the state_dict again with torch.save and no pickle_protocol"
            )
        detail = one_line(reason[1])[:200] if reason else "an instruction that weights do not need"
        return CheckpointError(
            f"{path} holds more than weights ({detail}); it was not executed. "
            "Save the generator's state_dict alone with torch.save"
        )
    # No way to load it elsewhere is given: whatever is asked for may be an attack, and no list tells which.
    return CheckpointError(
        f"{path} wants to run {found[1][:80]!r}, which is not weights; it was not executed. "
        "Do not open it with anything else; get the weights alone from their author"
    )


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
