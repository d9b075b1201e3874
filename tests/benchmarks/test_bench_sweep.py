"""Sweeps measure every combination, and each thing in its own way."""

import collections
import dataclasses
import json
import os
import shutil
import sys
import time
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.benchmarks._bench import bench
from esrgan_deploy.benchmarks._cli import main
from esrgan_deploy.benchmarks._options import BenchOptions, Point, parse_axis, points
from esrgan_deploy.benchmarks.measure import _device as _device_timing
from esrgan_deploy.benchmarks.measure import (
    _machine,
    _peaks,
    best_of,
    measure_memory,
    measure_peaks,
    open_subject,
    paired_ratio,
    sample,
    session_options,
)
from esrgan_deploy.benchmarks.measure._device import device_sampler
from esrgan_deploy.benchmarks.measure._subject import noise
from esrgan_deploy.benchmarks.report import table
from esrgan_deploy.runtime import BatchOutput, SessionInfo, SessionOptions, open_session

INFO = SessionInfo(
    name="x", form="float", dtype=np.dtype(np.float32), in_channels=3, out_channels=3, scale=Fraction(1),
    provider="x",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_export):
    return tiny_export / "model.onnx"


def test_every_combination_is_a_point_once():
    """A point left out is a hole in the plot; one measured twice is time lost."""
    axes = [parse_axis("shape=1x8x8,2x8x8,16x24"), parse_axis("batch=1,4"), parse_axis("streams=1,2")]
    found = points((1, 9, 9), None, axes)
    shapes = [(1, 8, 8), (4, 8, 8), (1, 16, 24), (4, 16, 24)]
    assert [(point.shape, point.streams) for point in found] == [(s, n) for s in shapes for n in (1, 2)]
    assert points((2, 9, 9), 3, []) == [Point(shape=(2, 9, 9), streams=3)]
    assert [p.tile for p in points((1, 9, 9), None, [parse_axis("tile=8,16")])] == [8, 16]


@pytest.mark.slow
def test_a_sweep_measures_each_point_and_keeps_its_peers_and_seams(model, tmp_path, capsys):
    """Rows that all show the last shape look like a sweep as well; what is not kept cannot be compared later."""
    for path in model.parent.iterdir():
        shutil.copy(path, tmp_path)
    arguments = ["--sweep", "shape=1x8x8,1x16x8", "streams=1,2", "--seconds", "0.05", "--no-peaks"]
    arguments += ["--seams", "--peers", "onnxruntime"]
    page, saved = tmp_path / "r.html", tmp_path / "r.results.json"
    assert main([str(tmp_path / model.name), *arguments, "--json", str(saved), "--html", str(page)]) == 0
    data = json.loads(saved.read_text())
    rows, peers = data["results"][::2], data["results"][1::2]
    at = [(row["shape"], row["streams"]) for row in rows]
    assert at == [([1, 8, 8], 1), ([1, 8, 8], 2), ([1, 16, 8], 1), ([1, 16, 8], 2)]
    # Of each point with the values of that point: those of another one are of other rounds.
    assert [(ratio["name"], ratio["to"]) for ratio in data["ratios"]] == [("onnxruntime", "model.onnx")] * 4
    for row, peer, ratio in zip(rows, peers, data["ratios"], strict=True):
        assert ("throughput" in row["timings"]) == (row["streams"] == 2)
        assert (peer["name"], peer["kind"], peer["sha256"]) == ("onnxruntime", "peer", "")
        assert peer["shape"] == row["shape"]
        assert peer["difference"] < 1e-5
        ours, theirs = (one["timings"]["latency"]["values"] for one in (row, peer))
        assert ratio["median"] == pytest.approx(np.median(np.divide(ours, theirs)))
    assert data["seams"]["model.onnx"]["curve"]
    out = capsys.readouterr().out
    assert out.count("verified, at least") == 4
    assert "batch 1x16x8, 2 in flight" in out
    assert "seams of model.onnx" in out
    assert "held against the fp32 graph" in out
    assert "onnxruntime" in page.read_text()


@pytest.mark.parametrize(
    ("sweep", "shape", "words"),
    [
        ("tile=0,32", "1x48x48", "leaves nothing between two halos"),
        ("tile=64", "2x48x48", "a sweep over tiles cuts one picture"),
        ("batch=1,2147483647", "1x48x48", "more than the 2147483647 pixels"),
    ],
)
def test_a_point_that_cannot_be_measured_is_refused_before_any_is(
    model, tmp_path, capsys, sweep, shape, words
):
    """A traceback after the first points had been measured for minutes was all that was left of them."""
    arguments = [str(model), "--sweep", sweep, "--shape", shape, "--seconds", "0.1", "--no-peaks"]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("esrgan-bench: ")
    assert words in line


@pytest.mark.slow
def test_a_sweep_over_tiles_counts_the_pixels_of_the_picture(model):
    """Counting those of the tiles would make the halo's cost a gain."""
    options = BenchOptions(shape=(1, 40, 48), seconds=0.05, sweep=(parse_axis("tile=0,40"),), peaks=False)
    results = bench([model], options)
    assert [row.tile for row in results.rows] == [0, 40]
    for row in results.rows:
        assert row.pixels == 40 * 48
        assert row.figures("latency")["megapixels_per_second"] == pytest.approx(
            40 * 48 / row.timings["latency"].median / 1e6
        )
    assert "picture 40x48, tile 40" in table(results)
    assert "picture 40x48, tile none" in table(results)


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(model):
    """A child's getrusage begins with the peak of its parent, which has PyTorch and all else loaded."""
    ballast = np.ones(300 * 2**20, np.uint8)
    found, _ = measure_memory(model, Point(shape=(1, 8, 8)), BenchOptions(threads=1))
    ours = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in ours.splitlines() if line.startswith("VmHWM"))
    assert found["host"] + 200 * 2**20 < peak
    assert ballast.nbytes < peak
    assert found["host_before"] < found["host"]
    assert found["device"] is None
    bigger, _ = measure_memory(model, Point(shape=(1, 512, 512)), BenchOptions(threads=1))
    assert bigger["host"] > found["host"] + 512 * 512 * 16 * 3 * 4
    nothing, why = measure_memory(model.with_name("none.onnx"), Point(shape=(1, 8, 8)), BenchOptions())
    assert nothing is None
    assert "there is no file" in why


@pytest.mark.slow
def test_the_machines_own_peak_is_measured_or_said_not_to_be():
    """A share of a peak from a data sheet is a share of somebody else's machine."""
    found = measure_peaks(-1, 1, ["fp32", "int8"])
    gemm = found["compute"]["fp32"]
    assert gemm["flops"] == pytest.approx(2 * _peaks.CPU_SIDE**3 / min(gemm["values"]))
    assert "1 thread" in gemm["how"]
    assert found["copy"]["bytes_per_second"] == pytest.approx(
        2 * _peaks.CPU_COPY / min(found["copy"]["values"])
    )
    assert list(found["missing"]) == ["int8"]
    slower = json.loads(json.dumps(found))
    slower["compute"]["fp32"]["flops"] /= 2
    slower["copy"] = None
    for joined in (best_of(found, slower), best_of(slower, found)):
        assert joined["compute"]["fp32"]["flops"] == gemm["flops"]
        assert len(joined["compute"]["fp32"]["values"]) == 2 * len(gemm["values"])
        assert joined["copy"]["bytes_per_second"] == found["copy"]["bytes_per_second"]


@pytest.mark.slow
def test_a_peak_of_a_gpu_that_is_not_there_is_not_invented():
    """Nothing is better than a figure of the processor under the GPU's name."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    found = measure_peaks(0, None, ["fp16"])
    assert found["compute"] == {}
    assert found["copy"] is None
    assert "not measured" in found["missing"]["fp16"]


def test_values_of_a_round_belong_together():
    """Ratios of values from different rounds compare different seconds of a noisy machine."""
    clock = iter(range(1000))
    rounds = sample([lambda: next(clock), lambda: next(clock)], seconds=1e-6, least=4, most_warmups=1)
    assert all(b == a + 1 for a, b in zip(rounds[0].values, rounds[1].values, strict=True))
    assert paired_ratio([2.0, 4.0, 6.0], [1.0, 4.0, 2.0]) == (1.5, 2.0, 2.5)


def test_warming_up_ends_only_when_it_is_calm():
    """The first runs hold what is done once, and would be counted."""
    times = iter([9.0, 5.0, 1.0, 1.3, 1.0, 1.01, *[1.0] * 50])
    (timing,) = sample([lambda: next(times)], seconds=1e-6, least=3)
    assert timing.warmups == (9.0, 5.0, 1.0, 1.3, 1.0, 1.01)
    calls = []
    sample([lambda: calls.append(0) or 1.0], seconds=1e-6, least=2, half_way=lambda: calls.append("half"))
    assert calls.count("half") == 1


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 9, 8), "multiples of 2, not 9x8"), ((1, 64, 64), "1x2x2 to 4x32x32, not 1x64x64")],
)
def test_a_shape_that_a_model_does_not_take_is_refused_in_its_own_words(shape, words):
    """The runtime's text names neither the flag nor what is allowed."""
    info = dataclasses.replace(INFO, size_multiple=2, min_shape=(1, 2, 2), max_shape=(4, 32, 32))
    session = types.SimpleNamespace(info=info)
    with pytest.raises(InferenceError, match=words):
        open_subject(session, Path("x"), Point(shape=shape))


class _Slot:
    """Takes note of what is in flight."""

    def __init__(self, log, number):
        self.log, self.number, self.running = log, number, False
        self.batch = np.empty((1, 3, 4, 4), np.float32)

    def prepare(self, shape):
        assert not self.running, "a batch in flight was overwritten"
        return self.batch

    def start(self):
        self.running = True
        self.log.append(("start", self.number))

    def finish(self):
        assert self.running, "a slot was waited for that had nothing to do"
        self.running = False
        self.log.append(("finish", self.number))
        return BatchOutput(self.batch)

    def close(self):
        self.log.append(("close", self.number))


def test_idle_threads_leave_the_next_turn_alone(model):
    """ONNX Runtime's spin for a second after a batch: two graphs in turns each took twice the time of one alone."""
    used = {}
    for spin in (True, False):
        session = open_session(model, SessionOptions(threads=3, spin=spin))
        used[spin] = 0.0
        for _ in range(3):
            session.run(noise(session.info, (1, 64, 64)))
            before = time.process_time()
            time.sleep(0.3)
            # On a busy machine what spins may not get a turn in one of them; what does not spin takes none of them.
            used[spin] = max(used[spin], time.process_time() - before)
        session.close()
        del session
    assert used[False] < 0.03 < used[True]
    assert session_options(BenchOptions()).spin is False


def test_throughput_keeps_every_slot_busy_and_in_order():
    """With fewer in flight than asked for, the figure is that of another setting."""
    log, slots = [], iter(range(9))
    session = types.SimpleNamespace(info=INFO, slot=lambda: _Slot(log, next(slots)))
    subject = open_subject(session, Path("x"), Point(shape=(1, 4, 4), streams=3))
    subject.samplers["throughput"]()
    log.clear()
    assert subject.samplers["throughput"]() > 0
    finished = [number for what, number in log if what == "finish"]
    assert finished == [i % 3 for i in range(len(finished))]
    assert len(finished) == sum(what == "start" for what, _ in log)
    running, seen = 0, []
    for what, _ in log:
        running += 1 if what == "start" else -1
        seen.append(running)
    # Filled once, then between two and three, and only at the end fewer.
    assert set(seen[2:-2]) == {2, 3}
    subject.close()
    assert collections.Counter(log)["close", 0] == 1


def test_a_slot_that_is_refused_leaves_none_open():
    """On a GPU each holds memory of its own, which the next artefact needs."""
    log = []

    def slot():
        if len(log) == 2:
            raise InferenceError("no more")
        log.append("open")
        return types.SimpleNamespace(close=lambda: closed.append("close"))

    closed = []
    with pytest.raises(InferenceError):
        open_subject(
            types.SimpleNamespace(info=INFO, slot=slot), Path("x"), Point(shape=(1, 4, 4), streams=3)
        )
    assert len(closed) == len(log) == 2


def test_a_gpu_without_cuda_bindings_is_timed_by_the_host(monkeypatch, model, capsys):
    """ONNX Runtime computes there all the same; only the streams and events of the device's own time are missing."""
    real = onnxruntime.InferenceSession

    class OnCuda:
        def __init__(self, path, settings, **_):
            self.graph = real(path, settings, providers=["CPUExecutionProvider"])

        def __getattr__(self, name):
            return getattr(self.graph, name)

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCuda)
    for name in ("driver", "runtime"):
        monkeypatch.setitem(sys.modules, f"cuda.bindings.{name}", None)
    assert main([str(model), "--shape", "1x8x8", "--seconds", "0.01", "--no-peaks"]) == 0
    out = capsys.readouterr().out
    assert "device: not measured: cuda.bindings.runtime is not installed. Run: pip install 'esrgan-" in out
    assert "p50 ms each" in out


class _Cuda:
    """The runtime API as it would answer, with a log: no GPU is needed to see the order of the calls."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1)  # noqa: N815

    def __init__(self):
        self.log = []

    def __getattr__(self, name):
        answers = {"cudaEventElapsedTime": 8.0, "cudaStreamCreateWithFlags": 7, "cudaMalloc": 4096}

        def call(*arguments):
            self.log.append(name)
            return (0, answers.get(name, len(self.log)))

        return call


def test_the_devices_time_is_between_two_events_around_the_enqueue(monkeypatch):
    """With the upload or an allocation between them it would be no time of the device's own."""
    cuda = _Cuda()
    monkeypatch.setattr(_device_timing, "require", lambda module, extra: cuda)
    arrays = []

    class BatchOutput:
        def __init__(self, stream):
            self.stream = stream

        def __del__(self):
            cuda.log.append("freed on its stream")

    def run_on_device(array, *, stream=None, out=None):
        cuda.log.append("enqueue")
        handle = stream if isinstance(stream, int) else stream.__cuda_stream__()[1]
        arrays.append((array.__cuda_array_interface__, handle, type(out)))
        return BatchOutput(stream) if out is None else out

    session = types.SimpleNamespace(info=types.SimpleNamespace(device=1), run_on_device=run_on_device)
    once, release = device_sampler(session, np.zeros((1, 3, 4, 4), np.float16))
    assert arrays[0][0]["data"] == (4096, False)
    assert arrays[0][0]["typestr"] == "<f2"
    assert arrays[0][1:] == (7, type(None))
    cuda.log.clear()
    assert once() == pytest.approx(8e-3 / 4)
    assert cuda.log == [
        "enqueue", "cudaEventRecord", *["enqueue"] * 4, "cudaEventRecord", "cudaEventSynchronize",
        "cudaEventElapsedTime",
    ]  # fmt: skip
    assert all(call[1:] == (7, BatchOutput) for call in arrays[1:])
    cuda.log.clear()
    release()
    release()
    assert cuda.log == [
        "cudaEventDestroy",
        "cudaEventDestroy",
        "cudaFree",
        "freed on its stream",
        "cudaStreamDestroy",
    ]


def test_what_nvidia_smi_says_is_read_and_what_it_does_not_know_is_none():
    """'[N/A]' as a figure of power would stand in a report as one."""
    fields = {"name": "name", "power.draw": "power_w", "clocks.sm": "clock_mhz"}
    text = "NVIDIA H100 80GB HBM3, 71.25, 1980\nNVIDIA A10, [N/A], 210\n"
    assert _machine.parse_nvidia_smi(text, fields) == [
        {"name": "NVIDIA H100 80GB HBM3", "power_w": 71.25, "clock_mhz": 1980.0},
        {"name": "NVIDIA A10", "power_w": None, "clock_mhz": 210.0},
    ]


def test_an_nvidia_smi_that_lacks_a_column_is_asked_for_the_others(tmp_path, monkeypatch):
    """One name that an older driver does not know would cost every other figure."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'case "$1" in *clocks_throttle*) echo "Field is not a valid field to query."; exit 2;; esac\n'
        "echo '1980, 2619, 71.5, 33, 100, 512'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (gpu,) = _machine.machine_state()["gpus"]
    assert (gpu["clock_mhz"], gpu["power_w"], gpu["temperature_c"]) == (1980.0, 71.5, 33.0)


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_own_clock_too(model):
    """End to end alone hides what the device could do."""
    results = bench([model], BenchOptions(shape=(1, 64, 64), seconds=1.0, providers=("cuda",)))
    (row,) = results.rows
    assert {"latency", "throughput", "device"} <= set(row.timings)
    assert row.timings["device"].median <= row.timings["latency"].median
    assert row.memory["device"] > 0
    assert row.peak_flops or results.peaks["missing"]
