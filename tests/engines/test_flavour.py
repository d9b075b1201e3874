"""Which TensorRT is used, and what is said where there is none."""

import sys
from pathlib import Path

import pytest

from esrgan_deploy import _flavour
from esrgan_deploy._errors import EngineBuildError, MissingDependencyError
from esrgan_deploy._flavour import Flavour, gpu_is_usable, open_flavour

FAKE = """
__version__ = "11.4.0.106"
class IBuilderConfig:
    create_timing_cache = hardware_compatibility_level = None
class IRuntimeConfig: pass
class Runtime: pass
class ILogger:
    def __init__(self): pass
"""


@pytest.fixture
def fake_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "FakeTensorRT":
    """A place for a module called ``tensorrt``; nothing that was opened before or in the test is kept."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    _flavour._imported.cache_clear()
    yield FakeTensorRT(tmp_path)
    sys.modules.pop("tensorrt", None)
    _flavour._imported.cache_clear()


class FakeTensorRT:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, source: str) -> None:
        (self._folder / "tensorrt.py").write_text(source)


def test_rtx_opens_by_name_with_what_it_can_do() -> None:
    """A capability that is not found here turns an option off for every user of RTX."""
    flavour = open_flavour("tensorrt_rtx")
    assert flavour.name == "tensorrt_rtx"
    assert flavour.version.split(".")[0].isdigit()
    assert {"compute_capabilities", "engine_validity"} <= flavour.capabilities
    assert not {"hardware_compatibility", "timing_cache"} & flavour.capabilities
    assert flavour.builds_without_gpu


def test_one_logger_serves_a_process() -> None:
    """A second logger would be ignored by TensorRT with a warning, and its errors lost."""
    assert open_flavour("tensorrt_rtx").logger is open_flavour().logger


def test_auto_takes_rtx_where_tensorrt_has_no_libraries(fake_tensorrt: FakeTensorRT) -> None:
    """The bindings alone install from the registry and raise on import: auto has to go on."""
    fake_tensorrt.write("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    assert open_flavour("auto").name == "tensorrt_rtx"


def test_asking_for_tensorrt_without_libraries_names_the_reason(fake_tensorrt: FakeTensorRT) -> None:
    """Without the reason, 'does not import' sends the user in circles."""
    fake_tensorrt.write("raise ImportError('libnvinfer.so.11: cannot open\\nshared object file')")
    with pytest.raises(MissingDependencyError, match=r"libnvinfer\.so\.11: cannot open shared") as caught:
        open_flavour("tensorrt")
    assert "pip install 'esrgan-deploy[tensorrt]'" in str(caught.value)


@pytest.mark.parametrize(("usable", "name"), [(False, "tensorrt_rtx"), (True, "tensorrt")])
def test_auto_takes_full_tensorrt_only_where_a_gpu_can_be_used(
    fake_tensorrt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, usable: bool, name: str
) -> None:
    """Without a GPU it imports and makes no builder; RTX on a data-centre GPU is refused or slow."""
    fake_tensorrt.write(FAKE)
    monkeypatch.setattr(_flavour, "gpu_is_usable", lambda: usable)
    for asked in ("auto", None):
        flavour = open_flavour(asked)
        assert flavour.name == name
        assert ({"timing_cache", "hardware_compatibility"} <= flavour.capabilities) is usable
        assert flavour.builds_without_gpu is not usable


def test_none_at_all_names_both_ways_to_install_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has to learn that there is a flavour for a machine without a GPU."""
    _flavour._imported.cache_clear()
    for name in _flavour.FLAVOURS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError) as caught:
        open_flavour()
    _flavour._imported.cache_clear()
    assert "'esrgan-deploy[rtx]'" in str(caught.value)
    assert "'esrgan-deploy[tensorrt]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_flavour_asked_for_by_name_gives_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fallback to the other flavour would build a plan that the user's runtime cannot load."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"esrgan-deploy\[tensorrt\]"):
        open_flavour("tensorrt")


def test_unknown_name_is_refused_with_those_allowed() -> None:
    """A typing error must not mean 'auto'."""
    with pytest.raises(EngineBuildError, match="'rtx'; allowed: auto, tensorrt, tensorrt_rtx"):
        open_flavour("rtx")


def test_a_listener_hears_tensorrt_and_the_last_error_is_kept() -> None:
    """Without what TensorRT logs, no error of it can be explained."""
    flavour = open_flavour("tensorrt_rtx")
    heard: list[tuple[str, str]] = []
    with flavour.listen(lambda severity, message: heard.append((severity, message))):
        _provoke_an_error(flavour)
    assert any(severity == "ERROR" and "setComputeCapability" in message for severity, message in heard)
    assert flavour.last_error
    count = len(heard)
    _provoke_an_error(flavour)
    assert len(heard) == count


def test_what_a_listener_raises_comes_out_at_the_end_of_the_block() -> None:
    """Raised in the callback it would travel through C++ and end the process; dropped it hides Ctrl-C."""
    flavour = open_flavour("tensorrt_rtx")

    def interrupted(severity: str, message: str) -> None:
        raise KeyboardInterrupt

    def whole_block() -> None:
        with flavour.listen(interrupted):
            _provoke_an_error(flavour)
            reached.append(True)

    reached: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        whole_block()
    assert reached == [True]
    with flavour.listen(lambda severity, message: None):
        pass


def test_gpu_is_usable_agrees_with_the_driver() -> None:
    """A false yes makes auto choose a TensorRT that cannot build."""
    assert gpu_is_usable() == Path("/proc/driver/nvidia/version").exists()


def _provoke_an_error(flavour: Flavour) -> None:
    trt = flavour.module
    builder = trt.Builder(flavour.logger)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert not config.set_compute_capability(trt.ComputeCapability(90), 0)
