"""The examples and the page on embedding do what they say, as far as a machine without a GPU can show it."""

import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from esrgan_deploy import load_manifest
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")

HERE = {"embed_asyncio", "embed_numpy", "embed_pytorch"}
"""What runs without a GPU, each with what is installed for the tests."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of the uint8 form that doubles every pixel."""
    scales = numpy_helper.from_array(np.array([1, 2, 2, 1], np.float32), "scales")
    nodes = [
        helper.make_node("Cast", ["input"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Resize", ["wide", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Cast", ["large"], ["output"], to=TensorProto.UINT8),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", h, w, 3])]
        for name, h, w in (("input", "h", "w"), ("output", "h2", "w2"))
    ]
    graph = helper.make_graph(nodes, "net", *ends, [scales])
    path = tmp_path_factory.mktemp("doubling") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def run(fork: Callable[..., Any]) -> Callable[..., Any]:
    """Run an example, or another program, to its end."""

    def ended(program: str | Path, *arguments: str | Path, cwd: Path | None = None) -> Any:
        process = fork(ROOT / "docs" / "examples" / program, arguments, cwd=cwd)
        process.wait()
        return process

    return ended


@pytest.mark.parametrize("form", ["tiny_checkpoint", "doubling"])
@pytest.mark.parametrize("example", sorted(HERE))
def test_an_example_runs(
    run: Callable[..., Any], example: str, form: str, request: pytest.FixtureRequest
) -> None:
    """Somebody's first program is a copy of one of these; both forms, and both what ONNX Runtime and PyTorch give."""
    done = run(f"{example}.py", request.getfixturevalue(form))
    assert (done.returncode, done.stderr) == (0, "")
    side = {"tiny_checkpoint": 4, "doubling": 2}[form]
    expected = {
        "embed_asyncio": f"one ({20 * side}, {30 * side}, 3)",
        "embed_numpy": f"a film (4, {24 * side}, {32 * side}, 3)",
        "embed_pytorch": "twice the same: True",
    }[example]
    assert expected in done.stdout
    if example == "embed_asyncio":
        assert "the loop went on meanwhile" in done.stdout


@pytest.mark.parametrize("example", [path.stem for path in EXAMPLES])
def test_every_example_compiles_and_says_how_it_is_called(run: Callable[..., Any], example: str) -> None:
    """And one that cannot run here says in one line why, where a traceback would be all that a reader sees."""
    path = ROOT / "docs" / "examples" / f"{example}.py"
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
    done = run(f"{example}.py")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    package = {"embed_cupy": "cupy", "embed_pycuda": "pycuda"}.get(example, "numpy")
    there = importlib.util.find_spec(package) is not None
    assert (f"usage: {example}.py MODEL" if there else "pip install") in done.stderr or "GPU" in done.stderr


@pytest.mark.parametrize("example", sorted(HERE))
def test_an_example_ends_with_one_line_where_the_model_is_missing(
    run: Callable[..., Any], example: str, tmp_path: Path
) -> None:
    """The name is mistyped most of all."""
    done = run(f"{example}.py", tmp_path / "missing.onnx")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"there is no file .*missing\.onnx; .*\n", done.stderr)


def test_the_page_names_every_example_and_links_to_what_is_there() -> None:
    """One that is not linked is found by nobody."""
    links = set(re.findall(r"\]\(([^)#]+)\)", PAGE))
    assert {f"examples/{path.name}" for path in EXAMPLES} <= links
    assert all((ROOT / "docs" / link).exists() for link in links)


def test_the_blocks_of_the_page_on_exports_run(
    run: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """In order, in one program, in a folder with a checkpoint; they are what a pipeline's author copies."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert page.count("```") == 2 * len(blocks)
    shutil.copy(tiny_checkpoint, tmp_path / "model.pth")
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    done = run(tmp_path / "page.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rrdbnet x4 True" in done.stdout
    assert "model.fp16.onnx fp16 True" in done.stdout
    assert load_manifest(tmp_path / "out" / "model.json").verified is True


def test_the_blocks_of_the_page_on_jobs_run(fork: Callable[..., Any], tmp_path: Path) -> None:
    """Commands and program, in order, in a folder with some photographs, one of them damaged."""
    page = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert page.count("```") == 4
    for name in ("photographs/a.jpg", "photographs/drafts/b.jpg", "scan.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 6), "teal").save(tmp_path / name)
    (tmp_path / "photographs" / "bad.jpg").write_bytes(b"no picture")
    for line, status in zip(commands.splitlines(), (3, 3, 0, 3), strict=True):
        name, *arguments = shlex.split(line)
        assert name == "esrgan-upscale"
        done = fork("esrgan_deploy.runtime._cli", arguments, cwd=tmp_path)
        assert done.wait() == status, done.stderr
    (tmp_path / "page.py").write_text(program, encoding="utf-8")
    done = fork(tmp_path / "page.py", cwd=tmp_path)
    assert done.wait() == 0, done.stderr
    assert "photographs/a.jpg -> enlarged/a.jpg done" in done.stdout
    assert done.stdout.endswith("1 done, 1 failed\n")


def test_the_blocks_of_the_page_run(run: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In order, in one program, in a folder with an export; those for a GPU compile."""
    blocks = re.findall(r"```python( gpu)?\n(.*?)```", PAGE, re.DOTALL)
    assert PAGE.count("```") == 2 * len(blocks)
    for _, code in blocks:
        compile(code, "embedding.md", "exec")
    small = BuildOptions(shapes=ShapeRange.parse("1x16x16"))
    export_model(
        tiny_checkpoint, tmp_path / "out", ExportOptions(precisions=("fp32",), plan=False, build=small)
    )
    program = "\n".join(code for gpu, code in blocks if not gpu)
    (tmp_path / "page.py").write_text(program, encoding="utf-8")
    done = run(tmp_path / "page.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(360, 640, 3)" in done.stdout
    assert np.load(tmp_path / "large.npy", mmap_mode="r").shape == (360, 640, 3)
