"""Reading files: every form that checkpoints have, and everything that is handed in instead."""

import contextlib
import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from esrgan_deploy import _errors
from esrgan_deploy.export.checkpoints import read_tensors

_TENSORS = {"conv_first.weight": torch.arange(108.0).reshape(4, 3, 3, 3), "conv_first.bias": torch.ones(4)}


def _saved(loaded: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(loaded, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _deflated(data: bytes) -> bytes:
    file = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(data))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    return file.getvalue()


_FORMS = {
    "zip": _saved({"params": _TENSORS}),
    "deflated zip": _deflated(_saved({"params": _TENSORS})),
    "before torch 1.6": _saved({"params": _TENSORS}, legacy=True),
    "safetensors": save(_TENSORS),
}


def _refusal(path: Path) -> str:
    with pytest.raises(_errors.CheckpointError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def _refusal_of(data: bytes, folder: Path, name: str = "model.pth") -> str:
    path = folder / name
    path.write_bytes(data)
    return _refusal(path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".param", ""])
@pytest.mark.parametrize("form", _FORMS)
def test_the_content_decides_and_not_the_suffix(form: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(_FORMS[form])
    read = read_tensors(path)
    assert read.keys() == _TENSORS.keys()
    for name, value in _TENSORS.items():
        assert torch.equal(read[name], value)


def test_storages_tagged_cuda_load_on_the_cpu(assets: Path) -> None:
    """The official animevideov3 file was saved on a GPU: without map_location it fails on a CPU machine."""
    read = read_tensors(assets / "models" / "realesr-animevideov3.pth")
    assert {value.device.type for value in read.values()} == {"cpu"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "web page"),
        (b"\xef\xbb\xbf  <html lang='en'>", "web page"),
        (("<html> " + "é" * 5000).encode(), "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4fa0\nsize 67040989\n", "git lfs pull"),
        (b"404: Not Found", "is a text"),
        (b'{"message": "rate limit"}', "is a text"),
        (b"\x1f\x8b\x08\x00" + bytes(50), "gzip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG picture"),
        (b"\x08\x08\x12\x07pytorch" + bytes(50), "ONNX graph"),
        (bytes(range(128, 255)), "no format that is known"),
        (b"\x00", "no format that is known"),
        (b"\x08\x0a", "no format that is known"),
    ],
)
def test_files_that_are_no_checkpoint_are_called_by_their_name(
    data: bytes, told: str, tmp_path: Path
) -> None:
    assert told in _refusal_of(data, tmp_path)


def test_paths_that_are_no_file_are_refused(tmp_path: Path) -> None:
    assert "is a folder" in _refusal(tmp_path)
    assert _refusal(tmp_path / "absent.pth").endswith("absent.pth does not exist")
    assert "did you mean the official RealESRGAN_x4plus" in _refusal(tmp_path / "RealESRGAN_x4.pth")
    plan = b"\x00\x01ptrt" + bytes(50)
    assert "TensorRT plan" in _refusal_of(plan, tmp_path, "model.plan")


def test_a_file_of_many_gibibytes_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
    assert "has 5368709120 bytes, over 4 GiB" in _refusal(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """A file is read twice, for its weights and for its digest; a pipe gives its bytes once."""
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in _refusal(tmp_path / "pipe")


def test_a_file_without_the_right_to_read_is_one_line(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path = tmp_path / "model.pth"
    path.write_bytes(_FORMS["zip"])
    path.chmod(0)
    assert "cannot be read" in _refusal(path)


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_says_so_and_how_long_it_is(form: str, share: float, tmp_path: Path) -> None:
    data = _FORMS[form][: int(len(_FORMS[form]) * share)]
    message = _refusal_of(data, tmp_path)
    assert "truncated or damaged" in message or "no format" in message
    assert "download it again" in message or "are read" in message
    assert ("directory, the last part" in message) == ("zip" in form)
    if share >= 0.3:
        assert f"{len(data)} bytes" in message


def test_a_truncated_safetensors_says_how_much_is_missing(tmp_path: Path) -> None:
    data = _FORMS["safetensors"]
    assert f"{len(data) - 100} bytes where its header announces {len(data)}" in _refusal_of(
        data[:-100], tmp_path
    )


def test_a_flipped_bit_in_a_weight_is_found(tmp_path: Path) -> None:
    """torch.load does not compare the zip's checksums and would return the flipped weight."""
    data = bytearray(_FORMS["zip"])
    place = data.find(_TENSORS["conv_first.weight"].numpy().tobytes()) + 41
    data[place] ^= 0x10
    assert torch.load(io.BytesIO(bytes(data)), weights_only=True)["params"]["conv_first.weight"] is not None
    assert "checksum" in _refusal_of(bytes(data), tmp_path)


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.marker}",))


def test_a_zip_with_its_directory_is_not_called_cut_off(tmp_path: Path) -> None:
    data = bytearray(_FORMS["zip"])
    data[data.rfind(b"PK\x01\x02")] = 0
    message = _refusal_of(bytes(data), tmp_path)
    assert "Bad magic number for central directory" in message


@pytest.mark.parametrize("form", ["zip", "deflated zip", "legacy", "pickle 2", "pickle 4"])
def test_a_pickle_bomb_is_named_and_does_not_go_off(form: str, tmp_path: Path) -> None:
    marker = tmp_path / "went-off"
    loaded = _Bomb(marker)
    data = {
        "zip": lambda: _saved(loaded),
        "deflated zip": lambda: _deflated(_saved(loaded)),
        "legacy": lambda: _saved(loaded, legacy=True),
        "pickle 2": lambda: pickle.dumps(_Bomb(marker), protocol=2),
        "pickle 4": lambda: pickle.dumps(_Bomb(marker), protocol=4),
    }[form]()
    message = _refusal_of(data, tmp_path)
    assert not marker.exists()
    assert re.search(r"'(posix|nt)\.system'", message)
    assert "not executed" in message
    assert "weights_only=False" not in message
    # The bomb is a live one: what has been shown is that nothing lit it.
    if form.startswith("pickle"):
        pickle.loads(data)
    else:
        torch.load(io.BytesIO(data), weights_only=False)
    assert marker.exists()


def test_plain_containers_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(_saved({"epoch": 3, "state_dict": _TENSORS, "options": {"lr": [1e-4, None, "cos"]}}))
    assert read_tensors(path).keys() == _TENSORS.keys()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_archive_is_refused_and_not_advised_to_be_run(tmp_path: Path) -> None:
    """Such an archive is a program, and loading it runs its setstate: no file is to be opened so on our word."""
    path = tmp_path / "model.pt"
    torch.jit.script(torch.nn.Conv2d(3, 3, 3)).save(str(path))
    message = _refusal(path)
    assert "TorchScript" in message
    assert "torch.jit" not in message
    assert "state_dict" in message


def test_a_zip_of_something_else_says_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/net_g.pth", _FORMS["zip"])
    assert "'weights/net_g.pth'" in _refusal(path)


@pytest.mark.parametrize(
    ("members", "told"),
    [("ab", "(it holds 'a', 'b');"), ("abc", "'c');"), ("abcde", "(it holds 'a', 'b', 'c' and 2 more);")],
)
def test_of_a_zip_with_many_files_a_few_are_shown(members: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, b"")
    assert told in _refusal(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", b"")
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(80):
                member.write(bytes(2**20))
    assert "was not unpacked" in _refusal(path)


def test_a_tensor_of_huge_shape_over_few_bytes_is_refused(tmp_path: Path) -> None:
    """A stride of zero makes 16 GiB out of four bytes; copying it would take the machine down."""
    wide = {"conv_first.weight": torch.zeros(1).expand(2**32)}
    data = _saved({"params": wide})
    assert len(data) < 10_000
    assert "GiB" in _refusal_of(data, tmp_path)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.zeros(4, device="meta"), "meta"),
        (torch.zeros(4, 4).to_sparse(), "sparse"),
    ],
)
def test_tensors_that_hold_no_dense_numbers_are_refused(tensor: Tensor, kind: str, tmp_path: Path) -> None:
    message = _refusal_of(_saved({"conv_first.weight": tensor}), tmp_path)
    assert kind in message
    assert "'conv_first.weight'" in message


@settings(max_examples=100, deadline=None)
@given(data=st.data(), form=st.sampled_from(sorted(_FORMS)))
def test_no_damage_ends_in_anything_but_a_checkpoint_error(
    data: st.DataObject, form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(_FORMS[form])
    end = data.draw(st.integers(1, len(damaged)))
    for place in data.draw(st.lists(st.integers(0, end - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(damaged[:end])
    # Any other exception goes through and fails the test.
    with contextlib.suppress(_errors.CheckpointError):
        assert all(isinstance(value, Tensor) for value in read_tensors(path).values())
