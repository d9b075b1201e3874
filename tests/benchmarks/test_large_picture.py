"""The benchmark of a large picture's memory measures what it says."""

import json

import pytest

from esrgan_deploy.benchmarks.large_picture import main


def test_the_peak_is_that_of_a_process_of_its_own(tmp_path, capfd):
    """In this process the peak would be that of the heaviest test before."""
    small, mapped = tmp_path / "small.json", tmp_path / "mapped.json"
    assert main(["--size", "70x40", "--tile", "48", "--json", str(small)]) == 0
    assert main(["--size", "70x40", "--tile", "48", "--map", "--json", str(mapped)]) == 0
    for path in (small, mapped):
        figures = json.loads(path.read_text())
        assert 0.05 < figures["peak_gib"] < 0.4
        assert figures["tiles"] > 1
    assert json.loads(mapped.read_text())["memory map"] is True
    assert "peak" in capfd.readouterr().out


@pytest.mark.parametrize("size", ["4000", "0x5", "axb"])
def test_a_size_that_is_none_is_a_usage_error(size):
    """Scripts tell it by exit status 2."""
    with pytest.raises(SystemExit) as caught:
        main(["--size", size])
    assert caught.value.code == 2


def test_a_model_that_is_not_there_is_one_line(capfd):
    """And exit status 1."""
    assert main(["nowhere.onnx", "--size", "8x8"]) == 1
    assert "exit status 1" in capfd.readouterr().err.splitlines()[-1]
