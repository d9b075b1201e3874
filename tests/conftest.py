"""Fixtures that every room's tests share."""

import collections
import gc
import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from esrgan_deploy._files import replaced_atomically
from esrgan_deploy.runtime.device import cuda_device_count


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


@pytest.fixture(scope="session", autouse=True)
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let torch.onnx trace each net once: seconds for the smallest, and most exports here are of the same few.

    What one worker traced serves the others too.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    import onnx
    import onnx_ir as ir

    export, traced, shared = torch.onnx.export, {}, tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    class Whole(pickle.Pickler):
        """Writes tensors by their values: torch writes where they lie."""

        def persistent_id(self, one: Any) -> Any:
            if isinstance(one, torch.Tensor):
                return str(one.dtype), tuple(one.shape), one.detach().contiguous().numpy().tobytes()
            return None

    def once(module: Any, *arguments: Any, **options: Any) -> Any:
        # All that a trace depends on. What is written to a file, or is no module, is somebody else's call; a class or
        # a hook that is local to a test cannot be told from another.
        if len(arguments) != 1 or not isinstance(module, torch.nn.Module):
            return export(module, *arguments, **options)
        asked = io.BytesIO()
        try:
            Whole(asked).dump((module, arguments, repr(sorted(options.items()))))
        except (AttributeError, TypeError, pickle.PicklingError):
            return export(module, *arguments, **options)
        key = hashlib.sha256(asked.getbuffer()).hexdigest()
        kept = shared / f"{key}.onnx"
        if key not in traced and kept.exists():
            traced[key] = onnx.load(kept)
        elif key not in traced:
            traced[key] = ir.to_proto(export(module, *arguments, **options).model)
            with replaced_atomically(kept) as temporary:
                onnx.save(traced[key], temporary)
        return types.SimpleNamespace(model=ir.from_proto(traced[key]))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.onnx, "export", once)
        yield


class Forked:
    """A command's ``main`` in a process of its own, as `subprocess.Popen` is one; its output is text."""

    def __init__(self, ask: Callable[..., Any], folder: Path, pid: int) -> None:
        self._ask, self._folder, self.pid = ask, folder, pid
        self.returncode: int | None = None

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
            self.returncode = self._ask(wait=self.pid, options=options)["status"]
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
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Forked]]:
    """Start ``fork(module, argv, cwd=…, env={…}, limit=…)``: its ``main`` in a process that has torch already.

    Importing it takes a process seconds, and there are two dozen that are started to be killed, to run out of room,
    or to run beside another. `limit` is the largest file that it may write, in bytes; `env` is added to this one's.
    """
    helper = Path(__file__).with_name("helpers_forks.py")
    modules = ["accelerate", "onnxscript", "esrgan_deploy.export._export", "esrgan_deploy.training._trainer"]
    server = subprocess.Popen(
        [sys.executable, helper, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def ask(**request: Any) -> Any:
        print(json.dumps(request), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())

    def start(
        module: str,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Forked:
        folder = tmp_path_factory.mktemp("forked")
        answer = ask(
            module=module,
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
    folder = Path(__file__).resolve().parents[2] / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip("the test material ../shared/assets is not here")
    return folder


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


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path) -> Path:
    """A folder beside `tiny_checkpoint` that esrgan-export made of it, its plan among it; no test may change it."""
    from esrgan_deploy.engines import BuildOptions, ShapeRange
    from esrgan_deploy.export import ExportOptions, export_model

    folder = tiny_checkpoint.with_name("out")
    build = BuildOptions(flavour="tensorrt_rtx", shapes=ShapeRange.parse("1x16x16:1x32x32:1x48x48"))
    export_model(tiny_checkpoint, folder, ExportOptions(plan=True, build=build))
    return folder
