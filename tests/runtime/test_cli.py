"""The command esrgan-upscale from end to end."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from esrgan_deploy.runtime import Picture, read_picture, write_picture
from esrgan_deploy.runtime._cli import main

Make = Callable[..., Path]
Noise = Callable[..., np.ndarray]


@pytest.fixture
def lr(tmp_path: Path, noise: Noise) -> Path:
    """A small picture on disk."""
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with exit status 1 and one line; return the line."""
    assert main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("esrgan-upscale: ")
    return printed.err


@pytest.mark.parametrize("io", [{}, {"form": "uint8"}, {"dtype": "fp16"}], ids=["fp32", "uint8", "fp16"])
def test_a_photograph_end_to_end(make, tmp_path, capsys, io):
    """The whole way: file, tiles, net, file; and the line says what was made, from what, with what."""
    photograph = skimage.data.astronaut()[100:301, 80:401]
    Image.fromarray(photograph).save(tmp_path / "in.png")
    model = make("nearest", name="net.onnx", io=io)
    arguments = ["in.png", "-o", "big.png", "--model", "net.onnx", "--tile", "96", "--threads", "1"]
    arguments = [str(tmp_path / a) if "." in a else a for a in arguments]
    assert model.name in arguments[4]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    made = r"big\.png: 321x201 -> 1284x804 with net\.onnx \(x4, ONNX Runtime [\d.]+, CPU\), "
    assert re.search(made + "24 tiles of 96x96, halo 16", out)
    with Image.open(tmp_path / "big.png") as image:
        expected = np.repeat(np.repeat(photograph, 4, axis=0), 4, axis=1)
        np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(("scale", "name"), [(4, "in_x4.png"), (1.5, "in_x1.5.png")])
def test_the_default_name_says_the_scale(make, lr, scale, name):
    """Beside the input, so that it is found; never the input's own name."""
    assert main([str(lr), "--model", str(make("nearest", scale=scale))]) == 0
    assert (lr.parent / name).is_file()


def test_metadata_and_alpha_and_depth_travel(make, tmp_path, noise):
    """What read and write keep, the command keeps."""
    pixels = np.maximum(noise(12, 10, 4, dtype=np.uint16), 1)
    exif = Image.Exif()
    exif[0x010E] = "a description"
    picture = Picture(pixels=pixels, icc=b"a profile", exif=exif.tobytes(), dpi=(300.0, 300.0))
    write_picture(tmp_path / "in.png", picture)
    out = tmp_path / "out.png"
    assert main([str(tmp_path / "in.png"), "-o", str(out), "--model", str(make("nearest", scale=2))]) == 0
    back = read_picture(out)
    np.testing.assert_array_equal(back.pixels, np.repeat(np.repeat(pixels, 2, axis=0), 2, axis=1))
    assert (back.icc, back.exif) == (picture.icc, picture.exif)


def test_what_is_lost_is_told_on_stderr(make, tmp_path, noise, capsys):
    """Neither silent nor an error: the user chose the format and the model."""
    write_picture(tmp_path / "in.png", Picture(pixels=noise(8, 8, 3, dtype=np.uint16)))
    model = make("nearest", io={"form": "uint8"})
    assert main([str(tmp_path / "in.png"), "-o", str(tmp_path / "out.jpg"), "--model", str(model)]) == 0
    err = capsys.readouterr().err
    assert "note: JPEG holds 8 bits" in err
    assert "note: the model computes on 8 bits" in err


def test_existing_outputs_need_force(make, lr, capsys):
    """Also under the default name, which the user did not type; and before an hour of work, not after."""
    older = lr.with_name("in_x4.png")
    older.write_bytes(b"older")
    # This model would fail on this picture if it came to that.
    assert "--force" in failure(capsys, lr, "--model", make("broken"))
    assert older.read_bytes() == b"older"
    model = make("nearest")
    assert main([str(lr), "--model", str(model), "--force"]) == 0
    assert older.read_bytes() != b"older"


def test_the_input_is_never_the_output(make, lr, capsys):
    """--force is for older results, not for the original."""
    before = lr.read_bytes()
    assert "is the input" in failure(capsys, lr, "-o", lr, "--model", make("nearest"), "--force")
    assert lr.read_bytes() == before


@pytest.mark.parametrize(
    ("output", "says"),
    [("out.gif", ".png"), ("gone/out.png", "exists and is writable"), ("out", "no suffix")],
)
def test_a_bad_output_is_refused_before_the_model_is_opened(lr, capsys, output, says):
    """The model here does not exist, and that is not what is complained of."""
    assert says in failure(capsys, lr, "-o", lr.parent / output, "--model", lr.parent / "gone.onnx")


def test_alpha_into_jpeg_is_refused_before_the_work(make, tmp_path, noise, capsys):
    """And names the formats that hold it."""
    Image.fromarray(noise(8, 8, 4)).save(tmp_path / "in.png")
    line = failure(capsys, tmp_path / "in.png", "-o", tmp_path / "out.jpg", "--model", make("broken"))
    assert "transparency" in line
    assert ".png" in line


def test_a_failing_model_leaves_nothing(make, tmp_path, capsys):
    """No black picture, no half of one, no temporary file."""
    Image.new("RGB", (9, 9), "white").save(tmp_path / "in.png")
    model = make("broken")
    before = sorted(tmp_path.iterdir())
    assert "NaN" in failure(capsys, tmp_path / "in.png", "--model", model)
    assert sorted(tmp_path.iterdir()) == before


def test_corrupt_pictures_are_one_line_and_exit_1(assets, make, tmp_path, capsys):
    """All fourteen that PngSuite corrupted on purpose."""
    model = make("nearest")
    for file in sorted((assets / "images" / "pngsuite").glob("x*.png")):
        assert file.name in failure(capsys, file, "-o", tmp_path / "out.png", "--model", model)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["--tile", "some"], ["--tile", "-5"], ["--halo", "-1"], ["--tile", "32", "--halo", "16"],
        ["--threads", "0"], ["--threads", "many"], ["--max-pixels", "0"], ["--unknown"],
    ],
)  # fmt: skip
def test_usage_errors_are_exit_2(lr, arguments, capsys):
    """A script tells a wrong call from a bad picture by the status."""
    with pytest.raises(SystemExit) as caught:
        main([str(lr), *arguments] if arguments else [])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_pixel_limit_can_be_raised(make, lr, capsys):
    """The line says the number to give."""
    line = failure(capsys, lr, "--model", make("nearest"), "--max-pixels", "599")
    assert "--max-pixels 600" in line
    assert main([str(lr), "--model", str(make("nearest")), "--max-pixels", "600"]) == 0


def test_a_one_pixel_picture_is_enlarged(make, tmp_path):
    """Also by a net that wants multiples of four."""
    Image.new("RGB", (1, 1), (9, 99, 199)).save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    assert main([str(tmp_path / "in.png"), "-o", str(out), "--model", str(make("unshuffled", factor=4))]) == 0
    assert read_picture(out).pixels.shape == (2, 2, 3)


def test_progress_is_shown_on_a_terminal_only(make, lr):
    """In a log file a carriage return per tile is a page of noise."""
    code = "import sys; from esrgan_deploy.runtime._cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, str(lr), "--model", str(make("nearest")), "--force"]
    command += ["--tile", "12", "--halo", "2"]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stderr == b""
    leader, follower = pty.openpty()
    terminal = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    subprocess.run(command, stderr=follower, stdout=subprocess.DEVNULL, check=True, env=terminal)
    os.close(follower)
    seen = os.read(leader, 65536).decode()
    os.close(leader)
    assert "tile 12 of 12" in seen
    # Cleared, so that what follows starts on a clean line.
    assert seen.endswith("\x1b[2K")


@pytest.mark.parametrize("name", ["out.png", "out.tif", "out.jpg", "out.webp", "out.bmp"])
def test_a_full_disk_leaves_nothing(make, lr, name):
    """A limit on file sizes fails as a full disk does, with a short write first."""
    model = make("nearest")
    before = sorted(lr.parent.iterdir())
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from esrgan_deploy.runtime._cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, str(lr), "-o", str(lr.parent / name), "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"esrgan-upscale: .*{name} cannot be written \(.*\n", done.stderr)
    assert sorted(lr.parent.iterdir()) == before


def _typed(arguments: list[str], lr: Path, **how: Any) -> subprocess.CompletedProcess[str]:
    code = "import sys; from esrgan_deploy.runtime._cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=lr.parent, stderr=subprocess.PIPE, text=True, **how
    )


@pytest.fixture
def named(make: Make, lr: Path) -> list[str]:
    """The command line of a picture whose name no ASCII terminal shows; its output is not there yet."""
    lr.rename(lr.with_name("ü 猫.png"))
    return ["ü 猫.png", "--model", str(make("nearest")), "--threads", "1"]


def test_a_terminal_that_shows_ascii_alone_gets_the_rest_replaced(lr, named):
    """A finished picture was answered by exit status 2 because its name could not be printed."""
    done = _typed(named, lr, env={**os.environ, "PYTHONIOENCODING": "ascii"}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("\\xfc \\u732b_x4.png: 30x20 -> 120x80")
    assert lr.with_name("ü 猫_x4.png").is_file()


@pytest.mark.parametrize("stream", ["full", "closed", "gone"])
def test_a_picture_is_made_whoever_reads_of_it(lr, named, stream):
    """Scripts throw the summary away; that the picture is there decides, not whether the line could be printed."""
    if stream == "full":
        with Path("/dev/full").open("w") as full:
            done = _typed(named, lr, stdout=full)
        assert done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr
    elif stream == "closed":
        done = _typed(named, lr, preexec_fn=lambda: os.close(1))
        assert done.stderr == ""
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = _typed(named, lr, stdout=writer)
        os.close(writer)
        assert done.stderr == ""
    assert done.returncode == 0
    with Image.open(lr.with_name("ü 猫_x4.png")) as image:
        assert image.size == (120, 80)


def test_a_bug_is_not_called_a_usage_error(make, lr, monkeypatch):
    """Every ValueError of the work itself read like a wrong option, and hid where it came from."""
    from esrgan_deploy.runtime import Upscaler

    def broken(*_: object, **__: object) -> None:
        raise ValueError("operands could not be broadcast")

    monkeypatch.setattr(Upscaler, "upscale", broken)
    with pytest.raises(ValueError, match="broadcast"):
        main([str(lr), "--model", str(make("nearest"))])


@pytest.mark.parametrize("letter", ["a", "é", "猫"])
def test_a_name_as_long_as_the_file_system_allows_is_written(make, lr, letter):
    """The temporary name was longer than the name itself, and after all the work nothing could be written."""
    room = (255 - len(".png")) // len(letter.encode())
    out = lr.with_name(letter * room + ".png")
    assert main([str(lr), "-o", str(out), "--model", str(make("nearest"))]) == 0
    assert out.is_file()
    assert sorted(path.name for path in lr.parent.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("name", ["a" * 252 + ".png", "猫" * 84 + ".png"])
def test_an_impossible_name_is_refused_before_the_model_is_opened(lr, capsys, name):
    """What no file can be called is known before an hour of work, and the line says what is wrong with it."""
    line = failure(capsys, lr, "-o", lr.with_name(name), "--model", lr.with_name("gone.onnx"))
    assert "cannot be the name of a file here (File name too long)" in line


def test_a_default_name_that_is_too_long_is_refused_before_the_work(make, lr, capsys):
    """`_x4` may be more than the file system has room for; this model would fail if it came to run."""
    long = lr.rename(lr.with_name("a" * 251 + ".png"))
    assert "give another with -o" in failure(capsys, long, "--model", make("broken"))


def test_a_name_without_a_suffix_keeps_its_dots(make, lr):
    """Of "scan v1.5" the 5 is no suffix: two scans would have been written over each other."""
    scan = lr.rename(lr.with_name("scan v1.5"))
    assert main([str(scan), "--model", str(make("nearest"))]) == 0
    assert scan.with_name("scan v1.5_x4.png").is_file()


@pytest.mark.parametrize("kind", ["picture", "model", "output"])
def test_a_pipe_is_called_one_at_once(make, lr, kind):
    """Opened, it waits for a writer for ever; written over, it is no pipe any more."""
    pipe = lr.with_name("pipe.onnx" if kind == "model" else "pipe.png")
    os.mkfifo(pipe)
    model = pipe if kind == "model" else make("nearest")
    source = pipe if kind == "picture" else lr
    out = pipe if kind == "output" else lr.with_name("out.png")
    # Far longer than it takes: a command that waits for the pipe would wait for ever.
    arguments = [str(source), "-o", str(out), "--model", str(model), "--force"]
    done = _typed(arguments, lr, timeout=60, stdout=subprocess.DEVNULL)
    assert done.returncode == 1
    assert f"{pipe} is a pipe or a device" in done.stderr
    assert pipe.is_fifo()


def test_standard_input_needs_a_name_for_its_output(make, capsys):
    """There is no name beside which it could lie; the line says what to give."""
    assert main(["-", "--model", str(make("nearest"))]) == 2
    assert "-o FILE, or -o -" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["RealESRGAN_x4plus", "realesr-general-x4v3.pth"])
def test_an_official_name_is_explained(lr, capsys, name):
    """The name works for esrgan-export, so it is typed here too; the line says what to run first."""
    line = failure(capsys, lr, "--model", name)
    stem = name.removesuffix(".pth")
    assert f"run: esrgan-export {stem} -o {stem}, then give {stem}/model.onnx" in line


def test_a_large_picture_goes_in_strips(noise, tmp_path, capsys):
    """With the model that ships; the same picture as in one piece."""
    source = tmp_path / "noise.png"
    Image.fromarray(noise(40, 30, 3)).save(source)
    assert main([str(source), "-o", str(tmp_path / "strips.png"), "--strip", "16", "--threads", "1"]) == 0
    assert "5 strips of 16 rows, no seams" in capsys.readouterr().out
    assert main([str(source), "-o", str(tmp_path / "whole.png"), "--tile", "0", "--threads", "1"]) == 0
    made = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("strips", "whole")]
    np.testing.assert_array_equal(*made)
    with pytest.raises(SystemExit) as stopped:
        main([str(source), "--strip", "16", "--tile", "64"])
    assert stopped.value.code == 2
    assert "give one of them" in capsys.readouterr().err
