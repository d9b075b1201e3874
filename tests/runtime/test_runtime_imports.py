"""What importing costs, and what is public."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import esrgan_deploy
from esrgan_deploy import runtime

HEAVY = ("torch", "onnx", "onnxruntime", "PIL", "av", "tensorrt", "tensorrt_rtx", "safetensors", "onnxscript")


@pytest.mark.parametrize("module", ["esrgan_deploy", "esrgan_deploy.runtime", "esrgan_deploy.runtime._cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    """A pipeline that only runs plans must not need, or wait for, what exports them."""
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", [esrgan_deploy, runtime])
def test_all_is_sorted_and_resolves(package: ModuleType) -> None:
    """A name in __all__ that does not exist breaks `from package import *` only."""
    assert package.__all__ == sorted(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)


@pytest.mark.parametrize("package", [esrgan_deploy, runtime])
def test_type_checkers_see_the_names_that_are_resolved(package: ModuleType) -> None:
    """The names stand twice, for the checker and for __getattr__; a slip in one shows nowhere else."""
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    imported = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("esrgan_deploy")
        for alias in node.names
    }
    assert {name for _, name in imported} == set(package.__all__) - {"__version__"}
    for module, name in imported:
        assert getattr(importlib.import_module(str(module)), name) is getattr(package, name)


def test_the_package_stays_small() -> None:
    """Twenty names are what a reader takes in."""
    assert len(esrgan_deploy.__all__) <= 20


def test_an_unknown_name_is_an_attribute_error() -> None:
    """hasattr and pickling rely on it."""
    assert not hasattr(esrgan_deploy, "Downscaler")
    assert not hasattr(runtime, "Downscaler")
    assert {"Upscaler", "plan_tiles"} <= set(dir(runtime))
