"""What a GPU is, and how much memory is free there or here."""

import ctypes
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from esrgan_deploy.runtime.device._driver import libcuda

__all__ = ["DeviceFacts", "MemoryFacts", "device_facts", "device_memory", "processor_memory"]

# What cgroup v1 states where nothing is limited lies just under 2^63; no machine has a tenth of it.
UNLIMITED = 2**59
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, and _L2_CACHE_SIZE.
ATTRIBUTES = (75, 76, 38)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What a GPU is.

    Attributes:
        name: As the driver calls it.
        compute_capability: ``"9.0"`` and so on.
        driver: Newest CUDA version that the driver knows, ``13000`` for 13.0.
        ordinal: As CUDA counts.
        l2_bytes: Size of the L2 cache; None where it is not known.
    """

    name: str
    compute_capability: str
    driver: int
    ordinal: int = 0
    l2_bytes: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """What a choice of tile starts from.

    Attributes:
        free_bytes: Memory that can still be taken, without swapping and within every limit set on the process.
        l2_bytes: The last cache in front of that memory: L2 of a GPU, L3 or else L2 of a processor; None where
            it is not known.
        kind: What the memory belongs to.
    """

    free_bytes: int
    l2_bytes: int | None
    kind: Literal["processor", "gpu"]


def device_facts(ordinal: int | None = None) -> DeviceFacts | None:
    """Ask the driver about a GPU; None where there is no driver or no such GPU. Creates no context.

    Args:
        ordinal: As CUDA counts; None for the one whose context is current, else the first.
    """
    driver = libcuda()
    if driver is None or driver.cuInit(0) != 0:
        return None
    device, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if ordinal is None:
        ordinal = device.value if driver.cuCtxGetDevice(ctypes.byref(device)) == 0 else 0
    if driver.cuDeviceGet(ctypes.byref(device), ordinal) != 0:
        return None
    numbers = [ctypes.c_int() for _ in ATTRIBUTES]
    for value, attribute in zip(numbers, ATTRIBUTES, strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
    named = driver.cuDeviceGetName(name, len(name), device) == 0
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    major, minor, l2_bytes = (value.value for value in numbers)
    return DeviceFacts(
        name=name.value.decode(errors="replace") if named else f"GPU {ordinal}",
        compute_capability=f"{major}.{minor}",
        driver=version.value,
        ordinal=ordinal,
        l2_bytes=l2_bytes or None,
    )


def processor_memory(root: Path = Path("/")) -> MemoryFacts:
    """Return what this machine and this process's control groups (v1 or v2) leave free.

    Args:
        root: Where ``proc`` and ``sys`` lie.
    """
    free = _available(root)
    for limit, used in _limits(root):
        if limit < UNLIMITED:
            free = min(free, max(0, limit - used))
    return MemoryFacts(free_bytes=free, l2_bytes=_last_cache(root), kind="processor")


def device_memory(device: int) -> MemoryFacts:
    """Return what is free on a CUDA device. Not run on a GPU so far.

    Args:
        device: Its ordinal.

    Raises:
        InferenceError: There is no driver or no such device.
    """
    from esrgan_deploy.runtime.device._context import Device

    held, facts = Device(device), device_facts(device)
    try:
        free, _ = held.memory()
        return MemoryFacts(free_bytes=free, l2_bytes=facts.l2_bytes if facts else None, kind="gpu")
    finally:
        held.close()


def _available(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Not Linux, or /proc is not to be had: the physical memory's half is a guess that rarely swaps.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    # Every group from this process's up to the root sets a limit of its own.
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names, base = ("memory.max", "memory.current"), mount
        elif "memory" in controllers.split(","):
            names, base = ("memory.limit_in_bytes", "memory.usage_in_bytes"), mount / "memory"
        else:
            continue
        # Inside a container the path may be the host's, which is not to be seen; the mount's root is then its own.
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder == base.parent:
                break
            limit, used = _number(folder / names[0]), _number(folder / names[1])
            if limit is not None and used is not None:
                yield limit, used - _reclaimable(folder / "memory.stat")


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


def _reclaimable(path: Path) -> int:
    # File pages that nobody used lately count as used and are given back on demand; with v1 the line that sums
    # the groups below starts with total_.
    found = {}
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name.endswith("inactive_file"):
                found[name] = int(value)
    except OSError:
        return 0
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def _last_cache(root: Path) -> int | None:
    best: tuple[int, int] | None = None
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level = int((index / "level").read_text(encoding="ascii"))
            kind = (index / "type").read_text(encoding="ascii").strip()
            size = _size((index / "size").read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            continue
        if kind != "Instruction":
            best = max(best or (0, 0), (level, size))
    return None if best is None else best[1]


def _size(text: str) -> int:
    # "512K", "32768K"
    factor = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:])
    return int(text) if factor is None else int(text[:-1]) * factor
