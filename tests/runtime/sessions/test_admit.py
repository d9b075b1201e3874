"""Only a plan that its manifest vouches for and that fits is loaded; what does not fit is rebuilt, once."""

import contextlib
import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from esrgan_deploy._errors import EngineMismatchError
from esrgan_deploy._files import part_of, sha256_of
from esrgan_deploy._flavour import Flavour, gpu_is_usable, open_flavour
from esrgan_deploy._manifest import Artefact, find_manifest, load_manifest
from esrgan_deploy.runtime import SessionOptions
from esrgan_deploy.runtime.device import DeviceFacts, device_facts
from esrgan_deploy.runtime.sessions.plan import Admitted, check_plan
from esrgan_deploy.runtime.sessions.plan import _admit as _trust
from esrgan_deploy.runtime.sessions.plan._admit import admit_plan
from esrgan_deploy.runtime.sessions.plan._fit import Refusal, flavour_of, refusals, validity_refusal

NEVER, TRUST, AUTO = SessionOptions(), SessionOptions(trust=True), SessionOptions(rebuild="auto")
ADA = DeviceFacts(name="RTX 4090", compute_capability="8.9", driver=13010)
HOPPER = DeviceFacts(name="H100", compute_capability="9.0", driver=13010)
COMMAND = "python -m esrgan_deploy.engines.rebuild"


@pytest.fixture
def plan(tiny_export: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_export, tmp_path / "out")
    return tmp_path / "out" / "model.fp16.plan"


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return open_flavour("tensorrt_rtx")


@pytest.fixture(scope="module")
def full(rtx: Flavour) -> Flavour:
    """Full TensorRT cannot be had here; the rules ask for its name, version and capabilities only."""
    return dataclasses.replace(rtx, name="tensorrt", version="11.4.0.106", capabilities=frozenset())


def _lie(plan: Path, **fields: Any) -> None:
    """Change the plan's entry in the manifest."""
    place = plan.with_name("model.json")
    data = json.loads(place.read_text())
    (entry,) = [one for one in data["artefacts"] if one["file"] == plan.name]
    entry.update(fields)
    place.write_text(json.dumps(data))


def _flip(plan: Path) -> None:
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)


def _refused(plan: Path, options: SessionOptions = NEVER) -> str:
    with pytest.raises(EngineMismatchError) as caught:
        admit_plan(plan, options)
    said = str(caught.value)
    assert "\n" not in said
    assert str(plan) in said
    return said


@pytest.mark.parametrize("part", ["trunk", "tail"])
def test_a_part_is_vouched_for_as_a_plan_is(plan, part):
    """It is code too; and as a plan of its own it enlarges nothing."""
    path = part_of(plan, part)
    found = check_plan(path, kind="part")
    assert isinstance(found, Admitted)
    assert (
        found.artefact.built_from
        == load_manifest(plan.with_name("model.json")).artefact(plan.name).built_from
    )
    assert "lists it as part" in _refused(path)
    assert "lists it as plan" in str(check_plan(plan, kind="part"))
    _flip(path)
    assert "has sha256" in str(check_plan(path, kind="part"))


def test_a_plan_as_it_was_exported_is_admitted(plan):
    """A check that refuses what was just made would be switched off by everybody."""
    admitted = admit_plan(plan, NEVER)
    assert admitted.content == plan.read_bytes()
    assert admitted.artefact == load_manifest(plan.with_name("model.json")).artefact(plan.name)
    assert admitted.flavour.name == "tensorrt_rtx"
    assert not admitted.host_code


def test_what_is_hashed_is_what_is_loaded(plan):
    """Read a second time, the file may be another one by then: a pipe can be read once only."""
    content = plan.read_bytes()
    plan.unlink()
    os.mkfifo(plan)
    writer = threading.Thread(target=plan.write_bytes, args=(content,))
    writer.start()
    admitted = admit_plan(plan, NEVER)
    writer.join()
    assert admitted.content == content


def _swap(plan: Path) -> None:
    shutil.copy(plan.with_name("model.fp16.onnx"), plan)


def _extend(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes() + b"more")


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str], bool]] = {
    "a bit flipped": (_flip, ["has sha256", "its manifest says"], True),
    "cut off": (lambda plan: os.truncate(plan, 1000), ["cut off", "1,000 bytes"], True),
    "empty": (lambda plan: os.truncate(plan, 0), ["is empty", "0 bytes"], True),
    "longer": (_extend, ["another file"], True),
    "another file": (_swap, ["its manifest says"], True),
    "no manifest": (lambda plan: plan.with_name("model.json").unlink(), ["no manifest", "trust=True"], False),
    "manifest cut off": (
        lambda plan: os.truncate(plan.with_name("model.json"), 300),
        ["manifest that cannot be read", "trust=True"],
        False,
    ),
    "not listed": (lambda plan: _lie(plan, file="other.plan"), ["model.json does not list it"], False),
    "listed as a graph": (lambda plan: _lie(plan, kind="onnx"), ["lists it as onnx"], False),
    "another sha256": (lambda plan: _lie(plan, sha256="0" * 64), ["says 0000000000000000…"], True),
    "no sha256": (lambda plan: _lie(plan, sha256=""), ["says nothing"], True),
    "a size that is none": (lambda plan: _lie(plan, size="big"), ["size", "'big'"], False),
    "another version": (
        lambda plan: _lie(plan, flavour_version="1.6.0.1"),
        ["tensorrt_rtx 1.6.0.1", "is installed"],
        True,
    ),
    "no version": (lambda plan: _lie(plan, flavour_version=""), ["of a version unknown"], True),
    "an unknown flavour": (lambda plan: _lie(plan, flavour="os"), ["'os'", "--flavour auto"], True),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_plan_or_a_lying_manifest_is_one_line(plan, name):
    """Whatever of it reached TensorRT would run as code, or crash the process that serves."""
    damage, words, mended = DAMAGES[name]
    damage(plan)
    said = _refused(plan)
    for word in words:
        assert word in said
    assert (COMMAND in said) is mended
    assert "Run: " in said or "trust=True" in said


def test_what_cannot_be_mended_from_the_graph_is_said_so(plan):
    """The command would fail as well where the manifest does not name the graph."""
    _lie(plan, built_from="")
    _flip(plan)
    said = _refused(plan, AUTO)
    assert COMMAND not in said
    assert "esrgan-export" in said


@pytest.mark.parametrize(
    "name", ["a bit flipped", "no manifest", "manifest cut off", "not listed", "another sha256"]
)
def test_trust_loads_what_nothing_vouches_for_and_believes_no_manifest(plan, name):
    """What the manifest says of another file would describe this one wrongly."""
    DAMAGES[name][0](plan)
    admitted = admit_plan(plan, TRUST)
    assert admitted.content == plan.read_bytes()
    assert admitted.artefact is None
    assert admitted.flavour.name == "tensorrt_rtx"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"\x08\x0a\x12\x07pytorch", "no TensorRT plan"),
        (b"vtrt", "does not begin as a plan does"),
    ],
)
def test_trust_does_not_load_what_is_no_plan(plan, content, word):
    """A graph under a plan's name is a slip of the hand and no matter of trust."""
    plan.write_bytes(content)
    assert word in _refused(plan, TRUST)


def test_trust_tells_a_version_compatible_plan_from_one_of_tensorrt_for_rtx(plan):
    """Both begin alike; the version behind tells whose it is, and TensorRT for RTX would only say "invalid"."""
    content = bytearray(plan.read_bytes())
    content[24:28] = bytes([10, 13, 3, 9])
    plan.write_bytes(content)
    assert "is a plan of tensorrt 10.13.3.9, version compatible" in _refused(plan, TRUST)


def test_trust_does_not_make_a_plan_fit(plan):
    """Trust is about where it comes from: one that its manifest lists is still compared."""
    _lie(plan, flavour_version="1.6.0.1")
    assert "1.6.0.1" in _refused(plan, TRUST)


def test_auto_rebuilds_what_does_not_fit_once(plan):
    """A server that was updated has to come up by itself, and not to build at every start."""
    before = load_manifest(plan.with_name("model.json")).artefact(plan.name)
    _lie(plan, flavour_version="1.6.0.1")
    _flip(plan)
    with pytest.warns(RuntimeWarning, match="rebuilding it"):
        admitted = admit_plan(plan, AUTO)
    assert admitted.content == plan.read_bytes()
    made = admitted.artefact
    assert before is not None
    assert made is not None
    assert made.sha256 == sha256_of(plan)
    assert made.flavour_version == before.flavour_version
    assert (made.shapes, made.options, made.built_from) == (before.shapes, before.options, before.built_from)
    stamp = plan.stat().st_mtime_ns
    assert admit_plan(plan, AUTO).content == admitted.content
    assert plan.stat().st_mtime_ns == stamp


def test_a_rebuild_that_fails_is_one_line_and_leaves_the_plan(plan):
    """Both halves are needed: why it was rebuilt, and why that failed."""
    _flip(plan)
    (plan.with_name("model.fp16.onnx")).write_bytes(b"another net")
    content = plan.read_bytes()
    with pytest.warns(RuntimeWarning, match="rebuilding it"):
        said = _refused(plan, AUTO)
    assert "has sha256" in said
    assert "rebuilding it failed" in said
    assert "another net's" in said
    assert plan.read_bytes() == content


@pytest.mark.skipif(gpu_is_usable(), reason="the builder would see the real card")
def test_a_rebuild_that_does_not_help_is_not_tried_again(plan, monkeypatch):
    """Without an end a plan that can never fit would be built for ever."""
    _lie(plan, compute_capabilities=["8.9"])
    monkeypatch.setattr(_trust, "device_facts", lambda ordinal: HOPPER)
    # TensorRT itself sees no card here.
    monkeypatch.setattr(_trust, "_invalid", lambda *args: None)
    with pytest.warns(RuntimeWarning) as warned:
        said = _refused(plan, AUTO)
    assert len(warned) == 1
    assert said.count("was built for compute capability 8.9 and H100 has 9.0") == 2


def test_between_the_two_renames_of_a_rebuild_nothing_is_refused(plan, monkeypatch):
    """A reader that comes between plan and manifest sees two that differ, for a moment."""
    place = plan.with_name("model.json")
    fresh = place.read_text()
    _lie(plan, sha256="0" * 64)
    find, asked = find_manifest, []

    def finds(path: Path) -> Path | None:
        asked.append(path)
        if len(asked) == 2:
            place.write_text(fresh)
        return find(path)

    monkeypatch.setattr(_trust, "find_manifest", finds)
    assert admit_plan(plan, NEVER).content == plan.read_bytes()


def _artefact(**fields: Any) -> Artefact:
    known = {"file": "m.plan", "kind": "plan", "sha256": "", "size": 1, "built_from": "m.onnx"}
    return Artefact(**(known | fields))


def _full(version: str = "11.4.0.106", capability: str = "8.9", **options: Any) -> Artefact:
    return _artefact(
        flavour="tensorrt", flavour_version=version, compute_capabilities=(capability,), gpu="RTX 4090",
        options=options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("artefact", "facts", "words"),
    [
        (_full(), ADA, None),
        (_full(), None, None),
        (_full("11.3.0.1"), ADA, "built with tensorrt 11.3.0.1 and tensorrt 11.4.0.106"),
        (_full("11.3.0.1"), None, "built with tensorrt 11.3.0.1"),
        (_full("11.3.0.1", version_compatible=True), ADA, None),
        (_full("10.16.1.11", version_compatible=True), ADA, None),
        (_full("11.5.0.1", version_compatible=True), ADA, "built with tensorrt 11.5.0.1"),
        (_full("11.10.0.1", version_compatible=True), ADA, "built with tensorrt 11.10.0.1"),
        (_full(), HOPPER, "compute capability 8.9 (RTX 4090) and H100 has 9.0"),
        (_full(hardware_compatibility="same-compute-capability"), HOPPER, "H100 has 9.0"),
        (_full(hardware_compatibility="ampere+"), HOPPER, None),
        (_full(hardware_compatibility="ampere+"), dataclasses.replace(ADA, compute_capability="12.0"), None),
        (
            _full(hardware_compatibility="ampere+"),
            dataclasses.replace(ADA, compute_capability="7.5"),
            "has 7.5",
        ),
    ],
)
def test_the_rules_of_full_tensorrt(full, artefact, facts, words):
    """Too lax and TensorRT fails with a text that names neither side; too strict and good plans are built again."""
    refusal = refusals(Path("m.plan"), artefact, facts, full)
    assert (refusal is None) is (words is None)
    if refusal is not None and words is not None:
        assert words in str(refusal)
        assert refusal.rebuild
        assert f"{COMMAND} m.plan" in refusal.mend


@pytest.mark.parametrize(
    ("capabilities", "fits"),
    [((), True), (("current",), True), (("8.6", "9.0"), True), (("8.6", "8.9"), False), (("12.0",), False)],
)
def test_the_rules_of_tensorrt_for_rtx(rtx, capabilities, fits):
    """A plan for named architectures runs on those alone; what the library chose, it alone can tell."""
    artefact = _artefact(
        flavour="tensorrt_rtx", flavour_version=rtx.version, compute_capabilities=capabilities
    )
    refusal = refusals(Path("m.plan"), artefact, HOPPER, rtx)
    assert (refusal is None) is fits
    # It has no plans for later versions, whatever was asked of the builder.
    older = dataclasses.replace(artefact, flavour_version="1.6.0.1", options={"version_compatible": True})
    assert refusals(Path("m.plan"), older, None, rtx) is not None


def test_a_driver_that_is_too_old_is_not_mended_by_a_rebuild(rtx):
    """Minutes of building would end at the same driver."""
    artefact = _artefact(flavour="tensorrt_rtx", flavour_version=rtx.version)
    old = dataclasses.replace(ADA, driver=12040)
    refusal = refusals(Path("m.plan"), artefact, old, rtx)
    assert refusal is not None
    assert "CUDA 13.0" in refusal.reason
    assert "CUDA 12.4" in refusal.reason
    assert "driver" in refusal.mend
    assert not refusal.rebuild


@pytest.mark.parametrize(
    ("names", "words", "rebuild"),
    [
        (["VERSION_MISMATCH"], "another version", True),
        (["UNSUPPORTED_CC"], "compute capability", True),
        (["UNSUPPORTED_CC", "OLD_CUDA_DRIVER"], "driver is too old", False),
        (["INSUFFICIENT_GPU_MEMORY"], "too little memory", False),
        ([], "not valid", False),
    ],
)
def test_what_the_library_says_of_a_plan_is_put_in_words(rtx, names, words, rebuild):
    """Its answer is a number; taken wrongly, what no rebuild can mend is rebuilt."""
    trt = rtx.module
    mask = sum(int(getattr(trt.EngineInvalidityDiagnostics, name)) for name in names)

    def runtime(*_: object) -> SimpleNamespace:
        return SimpleNamespace(get_engine_validity=lambda content: (trt.EngineValidity.INVALID, mask))

    # The library answers this way only where there is a card; its enumerations are its own.
    module = SimpleNamespace(
        Runtime=runtime,
        EngineValidity=trt.EngineValidity,
        EngineInvalidityDiagnostics=trt.EngineInvalidityDiagnostics,
    )
    flavour = dataclasses.replace(rtx, module=module)
    refusal = validity_refusal(Path("m.plan"), b"", _artefact(), HOPPER, flavour)
    assert refusal is not None
    assert words in refusal.reason
    assert refusal.rebuild is rebuild
    # Without a card these words mean nothing.
    assert validity_refusal(Path("m.plan"), b"", _artefact(), None, flavour) is None


def test_the_library_is_asked_about_the_card_that_will_run_it(plan, monkeypatch):
    """Of two unlike cards, the first would answer for the second."""
    seen: list[object] = []

    class Context:
        """Where there is no driver there is no context; only the order of things is looked at."""

        def __init__(self, ordinal: int) -> None:
            seen.append(ordinal)

        @contextlib.contextmanager
        def bound(self) -> Iterator[None]:
            seen.append("bound")
            yield
            seen.append("left")

        def close(self) -> None:
            seen.append("closed")

    def asked(*_: object) -> None:
        seen.append("asked")

    monkeypatch.setattr(_trust, "Device", Context)
    monkeypatch.setattr(_trust, "validity_refusal", asked)
    second = dataclasses.replace(ADA, ordinal=1)
    assert isinstance(check_plan(plan, facts=second), Admitted)
    assert seen == [1, "bound", "asked", "left", "closed"]


def test_a_missing_flavour_names_both_ways_out(plan):
    """The one who has only the other TensorRT needs the command that builds with it."""
    try:
        open_flavour("tensorrt")
    except ImportError:
        pass
    else:
        pytest.skip("full TensorRT is installed here")
    _lie(plan, flavour="tensorrt", flavour_version="11.4.0.106")
    said = _refused(plan)
    assert "built with tensorrt 11.4.0.106 and tensorrt is not installed" in said
    assert f"{COMMAND} {plan} --flavour tensorrt_rtx" in said
    assert "pip install 'esrgan-deploy[tensorrt]'" in said
    with pytest.warns(RuntimeWarning, match="rebuilding it"):
        admitted = admit_plan(plan, AUTO)
    assert admitted.artefact is not None
    assert admitted.artefact.flavour == "tensorrt_rtx"


def test_no_tensorrt_at_all_is_no_reason_to_rebuild(monkeypatch):
    """There is nothing to build with: only the installation helps."""
    import esrgan_deploy._flavour as base

    def nothing(name: str) -> Flavour:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(base, "_imported", nothing)
    refusal = flavour_of(Path("m.plan"), _artefact(flavour="tensorrt_rtx", flavour_version="1.7.1.116"))
    assert isinstance(refusal, Refusal)
    assert "pip install 'esrgan-deploy[rtx]'" in refusal.mend
    assert not refusal.rebuild


@pytest.mark.skipif(gpu_is_usable(), reason="there is a GPU here")
def test_without_a_card_there_are_no_facts_of_one(plan):
    """A zero in their place would be compared with what the plan needs."""
    assert device_facts(0) is None
    assert isinstance(check_plan(plan, facts=None), Admitted)


@pytest.mark.gpu
def test_the_card_is_asked_without_a_context():
    """Its facts decide what is loaded; PyTorch reads the same ones."""
    torch = pytest.importorskip("torch")
    facts = device_facts(0)
    assert facts is not None
    major, minor = torch.cuda.get_device_capability(0)
    assert facts.compute_capability == f"{major}.{minor}"
    assert facts.name == torch.cuda.get_device_name(0)
    assert facts.driver >= 11000
    assert device_facts(10_000) is None


def test_the_command_survives_a_shell():
    """Pasted as it stands, a name with a blank or a quote would name two files."""
    import shlex

    from esrgan_deploy.runtime.sessions.plan._fit import rebuild_command

    path = Path("my out/it's.plan")
    assert shlex.split(rebuild_command(path, "--force"))[-2:] == [str(path), "--force"]
