"""The house is in order: arrows, rooms, wheel, public names, sizes."""

import importlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("rooms", ROOT / "scripts" / "rooms.py")
rooms = importlib.util.module_from_spec(_spec)
sys.modules["rooms"] = rooms
_spec.loader.exec_module(rooms)


@pytest.fixture(scope="module")
def house():
    return rooms.read()


@pytest.fixture
def copy(tmp_path):
    """A checkout to spoil."""
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "tests", "results")
    )
    return tree


def test_nothing_imports_in_a_circle(house):
    """Files, or rooms, that need each other can be neither read nor changed alone."""
    assert list(house.circles()) == []


def test_no_room_reaches_into_the_private_files_of_another(house):
    """What a room shows stands in its __init__; behind that it must be free to change."""
    assert house.reaches == []


def test_a_planted_circle_between_files_is_found(copy):
    """A test of circles that finds none, whatever is there, guards nothing."""
    plan = copy / "runtime" / "tiling" / "_plan.py"
    plan.write_text(plan.read_text() + "\n\nfrom esrgan_deploy.runtime.tiling._seams import measure_seams\n")
    (found,) = rooms.read(copy).circles()
    assert found.startswith("esrgan_deploy.runtime.tiling: ")


def test_a_planted_circle_between_rooms_is_found_behind_what_an_init_hands_on(copy):
    """The import names no file of the room above, and needs it all the same."""
    driver = copy / "runtime" / "device" / "_driver.py"
    driver.write_text(
        driver.read_text() + "\n\ndef f():\n    from esrgan_deploy.runtime.sessions import SessionInfo\n"
    )
    assert any("sessions" in found and "device" in found for found in rooms.read(copy).circles())


def test_a_planted_reach_is_found(copy):
    """A private import in another room, be it in a function."""
    options = copy / "engines" / "_options.py"
    options.write_text(
        options.read_text() + "\n\ndef f():\n    import esrgan_deploy.runtime.device._driver\n"
    )
    (found,) = rooms.read(copy).reaches
    assert found == "engines/_options.py reaches into esrgan_deploy.runtime.device._driver"


def test_what_an_init_hands_on_is_there(house):
    """A name in __all__ that is not there breaks whoever imports it, when it is first asked for."""
    for room in sorted(house.rooms):
        module = importlib.import_module(room)
        # A room that is only a folder for its own hands on nothing, and has no code either.
        names = module.__all__ if len(house.files[room].read_text().splitlines()) > 1 else []
        assert len(set(names)) == len(names), room
        for name in names:
            assert getattr(module, name) is not None, f"{room}.{name}"
            assert name in dir(module)


def test_no_folder_is_two_rooms_and_no_file_two_files(house):
    """Past fifteen files, or four hundred lines, two are easier to find one's way in."""
    in_folder = dict.fromkeys(house.rooms, 0)
    for module, path in house.files.items():
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{module} has {lines} lines"
        if path.name != "__init__.py":
            in_folder[module.rpartition(".")[0]] += 1
    assert {room: number for room, number in in_folder.items() if number > 15} == {}


def test_the_arrows_in_the_document_are_those_of_the_code(house):
    """A drawing that no longer holds is worse than none. Run: python3 scripts/rooms.py --write"""
    page = (ROOT / rooms.PAGE).read_text()
    drawn = page.split(rooms.MARKS[0])[1].split(rooms.MARKS[1])[0].strip()
    assert drawn == rooms.arrows(house).strip()
    assert "    runtime --> engines\n" in drawn


def test_every_package_is_declared(house):
    """One that is missing from `packages` imports in an editable install and is absent from the wheel."""
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["packages"]) == set(settings["package-dir"]) == house.rooms
    mapped = {ROOT / folder for folder in settings["package-dir"].values()}
    tops = {ROOT / "src" / "esrgan_deploy", *(f for f in mapped if f.parent == ROOT)}
    assert {path.parent for top in tops for path in top.rglob("__init__.py")} == mapped


@pytest.mark.slow
def test_the_wheel_holds_what_the_tree_holds(house, copy, tmp_path):
    """A module or the shipped model left out of the wheel fails only at the user's; a study in it is dead weight."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(copy)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = {".typed", ".onnx", ".safetensors", ".md", ".yaml", ".html", ".j2"}
    expected = set()
    for room, folder in ((room, house.files[room].parent) for room in house.rooms):
        prefix = room.replace(".", "/")
        kept = [path for path in folder.rglob("*") if path.suffix in data or path.name == "py.typed"]
        expected |= {
            f"{prefix}/{path.relative_to(folder).as_posix()}" for path in [*folder.glob("*.py"), *kept]
        }
    assert inside == expected
    assert not any("studies" in name or "tests" in name for name in inside)
