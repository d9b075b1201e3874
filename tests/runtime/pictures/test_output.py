"""Outputs that memory does not hold, and how much memory there is."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esrgan_deploy import InferenceError
from esrgan_deploy.runtime.device import MemoryFacts, device_memory, processor_memory
from esrgan_deploy.runtime.pictures import _output, empty_output, open_output, release_rows

CGROUP = "sys/fs/cgroup"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine of 8 GiB with 6 GiB free, an L2 of 512 KiB and an L3 of 32 MiB."""
    write(tmp_path, "proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable:    6291456 kB\n")
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "32K"), (1, "Instruction", "64K"), (2, "Unified", "512K"), (3, "Unified", "32M")]
    ):
        folder = f"sys/devices/system/cpu/cpu0/cache/index{index}"
        for name, value in (("level", level), ("type", kind), ("size", size)):
            write(tmp_path, f"{folder}/{name}", f"{value}\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_an_output_that_fits_is_plain_memory():
    """A file for every thumbnail would be slow, and a view of something else would be written to twice."""
    out = empty_output((40, 30, 3), np.uint16)
    assert (out.shape, out.dtype, out.base) == ((40, 30, 3), np.uint16, None)


def test_an_output_beyond_memory_names_the_way_out():
    """The system grants any size and ends the process in the middle of the picture."""
    with pytest.raises(
        InferenceError, match=r"1000000x1000000 pixels takes 2794.0 GiB .* out= .*open_output"
    ):
        empty_output((10**6, 10**6, 3), np.uint8)


def test_memory_that_would_be_granted_and_is_not_there_is_not_taken(monkeypatch):
    """Linux grants twice what is free without a word, and ends the process when it is written to."""
    facts = MemoryFacts(free_bytes=1000, l2_bytes=None, kind="processor")
    monkeypatch.setattr(_output, "processor_memory", lambda: facts)
    assert empty_output((40, 25), np.uint8).nbytes == 1000
    with pytest.raises(InferenceError, match="out="):
        empty_output((41, 25), np.uint8)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (7,)])
def test_an_output_without_pixels_is_refused(shape, tmp_path):
    """An x0.5 net makes nothing of one pixel; an empty file is no picture."""
    with pytest.raises(InferenceError, match="no pixel"):
        empty_output(shape, np.uint8)
    with pytest.raises(InferenceError, match="no pixel"), open_output(tmp_path / "a.npy", shape, np.uint8):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.npy", "out.raw"])
def test_a_file_holds_what_was_written(name, tmp_path):
    """The samples must be on the disk under the name that was asked for, and nothing beside it."""
    picture = np.random.default_rng(1).random((50, 40, 3), np.float32)
    with open_output(tmp_path / name, picture.shape, picture.dtype) as out:
        for y, row in enumerate(picture):
            out[y] = row
        assert not (tmp_path / name).exists()
    path = tmp_path / name
    read = np.load(path) if path.suffix == ".npy" else np.fromfile(path, np.float32).reshape(50, 40, 3)
    assert np.array_equal(read, picture)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_stood_there(tmp_path):
    """Half a picture under the final name is taken for a whole one."""
    (tmp_path / "out.npy").write_bytes(b"old")
    with (
        pytest.raises(RuntimeError, match="stop"),
        open_output(tmp_path / "out.npy", (9, 9), np.uint8) as out,
    ):
        out[:5] = 1
        raise RuntimeError("stop")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.npy", b"old")]


@pytest.mark.parametrize("times", [1.5, 10_000])
@pytest.mark.parametrize("name", ["out.npy", "out.raw"])
def test_a_disk_that_is_too_small_is_refused_at_once(name, times, tmp_path):
    """A hole that the disk cannot fill ends the process with SIGBUS, after hours of work."""
    rows = int(shutil.disk_usage(tmp_path).free * times) // 2**20
    with (
        pytest.raises(InferenceError, match=r"GiB, which .* does not hold .* write elsewhere"),
        open_output(tmp_path / name, (rows, 2**20), np.uint8),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("released", [True, False])
def test_rows_that_are_released_leave_memory_and_stay_in_the_file(released, tmp_path):
    """A picture larger than memory would otherwise push everything else out of it."""
    code = f"""
import numpy as np
from pathlib import Path
from esrgan_deploy.runtime.pictures._output import open_output, release_rows
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
with open_output({str(tmp_path / "out.npy")!r}, (2048, 32768, 3), np.uint8) as out:
    before, most = resident(), 0
    for top in range(0, 2048, 64):
        out[top : top + 64] = top // 64
        most = max(most, resident() - before)
        if {released}:
            assert release_rows(out[:, ::, :], top, top + 64)
again = np.load({str(tmp_path / "out.npy")!r}, mmap_mode="r")
assert (again[::64, 7, 1] == np.arange(32)).all() and (again[63::64, -1, -1] == np.arange(32)).all()
print(most)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # 192 MiB are written, 6 MiB at a time.
    most = int(done.stdout)
    assert (most < 32 * 2**20) if released else (most > 150 * 2**20)


def test_rows_that_cannot_be_released_keep_their_values(tmp_path):
    """What is in no file is lost with its pages: ordinary memory, and a copy-on-write map."""
    np.save(tmp_path / "a.npy", np.zeros((64, 4096), np.uint8))
    for array in (np.zeros((64, 4096), np.uint8), np.load(tmp_path / "a.npy", mmap_mode="c")):
        array[:] = 7
        assert not release_rows(array, 0, 64)
        assert (array == 7).all()


def test_only_whole_rows_of_a_map_are_released(tmp_path):
    """A strided view spans samples of others, and an empty range nothing."""
    with open_output(tmp_path / "out.npy", (64, 8192), np.uint8) as out:
        assert not release_rows(out[:, :4096], 0, 64)
        assert not release_rows(out, 5, 5)
        assert release_rows(out, 0, 64)


def test_this_machine_says_what_is_free():
    """Nothing free, or more than there is, makes every choice of tile a guess."""
    facts = processor_memory()
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 64 * 2**20 < facts.free_bytes <= total
    assert facts.kind == "processor"
    assert facts.l2_bytes is None or 2**17 <= facts.l2_bytes <= 2**32


def test_without_groups_the_machine_is_the_limit(machine):
    """The last cache is the largest level's, and instructions are no data."""
    assert processor_memory(machine) == MemoryFacts(
        free_bytes=6 * 2**30, l2_bytes=32 * 2**20, kind="processor"
    )


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/jobs/mine", f"{CGROUP}/jobs", ("memory.max", "memory.current")),
        ("0::/jobs/mine", f"{CGROUP}/jobs/mine", ("memory.max", "memory.current")),
        (
            "4:cpu,memory:/jobs/mine",
            f"{CGROUP}/memory/jobs/mine",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ),
        # A container sees its own group as the mount's root and the host's path as its name.
        ("4:memory:/host/path", f"{CGROUP}/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
        ("0::/", CGROUP, ("memory.max", "memory.current")),
    ],
)
def test_a_control_groups_limit_counts(line, folder, names, machine):
    """A container of 2 GiB on a large machine is ended for taking what the machine has free."""
    write(machine, "proc/self/cgroup", f"9:name=systemd:/\n{line}\n")
    write(machine, f"{folder}/{names[0]}", f"{2 * 2**30}\n")
    write(machine, f"{folder}/{names[1]}", f"{2**30}\n")
    assert processor_memory(machine).free_bytes == 2**30
    # Pages of files that nobody used lately are given back on demand.
    write(machine, f"{folder}/memory.stat", f"anon 5\ninactive_file {2**28}\n")
    assert processor_memory(machine).free_bytes == 2**30 + 2**28


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_a_group_without_a_limit_limits_nothing(limit, machine):
    """Both versions have their own word for none."""
    write(machine, "proc/self/cgroup", "0::/a\n")
    write(machine, f"{CGROUP}/a/memory.max", limit + "\n")
    write(machine, f"{CGROUP}/a/memory.current", "5\n")
    assert processor_memory(machine).free_bytes == 6 * 2**30


def test_a_group_above_its_limit_leaves_nothing(machine):
    """A negative number of bytes would pass as small."""
    write(machine, "proc/self/cgroup", "0::/a\n")
    write(machine, f"{CGROUP}/a/memory.max", "100\n")
    write(machine, f"{CGROUP}/a/memory.current", "200\n")
    assert processor_memory(machine).free_bytes == 0


@pytest.mark.gpu
def test_the_gpu_says_what_is_free():
    """Without it the tile is chosen as if the card were unknown."""
    facts = device_memory(0)
    assert facts.kind == "gpu"
    assert facts.free_bytes > 2**26
    assert facts.l2_bytes is not None
