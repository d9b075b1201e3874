"""Plans that are built, with TensorRT for RTX, which needs no GPU for it."""

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from esrgan_deploy._errors import EngineBuildError, MissingDependencyError
from esrgan_deploy._files import sha256_of
from esrgan_deploy._flavour import open_flavour
from esrgan_deploy.engines import BuildOptions, BuildResult, ShapeRange, _build, engine_from_onnx
from esrgan_deploy.engines._compile import _made, _strongly_typed_network
from esrgan_deploy.engines._monitor import BuildLog
from esrgan_deploy.runtime.device import DeviceFacts, MemoryFacts

Net = Callable[..., Path]
Save = Callable[[onnx.ModelProto], Path]

SMALL = ShapeRange.parse("1x16x16:1x32x32:2x64x64")
OPTIONS = BuildOptions(flavour="tensorrt_rtx", shapes=SMALL)


@pytest.fixture(scope="module")
def built(rrdb: Net, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return engine_from_onnx(rrdb(), tmp_path_factory.mktemp("plan") / "net.plan", OPTIONS)


def test_a_plan_is_written_and_described(built: BuildResult, rrdb: Net) -> None:
    """The manifest repeats these figures."""
    content = built.plan.read_bytes()
    assert len(content) == built.size > 100_000
    assert content[1:4] == b"trt"
    assert (built.flavour, built.shapes, built.compute_capabilities) == ("tensorrt_rtx", SMALL, ())
    assert built.version == open_flavour("tensorrt_rtx").version
    assert built.dtypes == {"fp16": 21}
    assert built.seconds > 0
    assert built.scratch_bytes is not None
    assert built.scratch_bytes > 0
    assert built.weights_bytes is not None
    assert built.weights_bytes > 0
    assert built.warnings == ()
    assert list(built.plan.parent.iterdir()) == [built.plan]


def test_the_plan_names_the_graph_that_it_was_built_from(built: BuildResult, rrdb: Net) -> None:
    """It is the only text a plan carries back, and how a plan without its manifest is known."""
    assert sha256_of(rrdb())[:16].encode() in built.plan.read_bytes()


def test_a_gpu_without_cuda_bindings_is_no_reason_not_to_build(
    rrdb: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT needs none of them; what is free there only serves to refuse a size early."""

    def unknown(ordinal: int) -> MemoryFacts:
        raise MissingDependencyError("cuda.bindings.driver is not installed. Run: pip install it")

    gpu = DeviceFacts(name="Simulated GPU", compute_capability="9.0", driver=13000)
    monkeypatch.setattr(_build, "device_facts", lambda: gpu)
    monkeypatch.setattr(_build, "device_memory", unknown)
    built = engine_from_onnx(rrdb(), tmp_path / "x.plan", OPTIONS)
    assert built.plan.is_file()
    (warning,) = built.warnings
    assert warning.startswith("what is free on Simulated GPU was not asked: cuda.bindings.driver is not")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_precision_of_the_graph_is_that_of_the_plan(dtype: str, rrdb: Net, tmp_path: Path) -> None:
    """Nothing may be widened or narrowed: TF32, TensorRT's default, is 1.9e-3 off, and fp32 is held to 1e-4."""
    built = engine_from_onnx(rrdb(dtype=dtype), tmp_path / "x.plan", OPTIONS, expect_precision=dtype)
    assert built.dtypes == {dtype: 21}
    # The settings that a portable plan carries for the compiler on the card stand in it as text.
    content = built.plan.read_bytes()
    assert b"tf32=0" in content
    assert b"tf32=1" not in content


def test_a_plan_of_another_precision_is_refused(rrdb: Net, tmp_path: Path) -> None:
    """A graph that stayed in fp32 costs twice the time without anybody being told."""
    with pytest.raises(EngineBuildError, match=r"21 in fp32; expected all in fp16.*--precision fp16"):
        engine_from_onnx(rrdb(dtype="fp32"), tmp_path / "x.plan", OPTIONS, expect_precision="fp16")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineBuildError, match="expect_precision is 'half'; allowed: fp32"):
        engine_from_onnx(rrdb(), tmp_path / "x.plan", OPTIONS, expect_precision="half")


@pytest.mark.parametrize(("dtype", "name"), [(TensorProto.INT8, "int8"), (TensorProto.FLOAT8E4M3FN, "fp8")])
@pytest.mark.parametrize("between", [False, True])
def test_quantised_convolutions_are_counted(
    dtype: int, name: str, between: bool, writer: Any, saved: Save, tmp_path: Path
) -> None:
    """With an operator between DequantizeLinear and Conv, TensorRT silently computes in fp16."""
    g = writer("fp16")
    scale, zero = g.constant(0.05), g.constant(0, dtype)

    def rounded(x: str) -> str:
        return g.node("DequantizeLinear", g.node("QuantizeLinear", x, scale, zero), scale, zero)

    x = rounded(g.conv("input", 3, 32))
    x = g.node("Conv", g.leaky(x) if between else x, rounded(g.random(32, 32, 3, 3)), pads=[1] * 4)
    g.conv(g.leaky(x), 32, 3, output="output")
    path, plan = saved(g.model()), tmp_path / "x.plan"
    if between:
        with pytest.raises(EngineBuildError, match=f"3 in fp16; expected at least 1 in {name}"):
            engine_from_onnx(path, plan, OPTIONS, expect_precision=name)
        assert not plan.exists()
    else:
        assert engine_from_onnx(path, plan, OPTIONS, expect_precision=name).dtypes == {"fp16": 2, name: 1}


@pytest.mark.parametrize(
    "options", [{"form": "uint8"}, {"names": ("LR image", "sr/0")}, {"size": (1, 32, 32)}]
)
def test_every_kind_of_graph_builds(options: dict[str, Any], rrdb: Net, tmp_path: Path) -> None:
    """Both I/O forms, foreign names, and a graph that is fixed to one size."""
    shapes = ShapeRange.parse("1x32x32") if "size" in options else SMALL
    built = engine_from_onnx(
        rrdb(**options), tmp_path / "x.plan", BuildOptions(shapes=shapes), expect_precision="fp16"
    )
    assert built.dtypes == {"fp16": 21}


def test_a_static_plan_is_built_for_its_size(rrdb: Net, tmp_path: Path) -> None:
    """As a range whose ends agree it would still run the kernels for dynamic shapes."""
    built = engine_from_onnx(rrdb(), tmp_path / "x.plan", BuildOptions(shapes=ShapeRange.parse("1x32x48")))
    last = built.layers[-1].outputs[0]
    assert last.dims == (1, 3, 128, 192)


def test_options_reach_the_builder(rrdb: Net, tmp_path: Path) -> None:
    """An option that is dropped on the way looks like one that does nothing."""

    def size(**options: Any) -> int:
        plan = tmp_path / "x.plan"
        asked = BuildOptions(flavour="tensorrt_rtx", shapes=SMALL, **options)
        built = engine_from_onnx(rrdb(), plan, asked, force=True)
        # The manifest says what a portable plan was built for.
        assert built.compute_capabilities == options.get("compute_capabilities", ())
        return built.size

    assert size(compute_capabilities=("8.6",)) < size(compute_capabilities=("8.6", "8.9", "12.0"))
    assert size(workspace=2**30, optimization_level=5, aux_streams=0) > 0
    with pytest.raises(EngineBuildError, match=r"9.0"):
        size(compute_capabilities=("9.0",))


def test_the_preflight_comes_before_the_build(rrdb: Net, tmp_path: Path) -> None:
    """TensorRT for RTX builds this plan without a word, with scratch memory that wrapped around."""
    shapes = ShapeRange.parse("1x64x64:1x64x64:1x2160x3840")
    calls: list[str] = []
    with pytest.raises(EngineBuildError, match="allows 2,147,483,648"):
        engine_from_onnx(
            rrdb(features=64),
            tmp_path / "x.plan",
            BuildOptions(shapes=shapes),
            progress=lambda phase, step, total: calls.append(phase),
        )
    assert calls == []
    with pytest.raises(EngineBuildError, match="memory_limit allows 1 MiB"):
        engine_from_onnx(rrdb(), tmp_path / "x.plan", BuildOptions(shapes=SMALL, memory_limit=2**20))


def test_a_plan_that_takes_more_than_was_reckoned_says_so(rrdb: Net, tmp_path: Path) -> None:
    """The builder's figure is the true one."""
    options = BuildOptions(shapes=SMALL, memory_limit=10 * 2**20)
    built = engine_from_onnx(rrdb(), tmp_path / "x.plan", options)
    assert built.scratch_bytes is not None
    assert built.scratch_bytes > 10 * 2**20
    assert "more than the 10 MiB of memory_limit" in built.warnings[0]


def test_progress_counts_the_steps_of_each_phase(rrdb: Net, tmp_path: Path) -> None:
    """A bar that jumps back or past its end is worse than none."""
    seen: dict[str, list[tuple[int, int]]] = {}
    engine_from_onnx(
        rrdb(),
        tmp_path / "x.plan",
        OPTIONS,
        progress=lambda phase, step, total: seen.setdefault(phase, []).append((step, total)),
    )
    assert len(seen) >= 3
    for phase, steps in seen.items():
        assert all(0 <= step <= total for step, total in steps), phase
    longest = max(seen.values(), key=len)
    assert [step for step, _ in longest] == list(range(len(longest)))


@pytest.mark.parametrize("error", [RuntimeError("bar broke"), KeyboardInterrupt()])
def test_what_progress_raises_ends_the_build_and_comes_out(
    error: BaseException, rrdb: Net, tmp_path: Path
) -> None:
    """Inside TensorRT's frames it would end the process."""
    calls = 0

    def progress(phase: str, step: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise error

    heard: list[str] = []
    flavour = open_flavour("tensorrt_rtx")
    with (
        flavour.listen(lambda severity, message: heard.append(message)),
        pytest.raises(type(error)) as caught,
    ):
        engine_from_onnx(rrdb(), tmp_path / "x.plan", OPTIONS, progress=progress)
    assert caught.value is error
    assert not any("Subgraph compilation completed" in message for message in heard), (
        "it was built to the end"
    )
    assert calls == 5
    assert list(tmp_path.iterdir()) == []
    engine_from_onnx(rrdb(), tmp_path / "x.plan", OPTIONS)


def test_what_is_there_is_kept_unless_forced(built: BuildResult, rrdb: Net, tmp_path: Path) -> None:
    """A plan may have taken an hour on a machine that is gone."""
    plan = tmp_path / "net.plan"
    plan.write_text("old")
    with pytest.raises(EngineBuildError, match=r"exists. Run: with --force"):
        engine_from_onnx(rrdb(), plan, OPTIONS)
    assert plan.read_text() == "old"
    engine_from_onnx(rrdb(), plan, OPTIONS, force=True)
    assert plan.stat().st_size > 1000


def test_targets_that_cannot_be_written_are_refused_before_the_build(rrdb: Net, tmp_path: Path) -> None:
    """Minutes of building must not end in 'no such directory'."""
    with pytest.raises(EngineBuildError, match=r"not a folder that can be written. Run: mkdir -p"):
        engine_from_onnx(rrdb(), tmp_path / "no" / "x.plan", OPTIONS)
    with pytest.raises(EngineBuildError, match="is a folder"):
        engine_from_onnx(rrdb(), tmp_path, OPTIONS)


def test_a_full_disk_leaves_nothing(rrdb: Net, tmp_path: Path) -> None:
    """Half a plan loads as a crash."""
    resource = pytest.importorskip("resource")
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from esrgan_deploy.engines import _build, BuildOptions, ShapeRange, engine_from_onnx\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "options = BuildOptions(flavour='tensorrt_rtx', shapes=ShapeRange.parse('1x32x32'))\n"
        "try:\n    engine_from_onnx(Path(sys.argv[1]), Path(sys.argv[2]), options)\n"
        "except OSError as error:\n    print(type(error).__name__)\n"
    )
    assert resource is not None
    done = subprocess.run(
        [sys.executable, "-c", code, str(rrdb()), str(tmp_path / "x.plan")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "OSError", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_the_pip_line_is_given(
    rrdb: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan-only install has TensorRT and no onnx."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"onnx is not installed. Run: pip install"):
        engine_from_onnx(rrdb(), tmp_path / "x.plan", OPTIONS)


def test_a_plan_is_readable_as_other_files_are(built: BuildResult) -> None:
    """Temporary files belong to their owner alone; a server runs as somebody else."""
    mask = os.umask(0)
    os.umask(mask)
    assert built.plan.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_builder_that_cannot_be_made_is_explained() -> None:
    """Full TensorRT without a GPU makes no builder, and the binding raises a TypeError about a factory."""

    def null(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    log = BuildLog()
    log("ERROR", "CUDA initialization failure with error: 35")
    with pytest.raises(EngineBuildError, match="finds no driver that fits"):
        _made(null, None, subject="tensorrt 11.4 cannot build x.onnx", log=log)
    with pytest.raises(EngineBuildError, match="factory function returned nullptr"):
        _made(null, None, subject="x", log=BuildLog())


def test_a_tensorrt_without_strong_typing_is_too_old() -> None:
    """Its plans would choose a precision of their own."""
    flavour = open_flavour("tensorrt_rtx")
    old = types.SimpleNamespace(NetworkDefinitionCreationFlag=types.SimpleNamespace())
    with pytest.raises(EngineBuildError, match=r"no strongly typed networks.*tensorrt>=10\.13"):
        _strongly_typed_network(old, None, flavour)
