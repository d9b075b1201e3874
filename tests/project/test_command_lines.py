"""Every command's own command line: what is typed wrongly is one line and exit status 2, never a traceback."""

import contextlib
import importlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import esrgan_deploy
from esrgan_deploy.export import ExportOptions

# What each is given beside its options: input that is not there, so that no command comes to its work.
COMMANDS = {
    "runtime._cli": ["in.png", "--model=gone.onnx"],
    "export._cli": ["gone.pth"],
    "benchmarks._cli": ["gone.onnx"],
    "training._cli": ["run", "gone.yaml"],
    "engines.rebuild": ["gone.plan"],
}

LINE = re.compile(r"  (?:-\w(?: \S+)?, )?(--[\w-]+)(?:,? \S.*?)?(?:  .*)?")

TEXTS = st.one_of(
    st.integers().map(str),
    st.integers(-3, 300).map(str),
    st.sampled_from(["9" * 5000, str(2**31), str(2**63), "-1", "0", "-0", "1_0", "１", "²", "0x10", "1e9"]),
    st.floats().map(str),
    st.sampled_from(["nan", "inf", "-inf", "1e-400", "1e400", "5e-324"]),
    st.sampled_from(
        ["", " ", ",", ",,", "x", ":", "=", ".", "-", "--", "\0", "a\0b", "猫", "\udcff", "a" * 300]
    ),
    st.lists(st.integers(-2, 2**33).map(str), max_size=4).map(",".join),
    st.lists(st.integers(-2, 2**33).map(str), min_size=2, max_size=4).map("x".join),
    st.tuples(
        st.sampled_from(["shape", "batch", "streams", "tile", "depth"]),
        st.lists(
            st.sampled_from(["0", "-1", "1", "8x8", "1x8x8", "9" * 30, "9" * 5000, "1x" + "9" * 20 + "x1"])
        ),
    ).map(lambda pair: f"{pair[0]}={','.join(pair[1])}"),
    st.sampled_from(
        ["auto", "fp16", "int8", "fp8", "int8-cpu", "cpu", "cuda", "ampere+", "8.6,current", "psnr"]
    ),
    st.text(st.characters(exclude_characters="/"), max_size=12),
)


def _main(name: str) -> Callable[[Sequence[str]], int]:
    main: Callable[[Sequence[str]], int] = importlib.import_module(f"esrgan_deploy.{name}").main
    return main


def _run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> tuple[object, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status: object = main([*arguments])
        except SystemExit as stopped:
            status = stopped.code
    return status, said.getvalue()


def _flags(name: str) -> list[str]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        _main(name)([*COMMANDS[name], "--help"])
    found = [match[1] for line in shown.getvalue().splitlines() if (match := LINE.fullmatch(line))]
    return [flag for flag in found if flag not in ("--help", "--version")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a picture of 2x2 in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Image.new("RGB", (2, 2)).save("in.png")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_line_is_a_traceback(name: str, place: Path) -> None:
    """A typing error answered by a traceback reads like a broken program, and a script takes it for a failure."""
    main, flags = _main(name), _flags(name)
    assert len(flags) >= 3

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(st.lists(st.tuples(st.sampled_from(flags), st.none() | TEXTS), min_size=1, max_size=3))
    def run(options: list[tuple[str, str | None]]) -> None:
        typed = [flag if value is None else f"{flag}={value}" for flag, value in options]
        # --list is what it says, and no error.
        status, said = _run(main, [*COMMANDS[name], *typed])
        assert status in (1, 2) or "--list" in typed, (typed, status)
        lines = [line for line in said.splitlines() if ": note: " not in line]
        assert len(lines) == 1 or status == 0, (typed, said)

    run()
    assert [path.name for path in place.iterdir()] == ["in.png"]


@pytest.mark.parametrize(
    "command",
    [
        *("runtime._cli", "export._cli", "benchmarks._cli", "engines.rebuild", "training._cli"),
        *("training._cli run", "training._cli recipe", "training._cli interpolate"),
    ],
)
def test_every_command_shows_its_version_and_an_example(command: str) -> None:
    """Who reports an error is asked for the version first, and who begins copies the example."""
    module, *sub = command.split()
    shown = io.StringIO()
    for flag in ("--version", "--help"):
        with contextlib.redirect_stdout(shown), pytest.raises(SystemExit, match=r"^0$"):
            _main(module)([*sub, flag])
    prog = shown.getvalue().partition(f" {esrgan_deploy.__version__}\n")[0]
    assert re.search(rf"\nexamples?:\n(.*\n)*  {re.escape(prog)} ", shown.getvalue())


def test_a_list_goes_by_comma_and_by_repetition(place: Path) -> None:
    """Four commands had three ways to give several values, and each the wrong one of another."""
    for command, line, says in (
        ("export._cli", "gone.pth --precision fp32,fp64", "'fp64' is not allowed; allowed are fp32"),
        ("export._cli", "gone.pth --precision=fp16, ", "'fp16,' is no list by comma"),
        ("runtime._cli", "in.png --device 0,1,0", "device is 0,1,0; name each once"),
        ("runtime._cli", "in.png --device 1 --device 1", "device is 1,1; name each once"),
        ("benchmarks._cli", "gone.onnx --peers torch,caffe", "'caffe' is not allowed"),
        ("training._cli", "run --milestones 5,x", "'x' is not a whole number"),
    ):
        status, said = _run(_main(command), line.split())
        assert (status, says in said) == (2, True), said


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["--opset", "16"], "at least 17"),
        (["--opset", "24"], "at most 23"),
        (["--outscale", "0"], "above 0"),
        (["--outscale", "nan"], "finite"),
        (["--optimization-level", "6"], "at most 5"),
        (["--precision", "fp16,fp64"], "allowed are fp32, fp16"),
        (["--aux-streams", str(2**31)], f"at most {2**31 - 1}"),
        (["--shapes", "axb"], "axb"),
        (["--workspace", "nan"], "nan"),
        (["--memory-limit", "inf"], "inf"),
        (["--budget", "nan"], "nan"),
        (["--explain", ""], ""),
        (["--compute-capabilities", "8.6,current"], "compute_capabilities is 8.6, current"),
    ],
)
def test_a_value_beyond_its_limits_is_refused_with_what_is_allowed(
    place: Path, typed: list[str], says: str
) -> None:
    """The builder would refuse it after minutes, in its own words; scripts tell it from a bad model by the status."""
    status, said = _run(_main("export._cli"), ["gone.pth", "=".join(typed)])
    assert status == 2
    assert said.startswith("esrgan-export: ")
    assert said.count("\n") == 1
    assert typed[0] in said or typed[0][2:].replace("-", "_") in says
    assert says in said


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"opset": 24}, "opset is 24; it is at most 23"),
        ({"outscale": -1.0}, "outscale is -1.0; it is above 0"),
        ({"form": "uint16"}, "form is uint16; allowed are float, uint8"),
        ({"precisions": ("fp64",)}, "allowed are fp32, fp16"),
    ],
)
def test_a_program_is_refused_what_a_command_line_is(fields: dict[str, object], says: str) -> None:
    """A limit that only the parser knows is none for whoever embeds the export."""
    with pytest.raises(esrgan_deploy.ExportError, match=re.escape(says)):
        ExportOptions(**fields)  # type: ignore[arg-type]
