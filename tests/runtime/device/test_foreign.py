"""Arrays and streams of other libraries: what is borrowed, what is refused, and in which words."""

import ctypes
import dataclasses
import gc
import weakref
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from cuda.bindings.driver import CUstream
from hypothesis import given
from hypothesis import strategies as st

from esrgan_deploy import InferenceError
from esrgan_deploy.runtime import SessionInfo
from esrgan_deploy.runtime.device import ForeignArray, _dlpack, borrow_array, stream_handle
from esrgan_deploy.runtime.device import _borrow as _foreign
from esrgan_deploy.runtime.sessions import check_batch, check_output, output_shape

FLOAT = SessionInfo(
    name="m.plan", form="float", dtype=np.dtype(np.float16), in_channels=3, out_channels=3,
    scale=Fraction(4), size_multiple=2, min_shape=(1, 8, 8), max_shape=(4, 64, 128), provider="test",
    device=1,
)  # fmt: skip
UINT8 = dataclasses.replace(FLOAT, form="uint8", dtype=np.dtype(np.uint8), scale=Fraction(3, 2), device=-1)


class OnDevice:
    """What PyCUDA's GPUArray shows (pycuda/gpuarray.py): strides always, and a stream of None."""

    def __init__(self, shape: tuple[int, ...] = (1, 3, 16, 8), typestr: str = "<f2", **changes: Any) -> None:
        steps, step = [], int(typestr[2:])
        for size in reversed(shape):
            steps.insert(0, step)
            step *= size
        self.__cuda_array_interface__ = {
            "shape": shape,
            "strides": tuple(steps),
            "data": (0x7F0000000000, False),
            "typestr": typestr,
            "stream": None,
            "version": 3,
            **changes,
        }


class OnSecondDevice(OnDevice):
    """CuPy and PyTorch have DLPack beside it, which names the device."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)

    def __dlpack__(self, **_: Any) -> object:
        raise AssertionError("the interface is enough")


def foreign(shape: tuple[int, ...], dtype: str = "float16", **fields: Any) -> ForeignArray:
    """An array that was borrowed from the second device."""
    return ForeignArray(
        **{"pointer": 4096, "shape": shape, "dtype": dtype, "device": 1, "owner": None, **fields}
    )


def test_the_cuda_array_interface_is_read_whole():
    """A wrong stream or a lost read-only flag corrupts a picture once in a thousand runs."""
    array = borrow_array(OnSecondDevice(data=(64, True), stream=7))
    assert (array.pointer, array.shape, array.dtype, array.device) == (64, (1, 3, 16, 8), "float16", 1)
    assert (array.read_only, array.stream, array.nbytes) == (True, 7, 768)


def test_version_2_has_neither_stream_nor_strides():
    """PyTorch still writes it."""
    interface = {"shape": (2, 5), "typestr": "|u1", "data": (16, False), "version": 2}
    holder = OnSecondDevice()
    holder.__cuda_array_interface__ = interface
    array = borrow_array(holder)
    assert (array.dtype, array.stream, array.read_only, array.device) == ("uint8", None, False, 1)


def test_bfloat16_is_known_by_the_dtype_beside_it():
    """The interface has no letter for it: PyTorch writes two bytes of void."""
    holder = OnSecondDevice(typestr="<V2")
    with pytest.raises(InferenceError, match="'<V2'"):
        borrow_array(holder)
    holder.dtype = torch.bfloat16
    assert borrow_array(holder).dtype == "bfloat16"


def test_without_dlpack_the_driver_is_asked_for_the_device(monkeypatch):
    """PyCUDA and Numba do not say which device they allocated on; an address of no device is refused."""
    monkeypatch.setattr(_foreign, "_device_of_address", lambda pointer: pointer >> 44)
    assert borrow_array(OnDevice()).device == 7
    monkeypatch.setattr(_foreign, "_device_of_address", lambda _: None)
    with pytest.raises(InferenceError, match="0x7f0000000000"):
        borrow_array(OnDevice())


def test_numpy_is_borrowed_where_it_lies():
    """A copy of it would make `out` a dead letter."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[1:]
    taken = borrow_array(array)
    assert (taken.pointer, taken.shape, taken.dtype, taken.device) == (
        array.ctypes.data,
        (1, 3, 4),
        "float32",
        -1,
    )
    assert not taken.read_only
    array.flags.writeable = False
    assert borrow_array(array).read_only


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16"),
        (torch.uint8, "uint8"), (torch.bool, "bool"), (torch.int64, "int64"),
    ],
)  # fmt: skip
def test_a_tensor_of_pytorch_comes_by_dlpack(dtype, name):
    """Read through the C structure: one field too few and the shape is garbage."""
    tensor = torch.ones(3, 4, 5, dtype=dtype)[1:]
    array = borrow_array(tensor)
    assert (array.pointer, array.shape, array.dtype, array.device) == (tensor.data_ptr(), (2, 4, 5), name, -1)
    assert array.nbytes == tensor.nbytes


class OldLibrary:
    """DLPack from before 1.0: no ``max_version``, and an unversioned capsule."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, stream: int | None = None) -> object:
        return self.array.__dlpack__(stream=stream)


def test_dlpack_of_either_age_is_read():
    """Versioned and unversioned capsules begin differently."""
    tensor = torch.arange(6.0).reshape(2, 3)
    array = borrow_array(OldLibrary(tensor))
    assert (array.pointer, array.shape, array.dtype) == (tensor.data_ptr(), (2, 3), "float32")


def test_the_offset_of_a_capsule_counts():
    """PyTorch and numpy add it to the address themselves; the standard leaves both open."""

    class Offset(OldLibrary):
        def __dlpack__(self, stream: int | None = None) -> object:
            capsule = self.array.__dlpack__(stream=stream)
            address = _dlpack._get_pointer(id(capsule), b"dltensor")
            _dlpack.DLTensor.from_address(address).byte_offset = 12
            return capsule

    tensor = torch.zeros(4)
    assert borrow_array(Offset(tensor)).pointer == tensor.data_ptr() + 12


class NewLibrary(OldLibrary):
    """DLPack 1.0 of a numpy array, which marks what is read-only."""

    def __dlpack__(self, **arguments: Any) -> object:
        return self.array.__dlpack__(**arguments)


def test_dlpack_says_what_is_read_only():
    """Writing there anyway would change a constant of the caller's."""
    array = np.zeros((2, 3), np.float32)
    assert not borrow_array(NewLibrary(array)).read_only
    array.flags.writeable = False
    assert borrow_array(NewLibrary(array)).read_only


def test_what_is_borrowed_stays_alive_and_is_let_go():
    """Freed too early it is a crash, never freed a leak."""
    tensor = torch.full((1000,), 3.0)
    storage = weakref.ref(tensor.untyped_storage())
    taken = borrow_array(tensor)
    del tensor
    gc.collect()
    assert storage() is not None
    assert ctypes.c_float.from_address(taken.pointer).value == 3.0
    array = np.ones(5)
    holder = NewLibrary(array)
    alive = weakref.ref(holder)
    borrowed = borrow_array(holder)
    del holder, array
    gc.collect()
    assert alive() is not None
    del borrowed, taken
    gc.collect()
    assert alive() is None
    assert storage() is None


def test_the_owner_is_told_which_stream_will_work():
    """Only then can a DLPack producer order what it has under way before us, on the device."""
    seen: list[int | None] = []

    class Producer(OldLibrary):
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 3)

        def __dlpack__(self, *, stream: int | None = None, max_version: Any = None) -> object:
            seen.append(stream)
            return self.array.__dlpack__(max_version=max_version)

    assert borrow_array(Producer(torch.zeros(4)), stream=99).device == 3
    assert seen == [99]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.zeros(4, 6)[:, ::2], "not C-contiguous"),
        (lambda: torch.zeros(4, 6).T, "not C-contiguous"),
        (lambda: np.zeros((4, 6))[:, 1:], "not C-contiguous"),
        (lambda: OnSecondDevice(strides=(1, 2, 3, 4)), "not C-contiguous"),
        (lambda: torch.zeros(3, requires_grad=True), "gradient"),
        (lambda: np.zeros(3, ">f4"), "big-endian"),
        (lambda: np.array(["a"]), "<U1"),
        (lambda: np.ma.masked_array([1.0], mask=[True]).__array_interface__, "dict is no array"),
        (lambda: OnSecondDevice(mask=np.ones(1)), "mask"),
        (lambda: [1.0], "list is no array"),
        (lambda: None, "NoneType is no array"),
    ],
)
def test_what_cannot_be_borrowed_is_one_line(make, says):
    """Each of these would be read as another picture than the caller sees."""
    with pytest.raises(InferenceError, match=says) as caught:
        borrow_array(make())
    assert "\n" not in str(caught.value)


def test_memory_of_another_maker_is_refused():
    """An AMD or Intel device pointer given to CUDA would be a crash."""

    class Elsewhere(OldLibrary):
        def __dlpack_device__(self) -> tuple[int, int]:
            return (10, 0)

    with pytest.raises(InferenceError, match="device type 10"):
        borrow_array(Elsewhere(torch.zeros(1)))


def test_an_axis_of_one_may_have_any_stride():
    """numpy and PyTorch keep the stride of the picture that a batch of one was cut from."""
    array = np.zeros((4, 6, 5), np.float32)[:, :, :1][:1, :1]
    assert borrow_array(array).shape == (1, 1, 1)
    assert borrow_array(torch.zeros(7, 8)[3:4]).shape == (1, 8)


class Of:
    """A stream of some library's."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Method:
    """As cuda.core and PyTorch write it."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, 21)


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (17, 17), (2, 2), (Method(), 21), (Of(__cuda_stream__=(0, 22)), 22), (Of(cuda_stream=23), 23),
        (Of(ptr=24), 24), (Of(handle=25), 25), (CUstream(4711), 4711),
    ],
)  # fmt: skip
def test_a_stream_is_known_by_protocol(stream, handle):
    """Integer, both ages of ``__cuda_stream__``, PyTorch, CuPy, PyCUDA, and cuda.bindings since 13.1."""
    assert stream_handle(stream) == handle


@pytest.mark.parametrize("stream", [0, 1, Of(cuda_stream=0), Of(ptr=0), Of(__cuda_stream__=(0, 0))])
def test_the_legacy_default_stream_is_refused(stream):
    """TensorRT would synchronise the whole device on it for each batch."""
    with pytest.raises(InferenceError, match=r"legacy default.*Stream\(\)"):
        stream_handle(stream)
    assert stream_handle(stream, allow_default=True) in (0, 1)


@pytest.mark.parametrize("stream", ["7", True, -3, object(), Of(handle="x"), 1.5])
def test_what_is_no_stream_is_said_so(stream):
    """An address made of anything else is a crash inside the driver."""
    with pytest.raises(InferenceError, match="is no stream"):
        stream_handle(stream)


def test_a_later_stream_protocol_is_not_guessed():
    """Its second item may be something else."""
    with pytest.raises(InferenceError, match="version 1"):
        stream_handle(Of(__cuda_stream__=(1, 5)))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (foreign((1, 3, 16, 8), device=0), r"cuda:0 and m\.plan computes on cuda:1"),
        (foreign((1, 3, 16, 8), device=-1), r"the processor and m\.plan computes on cuda:1"),
        (foreign((1, 3, 16, 8), "float32"), "is float32; .* takes float16"),
        (foreign((3, 16, 8)), r"\(3, 16, 8\).*\(N, C, H, W\)"),
        (foreign((1, 16, 8, 3)), "16 channels"),
        (foreign((5, 3, 16, 8)), "5 pictures.*1 to 4"),
        (foreign((0, 3, 16, 8)), "0 pictures.*1 to 4"),
        (foreign((1, 3, 6, 8)), "6 rows.*8 to 64"),
        (foreign((1, 3, 8, 130)), "130 columns.*8 to 128"),
        (foreign((1, 3, 9, 8)), "9 rows.*multiples of 2"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(array, says):
    """After it was enqueued, the device would read past its end."""
    with pytest.raises(InferenceError, match=says) as caught:
        check_batch(array, FLOAT)
    assert "\n" not in str(caught.value)


def test_a_batch_that_fits_is_measured():
    """In both layouts; the channels are last in one and second in the other."""
    assert check_batch(foreign((2, 3, 8, 128)), FLOAT) == (2, 8, 128)
    assert check_batch(foreign((2, 8, 10, 3), "uint8", device=-1), UINT8) == (2, 8, 10)
    assert check_batch(foreign((1, 3, 8, 8), "bfloat16"), FLOAT, dtypes=("bfloat16",)) == (1, 8, 8)


def test_a_fixed_size_is_named_alone():
    """'8 to 8' is a riddle."""
    fixed = dataclasses.replace(FLOAT, max_shape=(4, 8, 8))
    with pytest.raises(InferenceError, match=r"takes 8$"):
        check_batch(foreign((1, 3, 16, 8)), fixed)


@given(st.integers(1, 4), st.integers(1, 500), st.integers(1, 500), st.fractions(Fraction(1, 4), 16))
def test_the_output_is_floored(number, height, width, scale):
    """One row too many in `out` and its owner reads what was never written."""
    info = dataclasses.replace(FLOAT, scale=scale)
    shape = output_shape(info, (number, height, width))
    assert shape[:2] == (number, 3)
    for side, made in zip((height, width), shape[2:], strict=True):
        assert made <= side * scale < made + 1
    assert output_shape(dataclasses.replace(info, form="uint8"), (number, height, width)) == (
        number,
        *shape[2:],
        3,
    )


def test_out_must_be_able_to_hold_the_result():
    """It is written to by the device, which checks nothing."""
    batch, nhw = foreign((1, 3, 8, 8)), (1, 8, 8)
    good = {"shape": (1, 3, 32, 32), "pointer": 4096 + 384}
    check_output(foreign(**good), FLOAT, nhw, dtype="float16", batch=batch)
    for change, says in (
        ({"shape": (1, 3, 32, 31)}, r"\(1, 3, 32, 31\).*\(1, 3, 32, 32\)"),
        ({"device": 0}, "out lies on cuda:0"),
        ({"dtype": "float32"}, "out is float32"),
        ({"read_only": True}, "out is read-only"),
        ({"pointer": 4096 + 383}, "overlaps"),
        ({"pointer": 4096 - 6143}, "overlaps"),
    ):
        with pytest.raises(InferenceError, match=says):
            check_output(foreign(**{**good, **change}), FLOAT, nhw, dtype="float16", batch=batch)
    check_output(foreign(**{**good, "pointer": 4096 + 384}), FLOAT, nhw, dtype="float16", batch=batch)
