"""What importing costs, and what is public."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import esrgan_deploy
from esrgan_deploy import runtime

HEAVY = {
    "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "PIL", "av",
    "safetensors",
}  # fmt: skip


def loaded(code: str) -> set[str]:
    """The packages that a program has loaded at its end."""
    code = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_loads_nothing_heavy():
    """A pipeline that only runs plans must not need, or wait for, what exports them."""
    modules = ("", ".engines", ".runtime", ".runtime._cli", ".runtime.sessions.plan._session", "._flavour")
    assert loaded(f"import {', '.join(f'esrgan_deploy{module}' for module in modules)}") & HEAVY == set()


@pytest.mark.parametrize(
    "command", ["export._cli", "runtime._cli", "benchmarks._cli", "training._cli", "engines.rebuild"]
)
def test_help_loads_nothing_heavy(command):
    """A command that thinks for seconds about --help has imported what it does not need."""
    code = f"import contextlib\nfrom esrgan_deploy.{command} import main"
    assert (
        loaded(f"{code}\nwith contextlib.suppress(SystemExit): main(['--help'])") & {*HEAVY, "numpy", "rich"}
        == set()
    )


@pytest.mark.parametrize("room", ["", ".runtime", ".engines", ".export"])
def test_all_is_sorted_and_resolves(room):
    """A name in __all__ that does not exist breaks `from package import *` only."""
    package = importlib.import_module(f"esrgan_deploy{room}")
    assert list(package.__all__) == sorted(set(package.__all__))
    assert all(getattr(package, name) is not None for name in package.__all__)


@pytest.mark.parametrize("package", [esrgan_deploy, runtime])
def test_type_checkers_see_the_names_that_are_resolved(package):
    """What a checker reads as handed on and what is there when the program runs must be the same."""
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    imported = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("esrgan_deploy")
        for alias in node.names
        if alias.name != "handed_on"
    }
    assert {name for _, name in imported} == set(package.__all__) - {"__version__"}
    for module, name in imported:
        assert getattr(importlib.import_module(str(module)), name) is getattr(package, name)


def test_the_package_stays_small():
    """Twenty names are what a reader takes in."""
    assert len(esrgan_deploy.__all__) <= 20


def test_an_unknown_name_is_an_attribute_error():
    """hasattr and pickling rely on it."""
    assert not hasattr(esrgan_deploy, "Downscaler")
    assert not hasattr(runtime, "Downscaler")
    assert {"Upscaler", "plan_tiles"} <= set(dir(runtime))
