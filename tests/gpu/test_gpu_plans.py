"""What a plan is on a real card: whether the card takes it, what it holds, and the memory that it asks for."""

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from esrgan_deploy import EsrganDeployError
from esrgan_deploy.runtime import SessionOptions, open_session

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@pytest.fixture(params=list(FLAVOURS))
def backend(request: pytest.FixtureRequest) -> str:
    """Each flavour of TensorRT in turn."""
    return str(request.param)


@pytest.fixture
def library(backend: str) -> Any:
    """Its module, with the lines that it logged as errors in ``library.errors``."""
    module: Any = pytest.importorskip(FLAVOURS[backend])

    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(message)

    return module, Logger()


def test_what_the_library_itself_says_of_the_card(artefact, library, record, backend):
    """The first question on a new card: asked of the library's own check, and of its loader, and written down."""
    module, logger = library
    plan = artefact(backend, "fp16", "uint8").read_bytes()
    runtime = module.Runtime(logger)
    if runtime is None or not hasattr(runtime, "get_engine_validity"):
        record(asked=False)
    else:
        validity, diagnostics = runtime.get_engine_validity(plan)
        record(asked=True, validity=str(validity), diagnostics=int(diagnostics))
    loaded = torch.cuda.is_available() and runtime.deserialize_cuda_engine(plan) is not None
    record(loaded=loaded, errors=logger.errors[:4])


@pytest.mark.parametrize(("precision", "form"), [("fp16", "uint8"), ("fp32", "float")])
def test_a_plan_holds_what_was_asked_for(artefact, record, backend, precision, form):
    """A plan whose convolutions compute in another type than its graph's is slow, or wrong, in silence."""
    path = artefact(backend, precision, form)
    manifest = json.loads((path.parent / "model.json").read_text())
    (entry,) = [one for one in manifest["artefacts"] if one["file"] == path.name]
    record(magic=path.read_bytes()[:8].hex(), size=path.stat().st_size, manifest=entry)
    assert entry["precision"] == precision


def test_fp32_is_fp32_and_not_tf32(opened, reference, picture, record, backend):
    """TF32 keeps ten bits of a product's factors: the difference shows at 1e-3, where fp32 stays below 1e-4."""
    session = opened(backend, "fp32")
    batch = (picture(96, 96).astype(np.float32) / 255).transpose(2, 0, 1)[None].copy()
    difference = float(np.abs(session.run(batch) - reference.run(batch)).max())
    record(max_abs=difference)
    assert difference <= 1e-4


def test_the_scratch_that_each_shape_asks_for(artefact, opened, library, record, backend):
    """The runtime gives a context just this much; a number that is no size would be memory that is not there."""
    opened(backend, "fp16", "uint8").close()
    module, logger = library
    engine = module.Runtime(logger).deserialize_cuda_engine(artefact(backend, "fp16", "uint8").read_bytes())
    (name,) = [
        engine.get_tensor_name(i)
        for i in range(engine.num_io_tensors)
        if engine.get_tensor_mode(engine.get_tensor_name(i)) == module.TensorIOMode.INPUT
    ]
    profile = [tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0)]
    whole = int(engine.get_device_memory_size_for_profile_v2(0))
    asked: dict[str, int] = {}
    for label, shape in zip(("min", "opt", "max"), profile, strict=True):
        context = engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        assert context.set_input_shape(name, shape)
        asked[label] = int(context.update_device_memory_size_for_shapes())
    logger.errors.clear()
    too_little = torch.empty(max(asked["max"] // 2, 1), dtype=torch.uint8, device="cuda")
    context.set_device_memory(too_little.data_ptr(), too_little.nbytes)
    record(profile=whole, asked=asked, too_little=too_little.nbytes, answer=logger.errors[:4])
    assert all(0 <= size <= whole for size in asked.values())
    assert asked["max"] == 0 or logger.errors, "an offer that is too small was taken without a word"


def test_kernels_compiled_once_are_kept(artefact, opened, record, tmp_path, backend):
    """TensorRT for RTX compiles when a plan is opened; a service that restarts would wait each time."""
    opened(backend, "fp16", "uint8").close()
    path = artefact(backend, "fp16", "uint8")
    code = (
        "import sys, time, numpy as np; from esrgan_deploy import Upscaler; started = time.perf_counter()\n"
        "with Upscaler(sys.argv[1], tile=0) as up: up.upscale(np.zeros((64, 64, 3), np.uint8))\n"
        "print(time.perf_counter() - started)"
    )
    environment = {**os.environ, "ESRGAN_DEPLOY_CACHE": str(tmp_path)}
    spent = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-1000:]
        spent.append(float(done.stdout))
    kept = [file.stat().st_size for file in tmp_path.rglob("*.cache")]
    record(seconds=spent, cache_bytes=kept)
    assert kept or not hasattr(importlib.import_module(FLAVOURS[backend]), "IRuntimeCache")


def test_an_outscale_and_odd_sizes(weights, picture, record, tmp_path, backend):
    """1.5 times an odd side is no whole number: the plan and the graph must floor alike."""
    from esrgan_deploy.engines import BuildOptions, ShapeRange
    from esrgan_deploy.export import ExportOptions, export_model

    build = BuildOptions(flavour=FLAVOURS[backend], shapes=ShapeRange.parse("1x16x16:1x64x64:1x96x96"))
    try:
        export_model(
            weights, tmp_path / "out", ExportOptions(outscale=1.5, plan=True, build=build, form="uint8")
        )
    except EsrganDeployError as error:
        pytest.skip(f"{backend}: {error}")
    graph = open_session(tmp_path / "out" / "model.fp16.onnx", SessionOptions(providers=("cpu",)))
    if not torch.cuda.is_available():
        pytest.skip("a plan needs a GPU")
    try:
        session = open_session(tmp_path / "out" / "model.fp16.plan")
    except EsrganDeployError as error:
        pytest.skip(f"{backend}: {error}")
    for height, width in ((33, 47), (64, 61), (17, 95)):
        batch = picture(height, width)[None]
        made, expected = session.run(batch), graph.run(batch)
        assert made.shape == expected.shape == (1, height * 3 // 2, width * 3 // 2, 3)
        difference = int(np.abs(made.astype(int) - expected).max())
        record(**{f"{height}x{width}": difference})
        assert difference <= 1
    session.close()
    graph.close()
