"""Pickles are data: whatever they name or call, sound weights come out or one line does, and nothing has run."""

import argparse
import collections
import contextlib
import copyreg
import io
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esrgan_deploy import CheckpointError, ModelSpec
from esrgan_deploy.export import load_checkpoint

Weights = dict[str, Tensor]
Read = Callable[[bytes], None]
Refusal = Callable[[bytes], str]


@pytest.fixture(scope="module")
def weights(compact_weights: Callable[..., Weights]) -> Weights:
    return compact_weights(features=4, blocks=1, scale=2)


@pytest.fixture
def read(weights: Weights, tmp_path: Path) -> Read:
    """Read a checkpoint and see that the weights are those that were put into it."""

    def check(data: bytes) -> None:
        path = tmp_path / "model.pth"
        path.write_bytes(data)
        found = load_checkpoint(path).tensors
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            assert torch.equal(found[name], value), name

    return check


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """Read what is no checkpoint, and return the line that says so."""

    def check(data: bytes) -> str:
        path = tmp_path / "model.pth"
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        assert "weights_only" not in message
        return message

    return check


def _saved(loaded: object, *, legacy: bool = False, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    torch.save(loaded, file, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _pickle_of(data: bytes) -> bytes:
    return zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")


def _with_pickle(data: bytes, content: bytes) -> bytes:
    return _with(data, "data.pkl", content)


def _with(data: bytes, member: str, content: bytes) -> bytes:
    """Exchange a member of a file of torch.save, with the checksum of the new one."""
    file = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(data))
    with zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith(f"/{member}") else source.read(name))
    return file.getvalue()


def _beside(weights: Weights, nasty: bytes, key: str = "state") -> bytes:
    """Put an object that a piece of pickle makes beside the weights, as training code puts its options there."""
    data = _saved({"params": weights})
    return _with_pickle(data, _pickle_of(data)[:-1] + _text(key) + nasty + b"s.")


def _text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _number(value: int) -> bytes:
    digits = pickle.encode_long(value)
    return b"\x8a" + len(digits).to_bytes(1) + digits


def _named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return _named(module, name) + _tuple(*arguments) + b"R"


_POISONOUS = """
import pathlib
pathlib.Path('lit').touch()

class Poisonous(dict):
    append = extend = __setstate__ = print
"""
_LIT = "open('lit', 'w').close()"
_RUN = "touch lit"
_OBJECT = _named("poisonous_module", "Poisonous")
# c GLOBAL, \x93 STACK_GLOBAL, R REDUCE, \x81 NEWOBJ, \x92 NEWOBJ_EX, i INST, o OBJ, b BUILD, \x82 to \x84 EXT.
_LIVE = {
    "os.system": _call("os", "system", _text(_RUN)),
    "timeit.timeit": _call("timeit", "timeit", _text("pass"), _text(_LIT)),
    "builtins.exec": _call("builtins", "exec", _text(_LIT)),
    "builtins.eval": _call("builtins", "eval", _text(_LIT)),
    "getattr": _call("builtins", "getattr", _named("os", "system"), _text("__call__")) + _tuple(_text(_RUN)) + b"R",
    "attrgetter": _call("operator", "attrgetter", _text("system"))
    + _tuple(_call("importlib", "import_module", _text("os"))) + b"R" + _tuple(_text(_RUN)) + b"R",
    "names on the stack": _text("os") + _text("system") + b"\x93" + _tuple(_text(_RUN)) + b"R",
    "a dotted name": _text("torch") + _text("serialization.os.system") + b"\x93" + _tuple(_text(_RUN)) + b"R",
    "an old instance": b"(" + _text(_RUN) + b"ios\nsystem\n",
    "an old object": b"(" + _named("os", "system") + _text(_RUN) + b"o",
    "an extension": b"\x82\xf0" + _tuple(_text(_RUN)) + b"R",
    "an extension of two bytes": b"\x83\xf0\x00" + _tuple(_text(_RUN)) + b"R",
    "an extension of four bytes": b"\x84\xf0\x00\x00\x00" + _tuple(_text(_RUN)) + b"R",
    "an import": _OBJECT,
    "a new object": _OBJECT + b")\x81",
    "a new object by names": _OBJECT + b")}" + _text("a") + b"Ns\x92",
    "a state": _OBJECT + b")\x81" + _text("state") + b"b",
    "items": _OBJECT + b")\x81" + _text("a") + b"Ns(" + _text("b") + b"Nu" + b"Na(NNe",
    "a rebuilt type": _call(
        "torch._tensor", "_rebuild_from_type_v2", _named("os", "system"), b"N", _tuple(_text(_RUN)), b"N"
    ),
    "a hook": _call("torch._utils", "_rebuild_parameter", _call("os", "system", _text(_RUN)), b"\x88", b"N"),
}  # fmt: skip


@pytest.mark.parametrize("nasty", _LIVE)
def test_what_a_pickle_calls_is_not_run_and_the_weights_beside_it_are_read(
    nasty: str, weights: Weights, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever exports a downloaded file would run its author's program, or could not use sound weights."""
    marker = tmp_path / "lit"
    (tmp_path / "poisonous_module.py").write_text(_POISONOUS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = _LIVE[nasty]
    copyreg.add_extension("os", "system", 0xF0)
    try:
        read(_beside(weights, code))
        assert not marker.exists()
        assert "poisonous_module" not in sys.modules
        # It is live: what has been shown is that nothing lit it.
        with contextlib.suppress(AttributeError):
            pickle.loads(b"\x80\x04" + code + b".")
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
        sys.modules.pop("poisonous_module", None)
    assert marker.exists()


_INERT = {
    "a persistent id that is a text": b"Pos.system\n",
    "a persistent id of nothing": b")Q",
    "a persistent id of another kind": _tuple(_text("file"), _text("/etc/passwd")) + b"Q",
    "a persistent id that is a list": b"(" + _text("storage") + b"lQ",
    "a module with its source": _tuple(_text("module"), _OBJECT, _text("a.py"), _text("import os")) + b"Q",
    "a storage of another type": _tuple(
        _text("storage"), _named("torch", "QInt8Storage"), _text("0"), b"N", b"K\x01"
    ) + b"Q",
    "attributes of a function": _named("torch._utils", "_rebuild_tensor_v2")
    + b"N}" + _text("__defaults__") + b")s\x86b",
    "attributes of a class": _named("collections", "OrderedDict") + b"N}" + _text("update") + b"Ns\x86b",
    "a class of one's own": _OBJECT + b")\x81}" + _text("__class__") + _named("builtins", "dict") + b"s"
    + _text("__dict__") + b"}s" + b"b",
    "a call of a text": _text("os.system") + b")R",
    "a call of a call": _call("os", "system") + b")R",
    "names that are no texts": b"K\x01K\x02\x93",
    "a name without end": _text("a" * 10_000) + _text("b" * 10_000) + b"\x93",
    "an unknown extension": b"\x84\xff\xff\xff\x7f",
    "a memo of gigabytes": b"Nr\xf0\xff\xff\xff0j\xf0\xff\xff\xff",
    "itself": b"}q\xfe" + _text("self") + b"h\xfes" + b"0" + b"]q\xfdh\xfda",
    "sets": b"\x8f(K\x01K\x02\x90" + b"0(K\x01\x91" + b"0" + _call("builtins", "set", b"](K\x01e"),
    "arrays of bytes": b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a" + b"0\x97\x98",
    "keys of any type": b"}(N" + b"K\x01" + b"](K\x01e" + b"N" + b"\x88" + b"N" + b"}" + b"Nu",
    "nested tuples as a key": b"}" + b")" + b"\x85" * 300_000 + b"Ns",
    "nested lists": b"]" * 100_000 + b"a" * 99_999,
}  # fmt: skip


@pytest.mark.parametrize("odd", _INERT)
def test_what_a_pickle_holds_beside_the_weights_does_no_harm(odd: str, weights: Weights, read: Read) -> None:
    """An object that is odd, or made to be, would cost sound weights, the interpreter's functions or the process."""
    read(_beside(weights, _INERT[odd]))
    assert collections.OrderedDict.update is not None
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


def _storage(key: str = "0", numbers: bytes = b"K\x01", kind: str = "FloatStorage") -> bytes:
    return _tuple(_text("storage"), _named("torch", kind), _text(key), _text("cpu"), numbers) + b"Q"


def _tensor(storage: bytes, offset: bytes, size: bytes, stride: bytes, *others: bytes) -> bytes:
    return _call(
        "torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, *(others or (b"\x89", b"N"))
    )


def _sizes(*values: int) -> bytes:
    return _tuple(*(_number(value) for value in values))


_ONE, _ZERO = _sizes(1), _number(0)
_ABSURD = {
    "negative size": (_tensor(_storage(), _ZERO, _sizes(-1), _ONE), "negative"),
    "negative stride": (_tensor(_storage(), _ZERO, _sizes(2), _sizes(-1)), "negative"),
    "negative offset": (_tensor(_storage(), _number(-1), _ONE, _ONE), "negative"),
    "offset beyond": (_tensor(_storage(), _number(1), _ONE, _ONE), "ends at number 2 of a storage of 1"),
    "size beyond": (_tensor(_storage(), _ZERO, _sizes(2), _ONE), "ends at number 2 of a storage of 1"),
    "stride beyond": (_tensor(_storage(), _ZERO, _sizes(2), _sizes(2**40)), "of a storage of 1"),
    "overflow": (_tensor(_storage(), _ZERO, _sizes(5, 2**62), _sizes(2**62, 4)), "GiB"),
    "overflow of nothing": (_tensor(_storage(), _ZERO, _sizes(2**62, 2**62), _sizes(0, 0)), "GiB"),
    "overflow of an integer": (_tensor(_storage(), _ZERO, _sizes(2**70), _ONE), "impossible"),
    "no integers": (_tensor(_storage(), _ZERO, _tuple(_text("1")), _ONE), "impossible"),
    "no shape": (_tensor(_storage(), _ZERO, b"N", _ONE), "a shape"),
    "many dimensions": (_tensor(_storage(), _ZERO, _sizes(*[1] * 99), _sizes(*[1] * 99)), "dimensions"),
    "other strides": (_tensor(_storage(), _ZERO, _ONE, _sizes(1, 1)), "1 dimensions with 2 strides"),
    "no storage": (_tensor(b"N", _ZERO, _ONE, _ONE), "storage is none"),
    "no arguments": (_call("torch._utils", "_rebuild_tensor_v2"), "with 0 arguments"),
    "other bits": (_tensor(_storage(), _ZERO, _ONE, _ONE, b"\x89", b"N", b"}" + _text("neg") + b"\x88s"), "negated"),
    "numbers that are absent": (_tensor(_storage("99"), _ZERO, _ONE, _ONE), "no item named"),
    "numbers elsewhere": (_tensor(_storage("../data.pkl"), _ZERO, _ONE, _ONE), "no item named"),
    "more numbers than bytes": (_tensor(_storage(numbers=_number(10**6)), _ZERO, _ONE, _ONE), "where 4000000 are"),
    "terabytes": (_tensor(_storage(numbers=_number(2**40)), _ZERO, _ONE, _ONE), "GiB"),
    "fewer than no numbers": (_tensor(_storage(numbers=_number(-1)), _ZERO, _ONE, _ONE), "below nothing"),
    "a view beyond": (
        _tensor(_storage()[:-2] + _tuple(_text("v"), b"K\x01", b"K\x01") + b"tQ", _ZERO, _ONE, _ONE),
        "a view",
    ),
    "untyped numbers": (
        _call("torch._utils", "_rebuild_tensor_v3", _storage(kind="UntypedStorage"), _ZERO, _ONE, _ONE, b"\x89", b"N",
              _named("os", "system")),
        "dtype",
    ),
}  # fmt: skip


@pytest.mark.parametrize("absurd", _ABSURD)
def test_a_tensor_that_does_not_lie_within_its_numbers_is_refused(
    absurd: str, weights: Weights, refusal: Refusal
) -> None:
    """Read as it says, it would show memory that is not its own, end the process or take all memory."""
    tensor, told = _ABSURD[absurd]
    message = refusal(_beside(weights, b"}" + _text("body.0.weight") + tensor + b"s", key="params_ema"))
    assert told in message
    assert "damaged" in message


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch lit",)


class _Net(nn.Module):
    """A module as training code keeps it: parts in parts, buffers that are saved and buffers that are not."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        parts = {name.split(".")[1]: nn.Module() for name in weights}
        for name, value in weights.items():
            parts[name.split(".")[1]].register_parameter(name.split(".")[2], nn.Parameter(value.clone()))
        self.body = nn.ModuleList(parts.values())
        self.register_buffer("unsaved", torch.zeros(3), persistent=False)


class _Options(dict[str, object]):
    pass


class _Average:
    def __init__(self, weights: Weights) -> None:
        self.decay, self.net_g = 0.999, weights


class _Slots:
    __slots__ = ("params",)

    def __init__(self, weights: Weights) -> None:
        self.params = weights


def _with_attribute(value: Tensor) -> Tensor:
    value = value.clone()
    value.origin = "trained"  # type: ignore[attr-defined]
    return value


_HOLDERS: dict[str, Callable[[Weights], object]] = {
    "a module": _Net,
    "a module in DataParallel": lambda weights: nn.DataParallel(_Net(weights)),
    "a module in a table": lambda weights: {"epoch": 3, "model": _Net(weights), "optimizer": _Bomb()},
    "a table of its own class": lambda weights: {"state_dict": _Options(weights)},
    "attributes": _Average,
    "slots": _Slots,
    "options beside": lambda weights: {
        "params": weights,
        "args": argparse.Namespace(scale=4, path=Path("a")),
    },
    "a bomb beside": lambda weights: {"params": weights, "state": _Bomb()},
    "parameters": lambda weights: {name: nn.Parameter(value) for name, value in weights.items()},
    "tensors with attributes": lambda weights: {
        name: _with_attribute(value) for name, value in weights.items()
    },
    "slices": lambda weights: {
        name: torch.stack([value, value], -1)[..., 1] for name, value in weights.items()
    },
}


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("holder", _HOLDERS)
def test_weights_are_found_in_objects_of_unknown_classes(
    holder: str, form: str, weights: Weights, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trainers save beside or around the weights would make them unreadable, as no class of theirs is here."""
    monkeypatch.chdir(tmp_path)
    read(_saved(_HOLDERS[holder](weights), legacy=form == "legacy"))
    assert not (tmp_path / "lit").exists()


def test_a_module_whose_parameters_are_named_without_dots_is_read(
    rrdb_spec: Callable[..., ModelSpec], rrdb_weights: Callable[..., Weights], tmp_path: Path
) -> None:
    """No parameter can have a dot in its name, so whoever keeps a table of weights in a module replaces them."""
    table, module = rrdb_weights(rrdb_spec()), nn.Module()
    for name, value in table.items():
        module.register_parameter(name.replace(".", "_"), nn.Parameter(value))
    torch.save(module, tmp_path / "model.pth")
    found = load_checkpoint(tmp_path / "model.pth").tensors
    assert found.keys() == table.keys()
    assert all(torch.equal(found[name], value) for name, value in table.items())


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol_is_read(protocol: int, form: str, weights: Weights, read: Read) -> None:
    """torch.save takes any protocol, and its own reader of weights only the second."""
    read(
        _saved({"params": weights, "args": argparse.Namespace()}, legacy=form == "legacy", protocol=protocol)
    )


def test_the_text_protocol_in_which_torch_itself_loses_the_storages_is_one_line(
    weights: Weights, refusal: Refusal
) -> None:
    """Whatever the protocol, a file that cannot be read must not end in a traceback."""
    assert "storage is none" in refusal(_saved({"params": weights}, protocol=0))


def test_entries_that_python_2_gave_as_pairs_are_read(weights: Weights, read: Read) -> None:
    """Old releases were saved by Python 2, whose ordered dictionaries take their entries when they are made."""
    data = _saved([[name, value] for name, value in weights.items()])
    read(
        _with_pickle(
            data, b"\x80\x02" + _named("collections", "OrderedDict") + _pickle_of(data)[2:-1] + b"\x85R."
        )
    )


def test_views_of_storages_are_read_where_they_lie(weights: Weights, read: Read) -> None:
    """Files of the first years keep several tensors in one storage, each a view that begins somewhere in it."""
    data = _saved([torch.cat([torch.full((1,), 7.0), value.flatten()]) for value in weights.values()])
    content = b"\x80\x02}"
    for n, (name, value) in enumerate(weights.items()):
        view = _tuple(_text("view"), b"K\x01", _number(value.numel()))
        storage = _storage(f"{n}", _number(value.numel() + 1))[:-2] + view + b"tQ"
        content += _text(name) + _tensor(storage, _ZERO, _sizes(*value.shape), _sizes(*value.stride())) + b"s"
    read(_with_pickle(data, content + b"."))


def test_the_other_order_of_bytes_is_refused(weights: Weights, refusal: Refusal) -> None:
    """Read in this machine's order, every weight would be another number."""
    data = _saved({"params": weights})
    assert "big-endian" in refusal(_with(data, "byteorder", b"big"))


def test_kinds_of_float_without_a_storage_of_their_own_are_read(weights: Weights, read: Read) -> None:
    """They lie in untyped storages, of which the dtype is said elsewhere."""
    read(_saved({"params": weights, "scales": torch.ones(3, dtype=torch.float8_e4m3fn), "params_ema": {}}))


@pytest.mark.parametrize("depth", [0, 40], ids=["itself", "doubled"])
def test_modules_within_themselves_end(depth: int, refusal: Refusal) -> None:
    """Names would grow, or double from part to part, until memory is full."""
    module = nn.Module()
    if depth == 0:
        module.add_module("a", module)
    for _ in range(depth):
        outer = nn.Module()
        outer.add_module("a", module)
        outer.add_module("b", module)
        module = outer
    assert "no named weights" in refusal(_saved(module))


def test_states_that_are_shared_do_not_multiply(weights: Weights, refusal: Refusal) -> None:
    """A file of a few kilobytes would copy one table a million times."""
    table = b"}q\xfe(" + b"".join(_text(f"{n}") + b"N" for n in range(3000)) + b"u0"
    objects = b"]q\xfd(" + (_OBJECT + b")\x81h\xfeb") * 1500 + b"e"
    assert "instructions" in refusal(_beside(weights, table + objects))


def test_a_legacy_file_gets_no_memory_for_numbers_that_it_does_not_hold(
    weights: Weights, refusal: Refusal
) -> None:
    """Memory would be asked for on the word of a file of a few kilobytes."""
    data = _saved({"params": weights}, legacy=True)
    count = weights["body.0.weight"].numel()
    place = data.index(b"cpuq", data.index(b"FloatStorage")) + 5
    assert data[place : place + 2] == b"K" + bytes([count])
    assert "more than follow" in refusal(data[:place] + b"J\xff\xff\xff\x0f" + data[place + 2 :])


def test_a_tar_archive_is_called_one(refusal: Refusal) -> None:
    """Torch wrote such until 2017; what is of no known format could be anything."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert "tar archive" in refusal(file.getvalue())


@pytest.mark.parametrize("name", ["args", "mm_full", "whole"])
def test_reported_files_are_read(name: str, assets: Path) -> None:
    """A Namespace and an object of MMEngine beside the weights, and a module around them, made them unreadable."""
    assert load_checkpoint(assets / "reports" / f"{name}.pth").spec.architecture == "rrdbnet"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_damage_of_a_pickle_behind_a_right_checksum_ends_in_a_traceback(
    places: list[tuple[int, int]], weights: Weights, tmp_path: Path
) -> None:
    """Every instruction can be anything, and each fails in a way of its own."""
    data = _saved({"params": _Net(weights), "args": argparse.Namespace(scale=4)})
    content = bytearray(_pickle_of(data))
    for place, value in places:
        content[place % len(content)] = value
    path = tmp_path / "model.pth"
    path.write_bytes(_with_pickle(data, bytes(content)))
    # Any other exception goes through and fails the test.
    with contextlib.suppress(CheckpointError):
        assert load_checkpoint(path).tensors
