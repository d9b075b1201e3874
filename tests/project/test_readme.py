"""Every command and code block of the README runs."""

import json
import re
import shlex
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = {command.name: command.module for command in entry_points(group="console_scripts")}


@pytest.fixture
def run(fork, tmp_path):
    """Run commands in this test's folder."""

    def each(script):
        said = ""
        for name, *arguments in map(shlex.split, script.strip().splitlines()):
            done = fork(COMMANDS[name], arguments, cwd=tmp_path)
            assert done.wait() == 0, done.stdout + done.stderr
            said += done.stdout
        return said

    return each


def test_the_readme_has_the_blocks_that_are_run_here():
    """A new block would otherwise be run by nothing."""
    assert [len(_blocks("bash")), len(_blocks("python"))] == [7, 1]
    assert README.count("```") == 2 * 8


def test_every_link_and_path_is_there():
    """A picture that is not in the repository is a broken square, and a path that was moved leads nowhere."""
    tops = "benchmarks|docs|engines|export|runtime|scripts|src|studies|tests|training"
    targets = set()
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        targets |= {page.parent / target for target in re.findall(r"\]\(([^):#]+)\)", text)}
        targets |= {ROOT / path for path in re.findall(rf"(?<![\w./-])(?:{tops})/[\w./-]*\w", text)}
    assert len(targets) > 50
    assert [str(target) for target in targets if not target.exists()] == []


def test_what_was_measured_has_its_results_and_no_gaps():
    """A figure without the file that it came from cannot be looked up, nor compared with the next one."""
    cited = set()
    for page in (path.read_text() for path in (ROOT / "docs").glob("*.md")):
        assert re.findall(r"@[A-Z]+@", page) == []
        cited |= set(re.findall(r"studies/results/(\w+\.json)", page))
    assert cited == {path.name for path in (ROOT / "studies" / "results").glob("*.json")}


@pytest.mark.parametrize("block", [0, 1])
def test_the_quick_start_and_the_tests_are_what_ci_runs(block):
    """Both make an environment of their own, in a clean checkout and word for word; neither runs within the other."""
    assert _blocks("bash")[block].strip() in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.slow
def test_the_commands_and_the_code_run(run, fork, tmp_path, tiny_checkpoint):
    """The main job and the embedding, word for word, in a folder that holds what they name."""
    from PIL import Image

    shutil.copy(tiny_checkpoint, tmp_path / "model.pth")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(
        tmp_path / "photo.png"
    )
    run(_blocks("bash")[2])
    with Image.open(tmp_path / "photo_x4.png") as enlarged:
        assert enlarged.size == (120, 80)
    table = re.findall(r"^\| `(model\.[a-z0-9.]+)`", README, re.MULTILINE)
    assert "model.trunk.onnx" in table
    names = {path.name.replace(".tail.", ".trunk.") for path in (tmp_path / "out").iterdir()}
    # The first of the parts stands for all of them.
    assert set(table) == {name for name in names if ".trunk." not in name} | {"model.trunk.onnx"}
    (tmp_path / "embed.py").write_text(_blocks("python")[0])
    embedded = fork(tmp_path / "embed.py", cwd=tmp_path)
    assert embedded.wait() == 0, embedded.stderr
    assert embedded.stdout.splitlines() == ["(360, 640, 3)", "(360, 640, 3)"]
    assert "halo" in run(_blocks("bash")[5])
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_the_quantisation_command_runs(run, tmp_path, tiny_checkpoint, photographs):
    """Word for word, on the photographs that scikit-image ships."""
    shutil.copy(tiny_checkpoint, tmp_path / "model.pth")
    shutil.copytree(photographs, tmp_path / "photographs")
    run(_blocks("bash")[4])
    made = {path.name for path in (tmp_path / "out_int8").iterdir()}
    assert {"model.int8.onnx", "model.int8.plan", "model.int8.scales.json"} <= made


def test_the_commands_for_folders_run(run, tmp_path):
    """Word for word, with the model that ships."""
    from PIL import Image

    for name in ("a.png", "2024/b.jpg"):
        (tmp_path / "photographs" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), "teal").save(tmp_path / "photographs" / name)
    said = run(_blocks("bash")[3])
    assert "enlarged: 2 done (2 now), 0 failed" in said
    end = json.loads(said.splitlines()[-1])
    assert [end[name] for name in ("event", "items", "pending", "done", "failed")] == ["end", 2, 0, 2, 0]
    for name in ("a.png", "2024/b.jpg"):
        with Image.open(tmp_path / "enlarged" / name) as enlarged:
            assert enlarged.size == (48, 36)


@pytest.mark.slow
def test_the_training_commands_run(run, tmp_path):
    """Word for word, in a folder with some photographs."""
    from PIL import Image

    (tmp_path / "photographs").mkdir()
    for number in range(2):
        picture = np.random.default_rng(number).integers(0, 256, (160, 200, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / "photographs" / f"{number}.jpg")
    run(_blocks("bash")[6])
    assert (tmp_path / "trained" / "model.onnx").is_file()
