"""Ctrl-C while TensorRT builds: a real signal to a real process."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esrgan_deploy.engines import BuildOptions, ShapeRange, engine_from_onnx
from esrgan_deploy.engines._monitor import stopped_by_ctrl_c

BUILD = """
import signal, sys
from pathlib import Path
from esrgan_deploy.engines import BuildOptions, ShapeRange, engine_from_onnx

def progress(phase, step, total):
    print(f"{phase}|{step}|{total}", flush=True)

options = BuildOptions(flavour="tensorrt_rtx", shapes=ShapeRange.parse("1x16x16:1x64x64:1x128x128"))
try:
    engine_from_onnx(Path(sys.argv[1]), Path(sys.argv[2]), options, progress=progress)
except KeyboardInterrupt:
    restored = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("cancelled, handler restored:", restored, flush=True)
    sys.exit(130)
print("built", flush=True)
"""


@pytest.fixture(scope="module")
def bigger(rrdb: Callable[..., Path]) -> Path:
    """Builds for a second or more, most of it in one step that calls nobody."""
    return rrdb(blocks=6, features=64, growth=32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "delay"),
    [("Cloning network graph", 0.0), ("Timing graph nodes", 0.3), ("Building engine from subgraph", 0.1)],
)
def test_ctrl_c_ends_the_build_and_leaves_nothing(
    phase: str, delay: float, bigger: Path, tmp_path: Path
) -> None:
    """An interrupt in a callback crashes in C++; one that is swallowed builds on and writes the plan."""
    plan = tmp_path / "x.plan"
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(bigger), str(plan)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(phase):
                break
        assert lines, "the build ended before the phase"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 130, (process.returncode, rest[-500:], errors[-500:])
    assert "cancelled, handler restored: True" in rest
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_handles_ctrl_c_itself_keeps_its_handler() -> None:
    """A server's own shutdown must not be taken over by a build."""

    def own(number: int, frame: object) -> None:
        pass

    before = signal.signal(signal.SIGINT, own)
    try:
        with stopped_by_ctrl_c():
            assert signal.getsignal(signal.SIGINT) is own
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_handler_is_restored_when_the_build_fails() -> None:
    """Ctrl-C would do nothing for the rest of the program."""
    with contextlib.suppress(ValueError), stopped_by_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_build_in_a_thread_leaves_signals_alone(rrdb: Callable[..., Path], tmp_path: Path) -> None:
    """Python lets only the main thread set handlers: elsewhere the build would raise."""
    errors: list[BaseException] = []

    def build() -> None:
        try:
            options = BuildOptions(flavour="tensorrt_rtx", shapes=ShapeRange.parse("1x32x32"))
            engine_from_onnx(rrdb(), tmp_path / "x.plan", options)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert errors == []
    assert (tmp_path / "x.plan").exists()
