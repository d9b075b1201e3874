"""What the machine itself can do, measured in the same run: a large matrix product and a large copy.

``python -m esrgan_deploy.benchmarks.measure._peaks '{"device": -1, "threads": 2, "precisions": ["fp32"]}'`` prints
``{"compute": {"fp32": {"flops", "how", "values"}}, "copy": {"bytes_per_second", "how", "values"}, "missing": {…}}``:
``values`` are seconds, ``flops`` and ``bytes_per_second`` are those of the fastest one, because a roof is what can be
reached, and ``missing`` says of a precision, or of ``copy``, why it was not measured.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from esrgan_deploy._console import one_line
from esrgan_deploy.benchmarks.measure._machine import usable_cores
from esrgan_deploy.benchmarks.measure._timing import timed

__all__ = ["best_of", "measure_peaks"]

# Long enough that a turbo clock settles, short enough that nobody leaves it out.
SECONDS = 0.8
CPU_SIDE = 1536
GPU_SIDE = 8192
# Larger than the last cache of any processor; for a GPU a share of what is free if that is less.
CPU_COPY = 256 * 2**20
GPU_COPY = 2**30

Peaks = dict[str, Any]


def measure_peaks(device: int, threads: int | None, precisions: Sequence[str]) -> Peaks:
    """Measure in a process of its own, so that what it loads is no part of any artefact's memory or threads.

    Args:
        device: Ordinal of the GPU, or -1 for the processor.
        threads: Threads on the processor; None takes as many as this process may use.
        precisions: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"``, ``"fp8"``. On a GPU
            fp32 brings a second roof, ``"tf32"``.
    """
    number = str(threads or usable_cores())
    # OpenBLAS, MKL and OpenMP read theirs when they are loaded and never again.
    limits = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), number)
    question = {"device": device, "threads": int(number), "precisions": list(dict.fromkeys(precisions))}
    command = [sys.executable, "-m", "esrgan_deploy.benchmarks.measure._peaks", json.dumps(question)]
    reason = "the process that measures it"
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, **limits}
        )
        if answer.returncode == 0:
            result: Peaks = json.loads(answer.stdout)
            return result
        reason += f" ended with {answer.returncode} ({(answer.stderr.strip().splitlines() or [''])[-1]})"
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason += f" failed ({one_line(error)[:200]})"
    return {"compute": {}, "copy": None, "missing": dict.fromkeys([*precisions, "copy"], reason)}


def best_of(first: Peaks, second: Peaks) -> Peaks:
    """Join what was measured before and after the artefacts; the roof is the best of both.

    Args:
        first: From `measure_peaks`.
        second: Likewise.
    """
    compute = {
        name: _joined(first["compute"].get(name), second["compute"].get(name), "flops")
        for name in {**first["compute"], **second["compute"]}
    }
    copy = _joined(first["copy"], second["copy"], "bytes_per_second")
    have = {*compute, *(["copy"] if copy else [])}
    missing = {k: v for k, v in {**first["missing"], **second["missing"]}.items() if k not in have}
    return {"compute": compute, "copy": copy, "missing": missing}


def _joined(first: Any, second: Any, rate: str) -> Any:
    if first is None or second is None:
        return first or second
    return {
        **first,
        rate: max(first[rate], second[rate]),
        "values": [*first["values"], *second["values"]],
    }


def _main(question: dict[str, Any]) -> Peaks:
    if question["device"] < 0:
        return _of_processor(question["threads"], question["precisions"])
    return _of_gpu(question["device"], question["precisions"])


def _of_processor(threads: int, precisions: Sequence[str]) -> Peaks:
    import numpy as np

    result: Peaks = {"compute": {}, "copy": None, "missing": {}}
    random = np.random.default_rng(0)
    a, b = (random.random((CPU_SIDE, CPU_SIDE), np.float32) for _ in range(2))
    product = np.empty_like(a)
    for precision in precisions:
        if precision != "fp32":
            result["missing"][precision] = "not measured: numpy multiplies matrices in fp32 on a processor"
            continue
        values = _repeat(timed(lambda: np.matmul(a, b, out=product)))
        result["compute"][precision] = {
            "flops": 2 * CPU_SIDE**3 / min(values),
            "how": f"numpy {np.__version__}, {CPU_SIDE}x{CPU_SIDE} matrix product in fp32, {_threads(threads)}",
            "values": values,
        }
    try:
        source, target = np.ones(CPU_COPY, np.uint8), np.ones(CPU_COPY, np.uint8)
    except MemoryError:
        result["missing"]["copy"] = f"not measured: {2 * CPU_COPY // 2**20} MiB are not to be had"
        return result
    parts = [slice(i * CPU_COPY // threads, (i + 1) * CPU_COPY // threads) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        # numpy gives up the interpreter's lock for the length of a copy.
        values = _repeat(
            timed(lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts)))
        )
    # Read once, written once; what a cache fetches in order to write is not counted, as STREAM does not.
    result["copy"] = {
        "bytes_per_second": 2 * CPU_COPY / min(values),
        "how": f"numpy copy of {CPU_COPY // 2**20} MiB, read and written, {_threads(threads)}",
        "values": values,
    }
    return result


def _of_gpu(device: int, precisions: Sequence[str]) -> Peaks:
    # Written against PyTorch 2.13; run on a GPU only where one was at hand, see docs/performance.md.
    result: Peaks = {"compute": {}, "copy": None, "missing": {}}
    try:
        import torch
    except ImportError:
        reason = "not measured: PyTorch is not installed here, which would multiply the matrices"
        return {**result, "missing": dict.fromkeys([*precisions, "copy"], reason)}
    if not torch.cuda.is_available():
        reason = "not measured: the PyTorch that is installed here sees no GPU"
        return {**result, "missing": dict.fromkeys([*precisions, "copy"], reason)}
    torch.cuda.set_device(device)
    # Tensor cores take fp32 in another, coarser form: a roof of its own, which no fp32 artefact is held against.
    both = [name for one in precisions for name in (("fp32", "tf32") if one == "fp32" else (one,))]
    for precision in both:
        try:
            run, what = _product(precision)
            values = _repeat(_event_timer(run))
        except (RuntimeError, AttributeError, KeyError) as error:
            result["missing"][precision] = f"not measured: {one_line(error)[:160]}"
            continue
        result["compute"][precision] = {
            "flops": 2 * GPU_SIDE**3 / min(values),
            "how": f"PyTorch {torch.__version__}, {GPU_SIDE}x{GPU_SIDE} matrix product in {what}",
            "values": values,
        }
    torch.cuda.empty_cache()
    size = min(GPU_COPY, int(torch.cuda.mem_get_info()[0]) // 4)
    source = torch.ones(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    values = _repeat(_event_timer(lambda: target.copy_(source)))
    result["copy"] = {
        "bytes_per_second": 2 * size / min(values),
        "how": f"copy of {size // 2**20} MiB on the device, read and written",
        "values": values,
    }
    return result


def _product(precision: str) -> tuple[Callable[[], object], str]:
    import torch

    if precision == "int8":
        a, b = (torch.randint(-9, 9, (GPU_SIDE,) * 2, dtype=torch.int8, device="cuda") for _ in range(2))
        return lambda: torch._int_mm(a, b.t()), "int8"
    if precision == "fp8":
        a, b = (torch.rand((GPU_SIDE,) * 2, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device="cuda")
        return (
            lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16),
            "fp8 (e4m3)",
        )
    float32 = precision in ("fp32", "tf32")
    dtype = torch.float32 if float32 else {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    if float32:
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    a, b = (torch.rand((GPU_SIDE,) * 2, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    what = {"fp32": "fp32 (IEEE, no TF32)", "tf32": "fp32 rounded to TF32 on tensor cores"}.get(
        precision, precision
    )
    return lambda: torch.matmul(a, b, out=out), what


def _event_timer(run: Callable[[], object]) -> Callable[[], float]:
    import torch

    def once() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return once


def _repeat(once: Callable[[], float], least: int = 5) -> list[float]:
    once()
    values: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(values) < least or time.perf_counter() < end:
        values.append(once())
    # A clock that jumped gives a value that no machine reaches.
    return [value for value in values if value > statistics.median(values) / 10]


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
