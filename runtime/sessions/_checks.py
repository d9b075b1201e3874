"""What a session takes on its device, and refuses before anything is enqueued."""

import math

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError, OutOfMemoryError
from esrgan_deploy.runtime.device import ForeignArray, borrow_array
from esrgan_deploy.runtime.sessions._protocol import Array, SessionInfo

__all__ = [
    "check_batch",
    "check_output",
    "check_size",
    "converted_on_host",
    "host_arrays",
    "new_batch",
    "output_shape",
]


def converted_on_host(name: str) -> InferenceError:
    """Return the refusal of arrays that are to stay where they are, for a graph whose batches are converted."""
    return InferenceError(
        f"{name} is converted on the host, and no array can stay where it is; use upscale(), or run: "
        "esrgan-export with it, which makes a graph of 0..1"
    )


def host_arrays(
    info: SessionInfo, array: object, out: object | None, *, dtype: npt.DTypeLike, stream: object | None
) -> tuple[ForeignArray, ForeignArray, object]:
    """Check what `Session.run_on_device` is given where a session computes in the processor's memory.

    Args:
        info: Of the session.
        array: The batch.
        out: Where the result is to go; None for a new array.
        dtype: Of the result.
        stream: Refused, as there are none.

    Returns:
        The batch, where its result goes, and what to return.

    Raises:
        InferenceError: They do not fit, see `check_batch` and `check_output`, or there is a stream.
    """
    if stream is not None:
        raise InferenceError(
            f"{info.name} runs on {info.provider}, where there are no streams; leave stream out"
        )
    batch = borrow_array(array)
    nhw = check_batch(batch, info)
    made = np.empty(output_shape(info, nhw), dtype) if out is None else out
    target = borrow_array(made)
    check_output(target, info, nhw, dtype=np.dtype(dtype).name, batch=batch)
    return batch, target, made


def new_batch(info: SessionInfo, nhw: tuple[int, int, int]) -> Array:
    """Return memory for a batch of ``(N, H, W)``, as a session takes it.

    Raises:
        InferenceError: The session does not take that shape.
        OutOfMemoryError: The batch does not fit into memory.
    """
    check_size(info, nhw)
    wanted = info.batch_shape(*nhw)
    try:
        return np.empty(wanted, info.dtype)
    except (MemoryError, ValueError) as error:
        raise OutOfMemoryError(
            f"a batch of {'x'.join(map(str, wanted))} does not fit into memory; use a smaller tile"
        ) from error


def output_shape(info: SessionInfo, nhw: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the shape of what a session makes of a batch of ``(N, H, W)``."""
    number, height, width = nhw[0], math.floor(nhw[1] * info.scale), math.floor(nhw[2] * info.scale)
    if info.form == "uint8":
        return (number, height, width, info.out_channels)
    return (number, info.out_channels, height, width)


def check_batch(
    array: ForeignArray, info: SessionInfo, *, dtypes: tuple[str, ...] = ()
) -> tuple[int, int, int]:
    """Refuse a batch that a session cannot take, before anything is enqueued.

    Args:
        array: The batch.
        info: Of the session.
        dtypes: What the session takes; empty for the one that `info` names.

    Returns:
        ``(N, H, W)``.

    Raises:
        InferenceError: Device, dtype, rank, channels or size do not fit.
    """
    _check_place(array, info, "the batch", dtypes or (info.dtype.name,))
    layout = "(N, H, W, C)" if info.form == "uint8" else "(N, C, H, W)"
    if len(array.shape) != 4:
        raise InferenceError(f"the batch has the shape {array.shape}; {info.name} takes {layout}")
    if info.form == "uint8":
        number, height, width, channels = array.shape
    else:
        number, channels, height, width = array.shape
    if channels != info.in_channels:
        raise InferenceError(
            f"the batch has {channels} channels ({array.shape}); {info.name} takes {layout} with {info.in_channels}"
        )
    check_size(info, (number, height, width))
    return number, height, width


def check_size(info: SessionInfo, nhw: tuple[int, int, int]) -> None:
    """Refuse a batch of ``(N, H, W)`` that is out of a session's range.

    Raises:
        InferenceError: It is too small or too large, or a side is not a multiple of what the model needs.
    """
    multiple = info.size_multiple
    for what, seen, least, most in zip(
        ("pictures", "rows", "columns"), nhw, info.min_shape, info.max_shape, strict=True
    ):
        if not max(least, 1) <= seen <= most:
            allowed = f"{least}" if least == most else f"{max(least, 1)} to {most}"
            raise InferenceError(f"the batch has {seen} {what} ({_sides(nhw)}); {info.name} takes {allowed}")
        if what != "pictures" and seen % multiple:
            raise InferenceError(
                f"the batch has {seen} {what} ({_sides(nhw)}); {info.name} takes multiples of {multiple}"
            )


def check_output(
    array: ForeignArray, info: SessionInfo, nhw: tuple[int, int, int], *, dtype: str, batch: ForeignArray
) -> None:
    """Refuse an ``out`` that the result of a batch cannot be written to.

    Args:
        array: Where the result is to go.
        info: Of the session.
        nhw: ``(N, H, W)`` of the batch.
        dtype: Of the result.
        batch: What is enlarged; it may not share memory with the result.

    Raises:
        InferenceError: Device, dtype or shape do not fit, it is read-only, or it overlaps the batch.
    """
    _check_place(array, info, "out", (dtype,))
    if array.read_only:
        raise InferenceError("out is read-only; give memory that can be written to")
    wanted = output_shape(info, nhw)
    if array.shape != wanted:
        raise InferenceError(f"out has the shape {array.shape}; the result of this batch has {wanted}")
    first, last = sorted((array, batch), key=lambda item: item.pointer)
    if first.pointer + first.nbytes > last.pointer:
        raise InferenceError("out overlaps the batch in memory; give memory of its own")


def _check_place(array: ForeignArray, info: SessionInfo, what: str, dtypes: tuple[str, ...]) -> None:
    if array.device != info.device:
        raise InferenceError(
            f"{what} lies on {_place(array.device)} and {info.name} computes on {_place(info.device)}; "
            "bring it there, or open the model there"
        )
    if array.dtype not in dtypes:
        raise InferenceError(f"{what} is {array.dtype}; {info.name} takes {' or '.join(dtypes)} there")


def _place(device: int) -> str:
    return "the processor" if device < 0 else f"cuda:{device}"


def _sides(nhw: tuple[int, int, int]) -> str:
    return "x".join(map(str, nhw))
