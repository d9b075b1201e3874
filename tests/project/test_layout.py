"""The house is in order: arrows, wheel, public names, lengths."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "base": ROOT / "src" / "esrgan_deploy",
    "runtime": ROOT / "runtime",
    "engines": ROOT / "engines",
    "export": ROOT / "export",
    "training": ROOT / "training",
    "benchmarks": ROOT / "benchmarks",
}
ALLOWED = {
    "base": set(),
    "runtime": {"base"},
    "engines": {"base", "runtime"},
    "export": {"base", "runtime", "engines"},
    "training": {"base", "runtime", "engines", "export"},
    "benchmarks": {"base", "runtime", "engines", "export", "training"},
}


def _modules():
    for room, folder in ROOMS.items():
        for path in sorted(folder.rglob("*.py")):
            yield room, path


def _rooms_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
            if node.module == "esrgan_deploy":
                names = [f"esrgan_deploy.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "esrgan_deploy":
                yield parts[1] if len(parts) > 1 and parts[1] in ROOMS else "base"


def test_the_arrows_between_rooms_are_those_of_the_architecture():
    """One import the wrong way and the runtime pulls torch into a production server."""
    facade = ROOT / "src" / "esrgan_deploy" / "__init__.py"
    found = []
    for room, path in _modules():
        if path == facade:
            # The public names are looked up in the rooms when they are used, never on import.
            continue
        found += [
            f"{path.relative_to(ROOT)} -> {to}"
            for to in _rooms_imported(path)
            if to not in ALLOWED[room] | {room}
        ]
    assert found == []


def test_every_package_is_declared():
    """One that is missing from `packages` imports in an editable install and is absent from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    mapped = {ROOT / folder for folder in settings["package-dir"].values()}
    have = {path.parent for room in ROOMS.values() for path in room.rglob("__init__.py")}
    assert have == mapped
    assert set(settings["packages"]) == set(settings["package-dir"])


@pytest.mark.slow
def test_the_wheel_holds_what_the_tree_holds(tmp_path):
    """A module or the shipped model left out of the wheel fails only at the user's."""
    # Of a copy: setuptools packs whatever an earlier build left in build/, modules that have moved since among it.
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info"))
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(tree)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = set()
    for room, folder in ROOMS.items():
        prefix = "esrgan_deploy" if room == "base" else f"esrgan_deploy/{room}"
        for path in folder.rglob("*"):
            if (
                path.suffix in {".py", ".typed", ".onnx", ".safetensors", ".md", ".yaml", ".html"}
                or path.name == "py.typed"
            ):
                expected.add(f"{prefix}/{path.relative_to(folder).as_posix()}")
    assert inside == expected
    assert not [name for name in inside if "studies" in name]


def test_no_module_outgrows_its_room():
    """Past 400 lines two rooms are easier to live in."""
    long = [
        (str(path.relative_to(ROOT)), n)
        for _, path in _modules()
        if (n := len(path.read_text().splitlines())) > 400
    ]
    assert long == []
