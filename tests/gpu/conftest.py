"""The suite for a machine with a GPU: one command, `pytest -m gpu`, that also writes down what it saw.

Every test runs on each of four backends: TensorRT, TensorRT for RTX, ONNX Runtime's CUDA provider and PyTorch. One
that is not there, or does not take this card, is skipped with the reason, and the report lists what was not shown.

With ESRGAN_GPU_SUITE=rehearse the same tests run without a GPU, on the processor: PyTorch and ONNX Runtime there, and
TensorRT for RTX up to the building of a plan. That shows that the suite works, and nothing of a GPU; its report
says so. ESRGAN_GPU_RESULTS names the folder of the report; the default is studies/results. ESRGAN_GPU_WORK names a
folder where artefacts stay between runs, and ESRGAN_GPU_LIMIT the seconds after which a test has hung: every thread's
stack is printed then, and the process ends.
"""

import dataclasses
import faulthandler
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esrgan_deploy import EsrganDeployError, MissingDependencyError
from esrgan_deploy.runtime import Session, SessionOptions, default_model, open_session
from esrgan_deploy.runtime.device import cuda_device_count

ROOT = Path(__file__).resolve().parents[2]
REHEARSAL = os.environ.get("ESRGAN_GPU_SUITE") == "rehearse"
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime", "pytorch")
REPEATS = 10 if REHEARSAL else 1000
LIMIT = float(os.environ.get("ESRGAN_GPU_LIMIT", 0))
STDERR: list[int] = []
"""The real one, for the stacks of a test that hangs: within a test pytest has taken descriptor 2."""
SHAPES = "1x16x16:1x32x32:4x48x48" if REHEARSAL else "1x16x16:1x128x128:4x256x256"


@dataclasses.dataclass
class Report:
    """What the suite saw, for studies/results/gpu.json."""

    shown: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)


REPORT = Report()


def pytest_configure() -> None:
    """Keep standard error before pytest takes it."""
    STDERR.append(os.dup(2))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder needs a GPU; tests/conftest.py skips it where there is none."""
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Keep why something was not shown."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        REPORT.skipped[item.name] = report.longrepr[2]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[Any]:
    """End a test that hangs, fixtures included, and write down what was seen after each."""
    if LIMIT:
        faulthandler.dump_traceback_later(LIMIT, exit=True, file=STDERR[0])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        _write(item.config, None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report, if anything was seen."""
    _write(session.config, int(session.exitstatus))


def _write(config: pytest.Config, status: int | None) -> None:
    if not (REPORT.shown or REPORT.skipped) or hasattr(config, "workerinput"):
        return
    if not REHEARSAL and cuda_device_count() == 0:
        # Nothing was shown of a GPU, and the results are those of one.
        return
    folder = Path(os.environ.get("ESRGAN_GPU_RESULTS", ROOT / "studies" / "results"))
    if REHEARSAL and "ESRGAN_GPU_RESULTS" not in os.environ:
        return
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "schema": 1,
        "command": "pytest -m gpu",
        "on": "a processor, as a rehearsal: nothing of a GPU was shown" if REHEARSAL else "a GPU",
        "machine": _machine(),
        "shown": REPORT.shown,
        "not shown": REPORT.skipped,
        # None while tests are still to come: the process ended, or was ended, in the midst of one.
        "exit status": status,
    }
    (folder / ("gpu_rehearsal.json" if REHEARSAL else "gpu.json")).write_text(
        json.dumps(data, indent=2) + "\n"
    )


def _machine() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["compute capability"] = f"{properties.major}.{properties.minor}"
        found["memory GiB"] = round(properties.total_memory / 2**30, 1)
    return found


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Write figures down under the name of the test."""

    def note(**figures: Any) -> None:
        REPORT.shown.setdefault(request.node.name, {}).update(figures)

    return note


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn, where a test names none itself."""
    return str(request.param)


@pytest.fixture
def case(backend: str) -> tuple[str, str]:
    """The precision and form that a backend is used in: frames of 8 bits where it has them."""
    # A processor takes ten times as long for PyTorch's fp16 as for fp32, and shows no more by it.
    return ("fp32" if REHEARSAL else "fp16", "float") if backend == "pytorch" else ("fp16", "uint8")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, rrdb_spec: Callable[..., Any]) -> Path:
    """The shipped model's weights; for a rehearsal those of a net that takes a processor no time."""
    folder = _folder(tmp_path_factory, "weights")
    if not REHEARSAL:
        return Path(shutil.copy(default_model().with_suffix(".safetensors"), folder / "model.safetensors"))
    import torch

    from esrgan_deploy.export.nets import RRDBNet

    spec = rrdb_spec(blocks=1)
    torch.manual_seed(0)
    net = RRDBNet(spec)
    with torch.no_grad():
        # Pictures of some contrast, well inside the range.
        net.conv_last.weight.mul_(3)
        net.conv_last.bias.fill_(0.5)
    torch.save(net.state_dict(), folder / "model.pth")
    return folder / "model.pth"


@pytest.fixture(scope="session")
def reference(weights: Path) -> Iterator[Session]:
    """PyTorch in fp32 on the processor."""
    session = open_session(weights, SessionOptions(providers=("cpu",)))
    yield session
    session.close()


@pytest.fixture(scope="session")
def artefact(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """Make, once, what a backend runs: ``artefact("tensorrt", "fp16", "uint8")``; skips where that cannot be."""
    made: dict[tuple[str, str, str], Path | str] = {}

    def make(backend: str, precision: str, form: str = "float") -> Path:
        key = (backend, precision, form)
        if key not in made:
            folder = _folder(tmp_path_factory, "-".join(key))
            try:
                made[key] = _make(weights, folder, *key)
            except MissingDependencyError as error:
                made[key] = str(error)
        result = made[key]
        if isinstance(result, str):
            pytest.skip(result)
        return result

    return make


def _make(weights: Path, folder: Path, backend: str, precision: str, form: str) -> Path:
    from esrgan_deploy.engines import BuildOptions, ShapeRange
    from esrgan_deploy.export import ExportOptions, export_model

    if backend == "pytorch":
        return weights
    made = folder / ("model.onnx" if (precision, form) == ("fp32", "float") else f"model.{precision}.onnx")
    made = folder / f"model.{precision}.plan" if backend in FLAVOURS else made
    if made.exists():
        return made
    if precision in ("int8", "fp8"):
        _write_scales(weights, precision)
    options = ExportOptions(
        precisions=(precision,),
        form=form,
        plan=backend in FLAVOURS,
        build=BuildOptions(flavour=FLAVOURS.get(backend, "auto"), shapes=ShapeRange.parse(SHAPES)),
    )
    export_model(weights, folder, options)
    return made


def _folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    # Steps of one run are processes of their own, and each artefact is made once.
    work = os.environ.get("ESRGAN_GPU_WORK")
    if not work:
        return tmp_path_factory.mktemp(name)
    folder = Path(work) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_scales(weights: Path, precision: str) -> None:
    # Of about the range that this model's features have: the plan is held against the same graph in ONNX Runtime, so
    # that what is compared is the arithmetic and not the choice of scales.
    from esrgan_deploy.export import load_checkpoint, save_scales
    from esrgan_deploy.export.nets import placement

    step = 3.0 / (127 if precision == "int8" else 448)
    save_scales(weights, precision, dict.fromkeys(placement(load_checkpoint(weights).spec).values(), step))


@pytest.fixture
def opened(artefact: Callable[..., Path]) -> Iterator[Callable[..., Session]]:
    """Open what a backend runs: ``opened("pytorch", "fp16")``; skips with the reason where it cannot."""
    sessions: list[Session] = []

    def open_it(backend: str, precision: str, form: str = "float") -> Session:
        if REHEARSAL and backend in FLAVOURS:
            pytest.skip("a plan needs a GPU")
        path = artefact(backend, precision, form)
        try:
            session = open_session(path, options_of(backend, precision))
        except EsrganDeployError as error:
            # A plan that does not take this card is an answer, and it is written down as one.
            pytest.skip(f"{backend}: {error}")
        sessions.append(session)
        if not REHEARSAL:
            assert session.info.device == 0, (
                f"{backend} does not compute on the GPU but on {session.info.provider}"
            )
        return session

    yield open_it
    for session in sessions:
        session.close()


def options_of(backend: str, precision: str) -> SessionOptions:
    """How a backend is opened."""
    on = ("cpu",) if REHEARSAL else ("cuda",)
    if backend == "pytorch":
        return SessionOptions(precision=precision, providers=on if REHEARSAL else None)  # type: ignore[arg-type]
    if backend == "onnxruntime":
        return SessionOptions(providers=on)
    return SessionOptions()


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """Waves of many lengths with some noise, ``(H, W, 3)`` uint8: every kind of gradient, and no flat place."""

    def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width][:, :, :, None]
        total = np.zeros((height, width, 3))
        for length in (3, 7, 15, 40, 90):
            angle, phase = random.uniform(0, np.pi, 3), random.uniform(0, 6, 3)
            total += (
                np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / length + phase) * length**0.5
            )
        total = 127 + 100 * total / np.abs(total).max() + random.normal(0, 4, total.shape)
        return np.clip(np.rint(total), 0, 255).astype(np.uint8)

    return draw


@pytest.fixture
def repeats() -> int:
    """How often to do what is done very often."""
    return REPEATS


@pytest.fixture
def batch_for() -> Callable[..., Any]:
    """Make a batch of PyTorch's of a picture, in a session's form and on its device."""
    import torch

    def make(session: Session, lr: np.ndarray) -> torch.Tensor:
        device = "cpu" if session.info.device < 0 else f"cuda:{session.info.device}"
        batch = torch.from_numpy(lr[None]).to(device)
        if session.info.form == "uint8":
            return batch
        kind = getattr(torch, session.info.dtype.name)
        return (batch.permute(0, 3, 1, 2).float() / 255).to(kind).contiguous()

    return make


@pytest.fixture
def clock() -> Callable[[Callable[[], Any]], float]:
    """Seconds that something takes, for the report and never for an assertion."""

    def measure(run: Callable[[], Any]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return measure
