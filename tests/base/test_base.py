"""What every room stands on."""

import dataclasses
import os
import subprocess
import sys

import pytest

from esrgan_deploy import _errors
from esrgan_deploy._console import one_line_errors
from esrgan_deploy._errors import (
    CheckpointError,
    EsrganDeployError,
    ExportError,
    MissingDependencyError,
    ParityError,
)
from esrgan_deploy._files import replaced_atomically, sha256_of
from esrgan_deploy._manifest import Artefact, Manifest, find_manifest, load_manifest, save_manifest
from esrgan_deploy._optional import require
from esrgan_deploy._spec import ModelSpec

SPEC = ModelSpec(
    architecture="rrdbnet", scale=4, in_channels=3, out_channels=3, features=64, blocks=23, growth=32,
    source_sha256="0" * 64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "mflop"),
    [
        ({}, 35.85),
        ({"blocks": 6}, 11.41),
        ({"scale": 2, "unshuffle": 2}, 8.97),
        ({"scale": 2}, 33.75),
        ({"architecture": "srvggnetcompact", "blocks": 16, "growth": 0}, 1.238),
        ({"architecture": "srvggnetcompact", "blocks": 32, "growth": 0}, 2.418),
        ({"architecture": "srvggnetcompact", "scale": 2, "blocks": 16, "growth": 0}, 1.197),
    ],
)
def test_flops_are_those_that_the_field_counts(changes, mflop):
    """TFLOP/s of a bench that counts otherwise compare with nobody's."""
    counted = dataclasses.replace(SPEC, **changes).flops_per_pixel
    assert counted / 1e6 == pytest.approx(mflop, rel=5e-4)


def test_flops_of_an_unknown_architecture_are_unknown():
    """A constant would be wrong for every other net."""
    assert dataclasses.replace(SPEC, architecture="onnx").flops_per_pixel is None


def test_a_specification_survives_json_and_later_keys():
    """A manifest of a newer version would otherwise break an older runtime."""
    assert ModelSpec.from_json({**SPEC.to_json(), "colour": "new"}) == SPEC


def test_a_scale_of_zero_is_refused():
    """It would divide by zero far from here."""
    with pytest.raises(ValueError, match=r"ModelSpec\.scale is 0"):
        dataclasses.replace(SPEC, scale=0)


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    """Half a file under the right name looks like a whole one."""
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="full"), replaced_atomically(target) as temporary:
        temporary.write_bytes(b"ne")
        raise RuntimeError("full")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    with replaced_atomically(target) as temporary:
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", ["a" * 250 + ".json", "猫" * 83 + ".json", "a." + "b" * 253, "猫" * 85])
def test_a_name_as_long_as_the_file_system_allows_is_replaced(tmp_path, name):
    """A temporary name that is longer than the name itself fails when the work is done."""
    target = tmp_path / name
    with replaced_atomically(target) as temporary:
        temporary.write_bytes(b"new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    """An output to /dev/null, written by an administrator, took the device away from everybody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="A pipe, a device or a folder"), replaced_atomically(pipe) as temporary:
        temporary.write_bytes(b"new")
    assert pipe.is_fifo()


def test_what_a_killed_writer_left_goes_with_the_next_write_and_nothing_else_does(tmp_path):
    """Each kill would leave a file for ever; and what a living writer holds, or a user, must not go with them."""
    code = """
import signal, sys, time
from pathlib import Path
from esrgan_deploy._files import replaced_atomically, temporary_folder
folder = Path(sys.argv[1])
with replaced_atomically(folder / "picture.png") as file, temporary_folder(folder) as made:
    file.write_bytes(b"half")
    (made / "model.onnx").write_bytes(b"half")
    print("made", flush=True)
    sys.stdin.read()
    file.write_bytes(b"whole")
"""
    kept = {".esrgan-notes", ".esrgan-0123456789ab.a.longer.name.than.ours", ".esrgan-0123456789ac"}
    (tmp_path / ".esrgan-notes").write_text("mine")
    (tmp_path / ".esrgan-0123456789ab.a.longer.name.than.ours").write_text("mine")
    (tmp_path / ".esrgan-0123456789ac").symlink_to(tmp_path / ".esrgan-notes")
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == b"made\n"
    held = {path.name for path in tmp_path.iterdir()}
    assert len(held) == len(kept) + 4
    writers[0].kill()
    writers[0].communicate()
    program = f"from pathlib import Path; folder = Path({str(tmp_path)!r})"
    program += "; from esrgan_deploy._files import replaced_atomically as whole"
    program += "\nwith whole(folder / 'other.png') as file: file.write_bytes(b'other')"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert len({path.name for path in tmp_path.iterdir()} & held) == len(kept) + 2
    writers[1].communicate(b"")
    assert {path.name for path in tmp_path.iterdir()} == kept | {"picture.png", "other.png"}
    assert (tmp_path / "picture.png").read_bytes() == b"whole"
    assert (tmp_path / ".esrgan-notes").read_text() == "mine"


def _manifest(path):
    path.write_bytes(b"abc")
    artefact = Artefact.from_file(
        path, kind="onnx", precision="fp16", shapes=((1, 2, 3), (1, 4, 5), (2, 6, 7))
    )
    return Manifest(spec=SPEC, source="net.pth", artefacts=(artefact,))


def test_a_manifest_comes_back_as_it_was(tmp_path):
    """A field that is lost on the way is a proof that is lost."""
    manifest = _manifest(tmp_path / "model.fp16.onnx")
    save_manifest(manifest, tmp_path / "model.json")
    assert load_manifest(tmp_path / "model.json") == manifest
    assert manifest.artefacts[0].sha256 == sha256_of(tmp_path / "model.fp16.onnx")
    assert find_manifest(tmp_path / "model.fp16.onnx") == tmp_path / "model.json"
    assert find_manifest(tmp_path / "other.onnx") is None


@pytest.mark.parametrize(
    ("found", "verified"),
    [((True, None), True), ((True, False, None), False), ((None, None), None), ((), None)],
)
def test_an_export_is_verified_where_nothing_that_was_run_is_not(found, verified):
    """Whoever embeds the export asks this one thing before the folder is shipped."""
    artefact = Artefact(file="model.onnx", kind="onnx", sha256="0" * 64, size=1)
    artefacts = tuple(dataclasses.replace(artefact, verified=one) for one in found)
    assert Manifest(spec=SPEC, source="net.pth", artefacts=artefacts).verified is verified


def test_a_breach_is_raised_with_its_file_its_figure_and_the_manifest():
    """And nothing is raised for figures that hold."""
    figures = (
        {"on": "noise (2 pictures)", "breaches": ["PSNR 19.00 dB < 20 dB"]},
        {"on": "drawn", "breaches": []},
    )
    artefact = Artefact(file="model.fp16.onnx", kind="onnx", sha256="0" * 64, size=1, parity=figures)
    manifest = Manifest(spec=SPEC, source="net.pth", artefacts=(artefact,))
    said = r"model\.fp16\.onnx on noise: PSNR 19\.00 dB < 20 dB\. .*out/model\.json"
    with pytest.raises(ParityError, match=said):
        manifest.raise_if_breached("out/model.json")
    kept = dataclasses.replace(artefact, parity=figures[1:])
    dataclasses.replace(manifest, artefacts=(kept,)).raise_if_breached()


@pytest.mark.parametrize(
    ("made", "advice"),
    [
        ({"bf16": False, "fp32": True}, "What is in fp32 is verified. Run: with --precision fp16, and look"),
        ({"fp16": False}, "Run: with --precision bf16 or fp32, and look"),
        ({"int8": False, "fp16": True, "fp32": True}, "What is in fp16 and fp32 is verified. Look at"),
        ({"fp16": False, "bf16": False, "fp32": False}, "json. Look at the layers"),
    ],
)
def test_a_refusal_never_advises_what_was_tried(made, advice):
    """Told to try the format that was just refused, one believes nothing that a tool says."""
    artefacts = tuple(
        Artefact(
            file=f"model.{precision}.onnx",
            kind="onnx",
            sha256="0" * 64,
            size=1,
            precision=precision,
            verified=holds,
            parity=({"on": "noise", "breaches": [] if holds else ["PSNR 19.00 dB < 20 dB"]},),
        )
        for precision, holds in made.items()
    )
    with pytest.raises(ParityError) as caught:
        Manifest(spec=SPEC, source="net.pth", artefacts=artefacts).raise_if_breached()
    assert advice in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1, "spec": {}}', "<html>"])
def test_a_broken_manifest_is_one_error_of_ours(tmp_path, text):
    """A KeyError in the runtime says nothing to its user."""
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ExportError, match="is not a manifest of this package"):
        load_manifest(tmp_path / "model.json")


def test_a_missing_package_names_its_install_line():
    """ModuleNotFoundError tells nobody which extra brings it."""
    with pytest.raises(MissingDependencyError, match=r"pip install 'esrgan-deploy\[pycuda\]'"):
        require("no_such_package_at_all", extra="pycuda")


def test_two_onnxruntimes_are_refused(tmp_path):
    """Both unpack into one folder, and what is left fails in ways that name neither."""
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.99.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.99\n"
        )
    code = "from esrgan_deploy._optional import require; require('onnxruntime', extra='cpu')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert "the extras cpu and cuda exclude each other" in last
    assert "onnxruntime-gpu 1.99" in last


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CheckpointError("two\nlines"), 1, "tool: two lines"),
        (OSError(28, "No space left on device", "m.onnx"), 1, "tool: No space left on device: m.onnx"),
        (MemoryError("need 28 GiB"), 1, "tool: memory ran out (need 28 GiB). Use a smaller"),
        (KeyboardInterrupt(), 130, "tool: stopped by Ctrl-C; nothing was left half-written"),
    ],
)
def test_an_own_error_is_one_line_and_its_status(capsys, error, status, line):
    """A traceback for a typo in a path scares users away."""

    @one_line_errors("tool")
    def main() -> int:
        raise error

    assert main() == status
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)


def test_a_bug_keeps_its_traceback():
    """Hidden behind one line it could never be found."""

    @one_line_errors("tool")
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_every_error_is_one_of_ours():
    """`except EsrganDeployError` must catch all that is raised on purpose."""
    for name in _errors.__all__:
        assert issubclass(getattr(_errors, name), EsrganDeployError)


def test_writing_never_touches_the_umask_of_the_process(tmp_path, monkeypatch):
    """A file that another thread makes in between would be open to everybody."""
    set_to = []
    monkeypatch.setattr(os, "umask", lambda mask: set_to.append(mask) or 0o022)
    with replaced_atomically(tmp_path / "out.bin") as temporary:
        temporary.write_bytes(b"whole")
    assert set_to == []
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_failures_that_a_caller_answers_are_public():
    """A host program could not tell memory that ran out from a model that cannot run."""
    import esrgan_deploy
    from esrgan_deploy import runtime

    for name in ("OutOfMemoryError", "DeviceLostError"):
        error = getattr(esrgan_deploy, name)
        assert getattr(runtime, name) is error
        assert issubclass(error, esrgan_deploy.InferenceError)
