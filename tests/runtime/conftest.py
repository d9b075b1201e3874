"""Graphs and pictures for the tests of the runtime."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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
