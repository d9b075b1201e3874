"""Graphs and pictures for the tests of the runtime."""

import ctypes
import dataclasses
import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest


def _helper(name: str) -> ModuleType:
    # Importlib mode does not let tests import what lies beside them.
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"runtime_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def graphs() -> ModuleType:
    """The module helpers_graphs."""
    return _helper("helpers_graphs")


@pytest.fixture(scope="session")
def sessions() -> ModuleType:
    """The module helpers_sessions."""
    return _helper("helpers_sessions")


@pytest.fixture(scope="session")
def drivers() -> ModuleType:
    """The module helpers_cuda."""
    return _helper("helpers_cuda")


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """A plan on a simulated GPU: ``rig(rtx=True, health=True)`` has a driver, an engine and ``open()``."""
    from esrgan_deploy._flavour import Flavour, open_flavour
    from esrgan_deploy._manifest import Artefact
    from esrgan_deploy.runtime import SessionOptions
    from esrgan_deploy.runtime.device import _driver as _cuda
    from esrgan_deploy.runtime.sessions.plan import Admitted, _parts
    from esrgan_deploy.runtime.sessions.plan import _session as _session_plan

    driver_helper, engine_helper = _helper("helpers_cuda"), _helper("helpers_trt")
    monkeypatch.setenv("ESRGAN_DEPLOY_CACHE", str(tmp_path / "cache"))

    def build(
        *,
        rtx: bool = False,
        driver: dict[str, Any] | None = None,
        content: bytes = b"plan",
        parts: dict[str, Any] | None = None,
        **engine: Any,
    ) -> Any:
        # What an earlier test left in cycles would give its memory back to this driver.
        gc.collect()
        gpu = driver_helper.FakeDriver(**(driver or {}))
        kind = engine_helper.FakeRtxEngine if rtx else engine_helper.FakeEngine
        net = kind(gpu, open_flavour("tensorrt_rtx").logger, **engine)
        admitted = Admitted(
            path=tmp_path / "model.plan",
            content=content,
            artefact=None,
            flavour=engine_helper.flavour_of(net, Flavour),
            facts=None,
        )
        trunk = tail = None
        if parts is not None:
            how = {"step": 1, "most": (200, 120), "tile": 12, "map_dtype": engine_helper.trt.float16, **parts}
            trunk, tail = engine_helper.parts_of(net, **how)
            entry = Artefact(
                file="model.plan", kind="plan", sha256="0" * 64, size=4, form=net.form, built_from="model.onnx",
                size_multiple=how["step"],
            )  # fmt: skip
            admitted = dataclasses.replace(admitted, artefact=entry)
            beside = {}
            for name, part in (("trunk", trunk), ("tail", tail)):
                path = tmp_path / f"model.{name}.plan"
                path.touch()
                beside[path] = dataclasses.replace(
                    admitted, path=path, flavour=engine_helper.flavour_of(part, Flavour),
                    artefact=dataclasses.replace(entry, file=path.name, kind="part", reach=engine_helper.REACH),
                )  # fmt: skip
            monkeypatch.setattr(_parts, "check_plan", lambda path, **how: beside[path])
        monkeypatch.setattr(_cuda, "_driver", lambda: gpu)
        monkeypatch.setattr(_session_plan, "admit_plan", lambda path, options: admitted)

        def open_plan(**options: Any) -> Any:
            return _session_plan.PlanSession(admitted.path, SessionOptions(**options))

        def stream(plan: Any) -> int:
            return int(gpu.make_stream(plan._device.context))

        def array(*shape: Any, **how: Any) -> Any:
            return driver_helper.FakeArray(gpu, *shape, **how)

        return SimpleNamespace(
            driver=gpu, engine=net, admitted=admitted, open=open_plan, stream=stream, array=array, trunk=trunk,
            tail=tail, tail_of=engine_helper.tail_of,
        )  # fmt: skip

    return build


@pytest.fixture
def counted_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver's libraries count one device; nothing can be run on it."""
    real = ctypes.CDLL

    def count_one(count: Any) -> int:
        count._obj.value = 1
        return 0

    libraries = {
        "libcuda.so.1": SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGetCount=count_one),
        "libnvidia-ml.so.1": SimpleNamespace(
            nvmlInit_v2=lambda: 0, nvmlDeviceGetCount_v2=count_one, nvmlShutdown=lambda: 0
        ),
    }
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name, *more, **how: libraries.get(name) or real(name, *more, **how)
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def make(graphs: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Write a graph: ``make("nearest", scale=4, dtype="fp16")``."""

    def write(kind: str, *, name: str = "model.onnx", io: dict[str, Any] | None = None, **body: Any) -> Path:
        written: Path = graphs.write_graph(tmp_path / name, getattr(graphs, kind)(**body), **(io or {}))
        return written

    return write


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """A picture of noise: ``noise(5, 7, 3)``."""

    def picture(*shape: int, dtype: type = np.uint8, seed: int = 1) -> np.ndarray:
        rng = np.random.default_rng(seed)
        if dtype is np.float32:
            return rng.random(shape, np.float32)
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)

    return picture
