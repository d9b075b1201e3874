"""Earlier results are held against new ones only where that says something."""

import json

import pytest

from esrgan_deploy.benchmarks._bench import bench
from esrgan_deploy.benchmarks._cli import main
from esrgan_deploy.benchmarks._options import BenchOptions
from esrgan_deploy.benchmarks.record import load_results, save_results
from esrgan_deploy.benchmarks.report import table

# Values of a calm machine: half of them within 2 % of 10 ms.
CALM = [0.0098, 0.0099, 0.0100, 0.0101, 0.0102]


@pytest.fixture(scope="module")
def measured(tiny_export, tmp_path_factory):
    """A real run's JSON, its times replaced by calm ones."""
    folder = tmp_path_factory.mktemp("compare")
    models = [tiny_export / "model.onnx", tiny_export / "model.fp16.onnx"]
    results = bench(models, BenchOptions(shape=(1, 8, 8), seconds=0.05, threads=1, peaks=False))
    save_results(results, folder / "r.json")
    data = json.loads((folder / "r.json").read_text())
    for row in data["results"]:
        row["timings"]["latency"]["values"] = CALM
    return data


@pytest.fixture
def compared(measured, tmp_path, capsys):
    """Compare the run with an edited copy of it: ``edit(old)`` changes the earlier one, ``now(new)`` the later."""

    def run(edit=lambda old: None, now=lambda new: None, *flags):
        for name, change in (("old.json", edit), ("new.json", now)):
            data = json.loads(json.dumps(measured))
            change(data)
            (tmp_path / name).write_text(json.dumps(data))
        status = main([str(tmp_path / "new.json"), "--compare", str(tmp_path / "old.json"), *flags])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def _times(values, which=0, timing="latency"):
    def change(data):
        data["results"][which]["timings"][timing]["values"] = values

    return change


def test_a_run_is_the_same_as_itself(compared):
    """A check that fails on nothing is switched off."""
    status, out, _ = compared()
    assert status == 0
    assert out.count("+0.0%") == 2
    assert out.count(": the same") == 2


def test_an_artefact_that_became_slower_is_exit_1(compared):
    """That is what the comparison is for."""
    status, out, err = compared(now=_times([1.2 * value for value in CALM]))
    assert status == 1
    assert "model.onnx, batch 1x8x8, latency: 10.00 -> 12.00 ms, +20.0%" in out
    assert "SLOWER by more than 5%" in out
    (line,) = err.strip().splitlines()
    assert "model.onnx is slower" in line
    assert "fp16" not in line


def test_the_threshold_is_what_was_asked_for(compared):
    """A twentieth is too strict for one machine and too lax for another."""
    slower = _times([1.2 * value for value in CALM])
    assert compared(lambda old: None, slower, "--threshold", "0.25")[0] == 0
    assert compared(lambda old: None, _times([1.04 * v for v in CALM]), "--threshold", "0.03")[0] == 1
    assert compared(now=_times([1.04 * value for value in CALM]))[0] == 0


def test_what_is_within_the_noise_fails_nothing_and_is_said(compared):
    """A noisy machine would fail every other run, and be believed by nobody."""
    noisy = _times([0.008, 0.009, 0.012, 0.015, 0.016])
    status, out, _ = compared(now=noisy)
    assert status == 0
    assert "+20.0%" in out
    assert "slower within the noise" in out
    assert "(unstable)" in out
    assert "model.onnx: unstable, the middle half of the times (latency) spans 50% of the median" in out


def test_an_improvement_is_reported(compared):
    """Who made something faster wants to read it."""
    status, out, _ = compared(now=_times([0.5 * value for value in CALM]))
    assert status == 0
    assert "-50.0%" in out
    assert ": faster" in out


def test_a_slower_peer_fails_nothing(compared):
    """It is the machine's witness, not ours to mend."""

    def peer(factor, version):
        def change(data):
            row = json.loads(json.dumps(data["results"][0]))
            row |= {"name": "torch", "kind": "peer", "spec": None, "sha256": "", "difference": 1e-6}
            row["provider"] = f"PyTorch eager, CPU, version {version}"
            row["timings"]["latency"]["values"] = [factor * value for value in CALM]
            data["results"].append(row)

        return change

    status, out, _ = compared(peer(1, "2.13.0"), peer(1.5, "2.14.0"))
    assert status == 0
    assert "look whether the machine is" in out


def test_a_machine_that_changed_meanwhile_is_said(compared):
    """A clock that was throttled would be taken for a regression."""

    def peak(flops):
        def change(data):
            data["peaks"] = {"compute": {"fp32": {"flops": flops, "how": "x"}}, "copy": None, "missing": {}}

        return change

    assert "own peak in fp32 changed by -30%" in compared(peak(1e12), peak(0.7e12))[1]
    assert "own peak" not in compared(peak(1e12), peak(0.98e12))[1]


def _machine(data):
    data["environment"]["cpu"] = "another one"


def _card(data):
    data["environment"]["gpus"] = [{"name": "NVIDIA H100"}]


def _model(data):
    data["results"][0]["spec"]["source_sha256"] = "0" * 64


def _file(data):
    data["results"][0] |= {"spec": None, "sha256": "0" * 64}


def _shape(data):
    data["results"][0]["shape"] = [1, 16, 8]


def _streams(data):
    data["results"][0]["streams"] = 3


def _provider(data):
    data["results"][0]["provider"] = "ONNX Runtime 1.32.0, CUDA"


def _threads(data):
    data["results"][0]["threads"] = 7


def _precision(data):
    data["results"][0]["precision"] = "bf16"


def _schema(data):
    data["schema"] = 1


def _names(data):
    for row in data["results"]:
        row["name"] += ".old"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_machine, "another machine (cpu 'another one' against"),
        (_card, "GPUs ['NVIDIA H100'] against []"),
        (_model, "its source_sha256 differ"),
        (_shape, "batch 1x16x8, and now it is batch 1x8x8"),
        (_streams, "3 in flight"),
        (_provider, "different providers"),
        (_threads, "threads 7, now it is 1"),
        (_precision, "precision bf16, now it is fp32"),
        (_schema, "its schema is 1 and this version reads 2"),
        (_names, "none of that is measured now"),
    ],
)
def test_what_cannot_be_compared_is_refused(compared, edit, words):
    """A difference of machine or model would be taken for one of the code."""
    status, _, err = compared(edit)
    assert status == 1
    (line,) = err.strip().splitlines()
    assert words in line


def test_without_a_specification_the_file_itself_must_be_the_same(compared):
    """Two foreign graphs of one name are two models."""

    def no_spec(data):
        data["results"][0]["spec"] = None

    assert compared(no_spec, no_spec)[0] == 0
    status, _, err = compared(_file, no_spec)
    assert status == 1
    assert "its sha256 is 000000000000…" in err


def test_another_version_of_the_runtime_may_be_compared(compared):
    """Whether an upgrade costs something is a question that the tool has to answer."""

    def older(data):
        data["environment"]["packages"]["onnxruntime"] = "1.20.1"
        for row in data["results"]:
            row["provider"] = "ONNX Runtime 1.20.1, CPU"

    status, out, _ = compared(older)
    assert status == 0
    assert "onnxruntime: 1.20.1 then" in out


def test_another_slot_may_be_compared_and_another_card_not(compared):
    """Two cards of one kind are one machine; two kinds in one machine are two."""

    def on(card, bus):
        def change(data):
            data["environment"]["gpus"] = [{"name": "NVIDIA A10", "pci_bus_id": "00000000:1B:00.0"}]
            for row in data["results"]:
                row["provider"] = f"tensorrt 11.4.0, cuda:{int(bus != '1B')} (NVIDIA {card}, 0000:{bus}:00.0)"

        return change

    status, out, _ = compared(on("A10", "1B"), on("A10", "65"))
    assert status == 0
    assert "GiB; NVIDIA A10 (00000000:1B:00.0)" in out
    assert "different providers" in compared(on("A10", "1B"), on("H200", "1B"))[2]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 2, "results": [{}]}'])
def test_a_file_that_holds_no_results_is_one_line(tmp_path, capsys, text):
    """A KeyError would be taken for a bug of the comparison."""
    (tmp_path / "x.json").write_text(text)
    assert main([str(tmp_path / "x.json")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "holds no results" in line


def test_a_time_that_is_no_number_is_one_line(measured, tmp_path, capsys):
    """Its median is none either, and no plot has a place for it."""
    data = json.loads(json.dumps(measured))
    data["results"][0]["timings"]["latency"]["values"][0] = float("nan")
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert main([str(tmp_path / "x.json"), "--html", str(tmp_path / "x.html")]) == 1
    assert "holds no times above 0" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_another_machine_is_refused_before_anything_is_measured(measured, tmp_path, capsys):
    """Ten seconds of measuring for a refusal that was known before."""
    data = json.loads(json.dumps(measured))
    _machine(data)
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert main([str(tmp_path / "no-such.onnx"), "--compare", str(tmp_path / "old.json")]) == 1
    assert "another machine" in capsys.readouterr().err


def test_the_saved_results_become_a_report(measured, tmp_path, capsys):
    """Whoever is sent the JSON wants the plots without the machine."""
    (tmp_path / "a.json").write_text(json.dumps(measured))
    assert main([str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]) == 0
    assert "verified, at least" in capsys.readouterr().out
    page = (tmp_path / "a.html").read_text()
    assert "model.fp16.onnx" in page
    assert "</html>" in page


def test_results_come_back_from_their_file_as_they_were(measured, tmp_path):
    """A field that is lost on the way is missing in every later comparison."""
    (tmp_path / "a.json").write_text(json.dumps(measured))
    results = load_results(tmp_path / "a.json")
    save_results(results, tmp_path / "b.json")
    assert load_results(tmp_path / "b.json") == results
    assert table(load_results(tmp_path / "b.json")) == table(results)
    data = json.loads((tmp_path / "b.json").read_text())
    assert data.keys() == measured.keys()
    assert data["results"][0].keys() == measured["results"][0].keys()
    assert data["results"][0]["timings"]["latency"]["p99"] == pytest.approx(0.010196)
