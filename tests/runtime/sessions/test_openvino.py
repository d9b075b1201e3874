"""OpenVINO as a session: it computes what ONNX Runtime computes, or is refused in one line."""

import contextlib
import dataclasses
import re
import shutil
import sys

import numpy as np
import openvino
import pytest

from esrgan_deploy import InferenceError, MissingDependencyError, ParityError, Upscaler
from esrgan_deploy.runtime import SessionOptions, default_model, open_session
from esrgan_deploy.runtime.sessions import _auto, verify_golden
from esrgan_deploy.runtime.sessions.openvino import _device, _session

HERE = SessionOptions(providers=("openvino",))
ORT = SessionOptions(providers=("cpu",), spin=False)
AUTO = SessionOptions(providers=("auto",))

# Sums of some hundred products in fp32, in another order.
TOLERANCE = 2e-5

SHAPE = (2, 6, 10)
KINDS = {
    "float": ("convolved", {}),
    "gray": ("convolved", {"channels": 1, "io": {"channels": 1}}),
    "uint8": ("convolved", {"io": {"form": "uint8"}}),
    "fp16": ("convolved", {"io": {"dtype": "fp16"}}),
    "fixed": ("convolved", {"io": {"size": SHAPE}}),
    "multiples of two": ("unshuffled", {}),
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ESRGAN_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:
        yield lambda path, options: stack.enter_context(contextlib.closing(open_session(path, options)))


@pytest.fixture
def able(monkeypatch):
    """The processor as one with instructions for bf16 and fp16; without them OpenVINO computes these in fp32."""
    monkeypatch.setattr(_device, "arithmetic_of", lambda device="CPU": ("fp32", "fp16", "bf16"))
    monkeypatch.setattr("esrgan_deploy.runtime.sessions.openvino.arithmetic_of", _device.arithmetic_of)


def _batch(info, shape=SHAPE, seed=0):
    samples = np.random.default_rng(seed).integers(0, 256, info.batch_shape(*shape), np.uint8)
    return samples if info.form == "uint8" else (samples / np.float32(255)).astype(info.dtype)


def _far(one, other):
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    return np.abs(one.astype(np.float32) - other.astype(np.float32)).max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_of_any_form_is_the_same_in_both(make, opened, kind):
    """What is known of a graph, and what is made of a batch, may not depend on what runs it."""
    body, how = KINDS[kind]
    path = make(body, **how)
    reference, session = opened(path, ORT), opened(path, HERE)
    assert "OpenVINO" in session.info.provider
    assert dataclasses.replace(session.info, provider="") == dataclasses.replace(reference.info, provider="")
    batch = _batch(session.info)
    expected = reference.run(batch)
    bound = {"uint8": 1, "fp16": 4e-3}.get(kind, TOLERANCE)
    assert _far(session.run(batch), expected) <= bound
    assert _far(session.run_on_device(batch), expected) <= bound
    out = np.zeros_like(expected)
    assert session.run_on_device(batch, out=out) is out
    assert _far(out, expected) <= bound


def test_slots_keep_their_batches_apart(make, opened):
    """Two requests are on their way at once: the tiles of one picture would be in another."""
    path = make("convolved")
    reference, session = opened(path, ORT), opened(path, dataclasses.replace(HERE, streams=2))
    assert session.info.slots == session.info.at_once == 2
    slots = [session.slot(), session.slot()]
    for round_ in range(3):
        # Another size in each round, whose buffers are new.
        shape = (1, 8 + round_, 12)
        batches = [_batch(session.info, shape, seed) for seed in (round_, 7 + round_)]
        for slot, batch in zip(slots, batches, strict=True):
            slot.prepare(shape)[:] = batch
            slot.start()
        for slot, batch in zip(slots, batches, strict=True):
            assert _far(slot.finish().batch, reference.run(batch)) <= TOLERANCE
    for slot in slots:
        slot.close()
        slot.close()
    session.close()
    with pytest.raises(InferenceError, match=r"model\.onnx is closed; open it again"):
        session.slot()


def test_a_slot_out_of_order_is_refused(make, opened):
    """A result that was never made would be whatever lay in memory."""
    slot = opened(make("convolved"), HERE).slot()
    with pytest.raises(InferenceError, match="started before it was prepared"):
        slot.start()
    slot.prepare((1, 4, 4))
    with pytest.raises(InferenceError, match="asked for what it was not given"):
        slot.finish()
    with pytest.raises(InferenceError, match="0 rows"):
        slot.prepare((1, 0, 4))


def test_graphs_that_others_made_are_adapted(graphs, opened, tmp_path):
    """What a net of somebody else takes is measured by greys, whatever runs it."""
    # White is 255 at both ends, which the declaration does not say.
    path = graphs.write_graph(
        tmp_path / "foreign.onnx",
        lambda g, x: g("Clip", g.resize(x, 2, "nearest"), g.constant(0), g.constant(255)),
    )
    said = {"range": 255, "layout": "NCHW"}
    reference, session = (opened(path, dataclasses.replace(how, **said)) for how in (ORT, HERE))
    assert "its own form NCHW 0..255 to 0..255" in session.info.provider
    batch = _batch(session.info)
    slot = session.slot()
    slot.prepare(SHAPE)[:] = batch
    slot.start()
    assert _far(slot.finish().batch, reference.run(batch)) <= TOLERANCE


def test_another_device_compiles_each_shape(make, opened, cache):
    """An NPU takes no other graphs; sizes come and go, and the fifth throws the first out."""
    path = make("convolved")
    reference = opened(path, ORT)
    session = opened(path, SessionOptions(providers=("openvino:HETERO:CPU",)))
    assert "HETERO:CPU" in session.info.provider
    for height in (4, 5, 6, 7, 8, 4):
        batch = _batch(session.info, (1, height, 9))
        assert _far(session.run(batch), reference.run(batch)) <= TOLERANCE


def test_a_compiled_graph_is_kept_and_one_that_is_damaged_is_not_taken(make, opened, cache):
    """OpenVINO would read whatever lies there."""
    path = make("convolved")
    batch = _batch(opened(path, ORT).info)
    expected = opened(path, HERE).run(batch)
    (kept,) = (cache / "openvino").iterdir()
    stamp = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(opened(path, HERE).run(batch), expected)
    assert kept.stat().st_mtime_ns == stamp
    kept.write_bytes(kept.read_bytes()[:-100] + bytes(100))
    np.testing.assert_array_equal(opened(path, HERE).run(batch), expected)
    assert kept.stat().st_mtime_ns != stamp


def test_a_picture_in_strips_is_the_picture_in_one_piece(noise):
    """OpenVINO runs the parts itself: in ONNX Runtime they would be as slow as it is."""
    lr = noise(40, 24, 3, dtype=np.float32)
    with (
        Upscaler(providers=["openvino"], tile=0) as whole,
        Upscaler(providers=["openvino"], strip=8) as strips,
    ):
        assert strips.plan(40, 24).count > 1
        difference = np.abs(whole.upscale(lr) - strips.upscale(lr)).max()
    assert difference < 0.01 / 255


def test_a_strip_that_fails_is_a_failure_of_openvino(noise):
    """In the words of another runtime nobody finds what went wrong."""
    with contextlib.closing(open_session(default_model(), HERE)) as session:
        parts = session.slot().parts
        trunk = parts.trunk(16)
        rows = noise(1, 3, 20, 24, dtype=np.float32)
        bounds = np.zeros(1 + 2 * len(parts.info.blocks), np.int64)
        with pytest.raises(InferenceError, match="OpenVINO failed on a batch of 1x3x20x24") as caught:
            # The kept rows are those of a picture of 16 columns.
            trunk.advance(rows, bounds)
    assert "Exception from" not in str(caught.value)


def test_parts_behind_links_find_their_weights(noise, tmp_path):
    """A store that hands files out as links, one by one, has the weights beside the file and not beside the link."""
    for file in default_model().parent.glob("default*.onnx"):
        (tmp_path / file.name).symlink_to(file.resolve())
    lr = noise(20, 12, 3)
    with Upscaler(tmp_path / "default.onnx", providers=["openvino"], strip=8) as strips:
        assert strips.plan(20, 12).strip
        assert strips.upscale(lr).shape == (80, 48, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"providers": ("openvino:GPU.7",)}, r"no device GPU\.7 here, only .*CPU"),
        ({"providers": ("openvino", "cpu")}, "name it alone"),
        ({"providers": ("openvino:HETERO:NONE",)}, "cannot use the device HETERO:NONE"),
    ],
)
def test_what_is_not_there_is_one_line(make, options, words):
    """Pages of a library's own text hide what to do."""
    with pytest.raises(InferenceError, match=words) as error:
        open_session(make("convolved"), SessionOptions(**options))
    assert "\n" not in str(error.value)


def test_an_arithmetic_without_instructions_is_refused(make, monkeypatch):
    """OpenVINO would compute in fp32 without a word, and its speed would be called that of bf16."""
    monkeypatch.setattr(_device, "arithmetic_of", lambda device="CPU": ("fp32",))
    with pytest.raises(InferenceError, match="no instructions for bf16, only for fp32; leave precision out"):
        open_session(make("convolved"), dataclasses.replace(HERE, precision="bf16"))
    monkeypatch.setattr(_device, "arithmetic_of", lambda device="CPU": ("fp16",))
    with pytest.raises(
        InferenceError, match=r"not in fp32, as model.onnx says; say that it may: precision='fp16'"
    ):
        open_session(make("convolved"), HERE)


def test_a_missing_package_is_one_line(make, monkeypatch):
    """Whoever asks for it has to know what to install."""
    _device.openvino_core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'esrgan-deploy\[openvino\]'"):
        open_session(make("convolved"), HERE)


def test_a_file_that_is_no_graph_is_one_line(tmp_path, make):
    """As of ONNX Runtime: what to do, and no path of OpenVINO's sources."""
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(make("convolved").read_bytes()[:200])
    with pytest.raises(InferenceError, match=r"OpenVINO cannot read .*esrgan-export again") as error:
        open_session(cut, HERE)
    assert "\n" not in str(error.value)
    assert "src/" not in str(error.value)


def test_the_golden_pairs_judge_what_is_computed(tiny_export, able, opened):
    """An fp32 graph in bf16 is held to the bounds of bf16, and one in fp32 to its own."""
    path = tiny_export / "model.onnx"
    exact = opened(path, HERE)
    assert exact.info.computes == ""
    (figures,) = verify_golden(exact, path)
    assert figures.max_abs < 1e-4
    half = opened(path, dataclasses.replace(HERE, precision="bf16"))
    assert (half.info.precision, half.info.computes) == ("fp32", "bf16")
    verify_golden(_Off(half, 2e-3), path)
    with pytest.raises(ParityError, match=r"max abs .*\(fp32\)"):
        verify_golden(_Off(exact, 2e-3), path)


class _Off:
    """A session whose every sample is off by so much."""

    def __init__(self, session, by):
        self.info, self._session, self._by = session.info, session, by

    def run(self, batch):
        return self._session.run(batch) + np.float32(self._by)


class _Doubtful(_session.OpenVinoSession):
    """OpenVINO on a processor whose bf16 is a tenth of white off, or is no number at all."""

    by = 0.1

    def _make(self, batch):
        made = super()._make(batch)
        if self._target.precision == "bf16":
            made = dataclasses.replace(made, batch=made.batch + np.float32(self.by))
        return made

    def slot(self):
        slot = super().slot()
        finish = slot.finish

        def spoilt():
            made = finish()
            return dataclasses.replace(made, batch=made.batch + np.float32(self.by))

        if self._target.precision == "bf16":
            slot.finish = spoilt
        return slot


@pytest.fixture
def doubtful(monkeypatch, able):
    monkeypatch.setattr("esrgan_deploy.runtime.sessions.openvino.OpenVinoSession", _Doubtful)
    return _Doubtful


def _timed(monkeypatch, seconds):
    """Let what is measured be said here: by precision in OpenVINO, or ``ort``."""
    asked = []

    def times(sessions):
        asked.append([session.info.provider for session in sessions])
        names = [provider.rpartition(", ")[2] if "OpenVINO" in provider else "ort" for provider in asked[-1]]
        return [seconds[name] for name in names]

    monkeypatch.setattr(_auto, "_times", times)
    return asked


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"ort": 3.0, "fp32": 2.0, "bf16": 1.0}, r"OpenVINO \S+, CPU, bf16 \(fastest here; 3\.00 times"),
        ({"ort": 3.0, "fp32": 2.0, "bf16": 2.5}, r"OpenVINO \S+, CPU, fp32 \(fastest here; 1\.50 times"),
        # So little is noise, and the bits of what was there before are worth more.
        ({"ort": 3.0, "fp32": 2.9, "bf16": 2.9}, r"ONNX Runtime \S+, CPU \(fastest here"),
    ],
)
def test_auto_takes_the_fastest_and_says_so(tiny_export, able, opened, monkeypatch, seconds, chosen):
    """Measured once for a graph and a machine; the second time nothing is timed."""
    asked = _timed(monkeypatch, seconds)
    for _ in range(2):
        assert re.match(chosen, opened(tiny_export / "model.onnx", AUTO).info.provider)
    ((first, *others),) = asked
    assert "ONNX Runtime" in first
    assert len(others) == 2


@pytest.mark.parametrize("beside", [True, False], ids=["golden pairs", "none"])
def test_auto_leaves_out_what_does_not_hold(tiny_export, doubtful, opened, monkeypatch, tmp_path, beside):
    """The fastest picture is worth nothing if it is another one, whether a manifest lies there or not."""
    path = tiny_export / "model.onnx"
    if not beside:
        path = shutil.copy(path, tmp_path / "alone.onnx")
    _timed(monkeypatch, {"ort": 3.0, "fp32": 2.0, "bf16": 1.0})
    provider = opened(path, AUTO).info.provider
    assert "CPU, fp32 (fastest here; 1.50 times as fast as ONNX Runtime" in provider
    assert "CPU, bf16 does not hold its bounds" in provider


def test_auto_keeps_to_what_it_is_asked_for(tiny_export, able, opened, monkeypatch):
    """Asked for fp32 it may not take bf16, and asked for bf16 it may not take fp32."""
    asked = _timed(monkeypatch, {"ort": 3.0, "fp32": 2.0, "bf16": 1.0})
    path = tiny_export / "model.onnx"
    assert "CPU, fp32" in opened(path, dataclasses.replace(AUTO, precision="fp32")).info.provider
    assert len(asked) == 1
    assert opened(path, dataclasses.replace(AUTO, precision="bf16")).info.computes == "bf16"


def test_auto_does_without_what_is_not_installed(make, monkeypatch, opened):
    """Neither package is a must."""
    path = make("convolved")
    monkeypatch.setattr(_auto, "_version", lambda package: "" if package == "openvino" else "1")
    assert "ONNX Runtime" in opened(path, AUTO).info.provider
    monkeypatch.setattr(_auto, "_version", lambda package: "1" if package == "openvino" else "")
    assert f"OpenVINO {openvino.__version__.partition('-')[0]}, CPU, fp32" in opened(path, AUTO).info.provider


def test_a_bad_picture_is_made_again_in_the_precision_of_the_file(tiny_export, doubtful, monkeypatch, noise):
    """What computes in less than its file has the rest of the range at hand."""
    monkeypatch.setattr(doubtful, "by", float("nan"))
    lr = noise(8, 8, 3)
    path = tiny_export / "model.onnx"
    with (
        Upscaler(path, providers=["openvino"], precision="bf16", tile=0) as half,
        Upscaler(path, providers=["cpu"], tile=0) as reference,
    ):
        made, expected = half.upscale(lr), reference.upscale(lr)
        assert half.stats.reruns == 1
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_precision_is_for_openvino_alone(tiny_export):
    """ONNX Runtime computes a graph as it is; the wish would go by unheard."""
    with pytest.raises(ValueError, match="precision for graphs in the provider openvino"):
        Upscaler(tiny_export / "model.onnx", providers=["cpu"], precision="bf16")


def test_the_model_that_ships_holds_in_openvino(opened):
    """It has no golden pairs in the package: ONNX Runtime says what it computes."""
    reference, session = opened(default_model(), ORT), opened(default_model(), HERE)
    batch = _batch(session.info, (1, 12, 16))
    assert _far(session.run(batch), reference.run(batch)) <= TOLERANCE
    assert session.info.parts == reference.info.parts is not None
