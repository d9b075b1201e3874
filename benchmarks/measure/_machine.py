"""The machine: what it is, and the state that it was in."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["describe_machine", "machine_state", "same_machine", "usable_cores"]

# What makes two machines the same for a comparison. Versions of packages may differ: that is what one compares.
IDENTITY = ("machine", "cpu", "cores", "memory_gib", "system")

PACKAGES = (
    "esrgan-deploy",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt_rtx",
    "cuda-bindings",
)

_GPU = {
    "name": "name",
    "pci.bus_id": "pci_bus_id",
    "driver_version": "driver",
    "memory.total": "memory_mib",
    "compute_cap": "compute_capability",
    "power.limit": "power_limit_w",
    "clocks.max.sm": "clock_limit_mhz",
}
_GPU_STATE = {
    "clocks.sm": "clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
    "utilization.gpu": "busy_percent",
    "memory.used": "memory_used_mib",
    "clocks_throttle_reasons.active": "throttled_by",
}


# Columns that not every driver knows; one unknown name makes nvidia-smi refuse the whole question.
_DOUBTFUL = {"compute_cap", "clocks_throttle_reasons.active"}


def describe_machine() -> dict[str, Any]:
    """Return what does not change during a run; see `_schema.py`."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "gpus": _nvidia_smi(_GPU),
    }


def usable_cores() -> int:
    """Return how many of the processor's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_state() -> dict[str, Any]:
    """Return load, clocks, power and temperature as they are now; None for what nothing here tells."""
    return {
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "cpu_mhz": _cpu_mhz(),
        "gpus": _nvidia_smi(_GPU_STATE),
    }


def same_machine(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return an empty string where two descriptions are of one kind of machine, else what differs.

    Args:
        old: From `describe_machine`.
        new: Likewise.
    """
    differing = [
        f"{key} {old.get(key)!r} against {new.get(key)!r}" for key in IDENTITY if old.get(key) != new.get(key)
    ]
    cards = [[gpu.get("name") for gpu in side.get("gpus") or []] for side in (old, new)]
    if cards[0] != cards[1]:
        differing.append(f"GPUs {cards[0]} against {cards[1]}")
    return ", ".join(differing)


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        # Only Linux has it, and not on every processor.
        return platform.processor() or platform.machine()


def _cpu_mhz() -> list[float] | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")] or None


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, OSError, ValueError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi(fields: dict[str, str]) -> list[dict[str, Any]]:
    # One dictionary for each GPU; an empty list where there is no driver.
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    if answer.returncode == 0:
        return parse_nvidia_smi(answer.stdout, fields)
    fewer = {column: name for column, name in fields.items() if column not in _DOUBTFUL}
    return _nvidia_smi(fewer) if fewer != fields else []


def parse_nvidia_smi(text: str, fields: dict[str, str]) -> list[dict[str, Any]]:
    """Read what nvidia-smi prints as CSV without a head and without units.

    Args:
        text: A line for each GPU.
        fields: By nvidia-smi's name of the column: the name to give it.
    """
    gpus = []
    for line in text.strip().splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(fields):
            gpus.append({name: _number(cell) for name, cell in zip(fields.values(), cells, strict=True)})
    return gpus


def _number(cell: str) -> Any:
    # "[N/A]" and "[Not Supported]" are what a virtual GPU answers to questions of power.
    if cell.startswith("["):
        return None
    try:
        return float(cell)
    except ValueError:
        return cell
