"""A plan that does not fit is built again from its own graph, as it was built before, and once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from esrgan_deploy._errors import EngineBuildError, EngineMismatchError, MissingDependencyError
from esrgan_deploy._files import locked, sha256_of
from esrgan_deploy._flavour import open_flavour
from esrgan_deploy._manifest import Artefact, amend_artefact, load_manifest
from esrgan_deploy.engines._rebuild import _options, rebuild_plan
from esrgan_deploy.engines.rebuild import main
from esrgan_deploy.runtime.device import DeviceFacts
from esrgan_deploy.runtime.sessions.plan import Admitted, check_plan

COMMAND = [sys.executable, "-m", "esrgan_deploy.engines.rebuild"]


@pytest.fixture
def plan(tiny_export: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_export, tmp_path / "out")
    return tmp_path / "out" / "model.fp16.plan"


def _lie(plan: Path, other: str = "", /, **fields: Any) -> None:
    place = plan.with_name("model.json")
    data = json.loads(place.read_text())
    (entry,) = [one for one in data["artefacts"] if one["file"] == (other or plan.name)]
    entry.update(fields)
    place.write_text(json.dumps(data))


def _entry(plan: Path) -> Artefact:
    entry = load_manifest(plan.with_name("model.json")).artefact(plan.name)
    assert entry is not None
    return entry


def _left_over(plan: Path) -> list[str]:
    return sorted(path.name for path in plan.parent.iterdir() if path.name.startswith("."))


def test_an_export_says_what_a_rebuild_needs(tiny_export: Path) -> None:
    """Without the options the second plan is another one than the first."""
    entry = _entry(tiny_export / "model.fp16.plan")
    assert entry.built_from == "model.fp16.onnx"
    assert entry.shapes == ((1, 16, 16), (1, 32, 32), (1, 48, 48))
    assert entry.options == {
        "workspace": None,
        "optimization_level": None,
        "hardware_compatibility": "none",
        "version_compatible": False,
        "aux_streams": None,
    }


def test_a_damaged_plan_is_built_again_as_it_was(plan: Path) -> None:
    """Another range or another precision would fail the pipeline that was served by the first."""
    before = _entry(plan)
    _lie(plan, verified=True, parity=[{"on": "golden"}], tiling={"halo": 12})
    plan.write_bytes(plan.read_bytes()[:-1])
    made = rebuild_plan(plan)
    after = _entry(plan)
    assert made == after
    assert isinstance(check_plan(plan), Admitted)
    for name in ("shapes", "options", "flavour", "compute_capabilities", "built_from", "precision", "dtypes"):
        assert getattr(after, name) == getattr(before, name)
    # What was measured of the old one is not true of the new one; the halo belongs to the net.
    assert (after.verified, after.parity, after.note) == (None, (), "rebuilt here, not run")
    assert after.tiling == {"halo": 12}
    assert _left_over(plan) == []


def test_a_plan_that_is_gone_is_built_again(plan: Path) -> None:
    """The command is what the error names; the file need not be there for it."""
    plan.unlink()
    assert rebuild_plan(plan) is not None
    assert isinstance(check_plan(plan), Admitted)


def test_what_fits_is_left_alone_unless_forced(plan: Path) -> None:
    """A build takes minutes on a full-size net."""
    stamp = plan.stat().st_mtime_ns
    assert rebuild_plan(plan) is None
    assert plan.stat().st_mtime_ns == stamp
    assert rebuild_plan(plan, force=True) is not None
    assert plan.stat().st_mtime_ns != stamp


@pytest.mark.slow
def test_of_processes_that_come_at_once_one_builds(plan: Path) -> None:
    """A fleet that restarts after an update would build the same plan as often as it has workers."""
    _lie(plan, flavour_version="1.6.0.1")
    # Nobody is through before all are there.
    with locked(plan.with_name(plan.name + ".lock")):
        workers = [
            subprocess.Popen([*COMMAND, plan], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        time.sleep(2)
        assert all(worker.poll() is None for worker in workers)
    said = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    out = sorted(out for out, _ in said)
    assert sum("rebuilt with tensorrt_rtx" in text for text in out) == 1, out
    assert sum("fits already" in text for text in out) == 2, out
    assert _entry(plan).sha256 == sha256_of(plan)
    assert isinstance(check_plan(plan), Admitted)


def test_a_builder_that_is_killed_blocks_nobody(plan: Path) -> None:
    """A lock that outlives its holder would stop the whole fleet."""
    _lie(plan, flavour_version="1.6.0.1")
    lock = plan.with_name(plan.name + ".lock")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom esrgan_deploy._files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waiting = subprocess.Popen([*COMMAND, plan], stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    assert waiting.poll() is None
    os.kill(holder.pid, signal.SIGKILL)
    out, _ = waiting.communicate(timeout=60)
    holder.communicate()
    assert "rebuilt with" in out


def _reach_out(plan: Path) -> None:
    graph = plan.with_name("model.fp16.onnx")
    graph.rename(plan.parent.parent / graph.name)
    _lie(plan, graph.name, file=f"../{graph.name}")
    _lie(plan, built_from=f"../{graph.name}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan.with_name("model.fp16.onnx").write_bytes(b"x"), "has sha256 .* another net's"),
        (lambda plan: plan.with_name("model.fp16.onnx").unlink(), "is not there"),
        (lambda plan: _lie(plan, built_from="../model.fp16.onnx"), "does not list the graph"),
        (_reach_out, "does not list the graph"),
        (lambda plan: _lie(plan, built_from="model.golden.npz"), "does not list the graph"),
        (lambda plan: plan.with_name("model.json").unlink(), "has no manifest"),
        (lambda plan: _lie(plan, file="other.plan"), "lists no plan model.fp16.plan"),
    ],
)
def test_only_the_graph_that_the_manifest_names_is_built_from(plan: Path, change: Any, words: str) -> None:
    """A plan of another graph would stand under the figures of this one."""
    plan.write_bytes(b"damaged")
    change(plan)
    with pytest.raises(EngineMismatchError, match=words):
        rebuild_plan(plan)
    assert plan.read_bytes() == b"damaged"
    assert _left_over(plan) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"shapes": [[1, 16, 16]]},
        {"shapes": []},
        {"shapes": [[1, 32, 32], [1, 16, 16], [1, 8, 8]]},
        {"options": {"workspace": "much"}},
        {"compute_capabilities": ["fast"]},
    ],
)
def test_options_that_make_no_sense_are_one_line(
    plan: Path, fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest that lies must not end in a traceback in the process that serves."""
    _lie(plan, **fields)
    assert main([str(plan), "--force"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("rebuild: ")


def test_a_graph_of_another_precision_is_not_built(plan: Path) -> None:
    """The manifest would go on to say fp32 of a plan that computes in fp16."""
    _lie(plan, precision="fp32")
    with pytest.raises(EngineBuildError, match="expected all in fp32"):
        rebuild_plan(plan, force=True)
    assert _left_over(plan) == []


def test_named_architectures_are_built_for_again(plan: Path) -> None:
    """Lost, the new plan would be for other cards than the old one."""
    _lie(plan, compute_capabilities=["8.9"], options={"aux_streams": 0})
    made = rebuild_plan(plan, force=True)
    assert made is not None
    assert made.compute_capabilities == ("8.9",)
    assert made.options["aux_streams"] == 0


def test_a_card_that_was_left_out_is_added() -> None:
    """Built as before, the plan would be refused as before, after every build."""
    entry = Artefact(
        file="m.plan",
        kind="plan",
        sha256="",
        size=1,
        flavour="tensorrt_rtx",
        shapes=((1, 16, 16), (1, 16, 16), (1, 16, 16)),
        compute_capabilities=("8.9",),
        options={"hardware_compatibility": "ampere+", "version_compatible": True, "workspace": 1 << 20},
    )
    card = DeviceFacts(name="RTX 5090", compute_capability="12.0", driver=13010)
    assert _options(entry, "tensorrt_rtx", card).compute_capabilities == ("8.9", "12.0")
    assert _options(entry, "tensorrt_rtx", None).compute_capabilities == ("8.9",)
    # The other flavour has neither option.
    other = _options(entry, "tensorrt", card)
    assert other.compute_capabilities == ()
    assert (other.hardware_compatibility, other.version_compatible, other.workspace) == (
        "none",
        False,
        1 << 20,
    )


def test_a_flavour_that_is_not_here_is_refused_and_another_can_be_named(plan: Path) -> None:
    """A folder made for a server must serve on the desk as well."""
    try:
        open_flavour("tensorrt")
    except MissingDependencyError:
        pass
    else:
        pytest.skip("full TensorRT is installed here")
    _lie(
        plan, flavour="tensorrt", flavour_version="11.4.0.106", options={"hardware_compatibility": "ampere+"}
    )
    with pytest.raises(MissingDependencyError, match="tensorrt is not installed"):
        rebuild_plan(plan)
    made = rebuild_plan(plan, flavour="tensorrt_rtx")
    assert made is not None
    assert made.flavour == "tensorrt_rtx"
    assert made.options["hardware_compatibility"] == "none"


@pytest.mark.slow
def test_changes_of_a_manifest_at_once_are_all_kept(tiny_export: Path, tmp_path: Path) -> None:
    """Read and written without a lock, the slower writer undoes what the faster one wrote."""
    place = tmp_path / "model.json"
    shutil.copy(tiny_export / "model.json", place)
    files = [entry.file for entry in load_manifest(place).artefacts]
    with ThreadPoolExecutor(len(files)) as pool:
        for _ in range(10):
            list(pool.map(lambda file: amend_artefact(place, file, note=f"of {file}"), files))
            assert [entry.note for entry in load_manifest(place).artefacts] == [
                f"of {file}" for file in files
            ]
            list(pool.map(lambda file: amend_artefact(place, file, note=""), files))


def test_the_command_says_what_it_did(plan: Path) -> None:
    """It stands in every refusal: it has to be one that works."""
    plan.write_bytes(b"damaged")
    done = subprocess.run([*COMMAND, plan], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        rf"{re.escape(str(plan))}: rebuilt with tensorrt_rtx [\d.]+ in [\d.]+ s\n", done.stdout
    )
    assert (
        done.stderr
        == "building model.fp16.plan from model.fp16.onnx for 1x16x16:1x32x32:1x48x48 with tensorrt_rtx\n"
    )
    with pytest.raises(SystemExit, match="2"):
        main([str(plan), "--flavour", "other"])
