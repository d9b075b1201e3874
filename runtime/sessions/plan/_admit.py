"""Which plans are loaded: a plan is code, so only one that its manifest vouches for, and that fits."""

import dataclasses
import hashlib
import signal
import subprocess
import sys
import warnings
from pathlib import Path

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import EngineMismatchError, ExportError, MissingDependencyError
from esrgan_deploy._flavour import Flavour, open_flavour
from esrgan_deploy._manifest import Artefact, find_manifest, load_manifest
from esrgan_deploy.runtime.device import Device, DeviceFacts, device_facts
from esrgan_deploy.runtime.sessions._protocol import SessionOptions
from esrgan_deploy.runtime.sessions.plan._fit import (
    Refusal,
    flavour_of,
    rebuild_command,
    refusals,
    validity_refusal,
)

__all__ = ["Admitted", "admit_plan", "check_plan"]

# The first bytes of a plan: of full TensorRT, as tools in the field know them, and of what a dispatcher loads, which
# is each plan of TensorRT for RTX (seen in 1.7) and a version compatible one of full TensorRT (not seen here).
_MAGIC = (b"ftrt", b"vtrt")
# Where the four numbers of the builder's version are: in the field's tools for full TensorRT (NVIDIA/TensorRT issue
# 3073), and as seen in TensorRT for RTX 1.7.
_VERSION = slice(24, 28)
# Version compatible plans came with TensorRT 8.6; TensorRT for RTX counts from 1.
_FIRST_COMPATIBLE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Admitted:
    """A plan that may be loaded.

    Attributes:
        path: The file.
        content: What it holds, as it was hashed: load this, and do not read the file again.
        artefact: What its manifest says of it; None where the caller trusts a plan that no manifest vouches for.
        flavour: The TensorRT to load it with.
        facts: Of the GPU that it fits; None where none was asked.
    """

    path: Path
    content: bytes = dataclasses.field(repr=False)
    artefact: Artefact | None
    flavour: Flavour
    facts: DeviceFacts | None

    @property
    def sha256(self) -> str:
        """Of the content, as the manifest that vouches for it says; it was compared."""
        return self.artefact.sha256 if self.artefact else hashlib.sha256(self.content).hexdigest()

    @property
    def host_code(self) -> bool:
        """Whether the plan may run code of its own while it is loaded, as a version compatible one does."""
        return self.artefact is None or self.artefact.options.get("version_compatible") is True


def admit_plan(path: Path, options: SessionOptions) -> Admitted:
    """Read a plan, and decide whether it is loaded, before anything of it is.

    The manifest guards against a file that was damaged, exchanged or left behind by an older export. It does not
    guard against someone who can write both files.

    Args:
        path: The plan.
        options: `trust` admits what no manifest vouches for; ``rebuild="auto"`` rebuilds once, in a process of
            its own, what does not fit; `device` is the card that it has to fit.

    Raises:
        InferenceError: There is a GPU, and CUDA fails when TensorRT is to look at it.
        EngineMismatchError: It is not loaded, with both sides of what does not fit and the command that mends it.
    """
    facts = device_facts(options.device)
    checked = check_plan(path, trust=options.trust, facts=facts)
    if isinstance(checked, Refusal) and checked.rebuild and options.rebuild == "auto":
        _rebuild(path, checked, options.device)
        again = check_plan(path, trust=options.trust, facts=facts)
        if isinstance(again, Refusal):
            raise EngineMismatchError(f"{path} {checked.reason}; the rebuild ran, and still it {again}")
        return again
    if isinstance(checked, Refusal):
        raise EngineMismatchError(f"{path} {checked}")
    return checked


def check_plan(
    path: Path, *, trust: bool = False, facts: DeviceFacts | None = None, kind: str = "plan"
) -> Admitted | Refusal:
    """Read a plan and return it admitted, or why it is not; nothing of it is loaded.

    Args:
        path: The plan.
        trust: Whether it may go in without a manifest that vouches for it.
        facts: Of the card that it has to fit; None where there is none.
        kind: As what its manifest has to list it: ``"plan"``, or ``"part"`` of one.
    """
    try:
        content, vouched = _vouched(path, kind)
    except OSError as error:
        return Refusal(reason=f"cannot be read ({error.strerror})", mend="Check its owner and mode: ls -l")
    if isinstance(vouched, Refusal):
        if not trust or not content:
            return vouched
        return _trusted(path, content, facts)
    flavour = flavour_of(path, vouched)
    if isinstance(flavour, Refusal):
        return flavour
    refusal = refusals(path, vouched, facts, flavour) or _invalid(path, content, vouched, facts, flavour)
    return refusal or Admitted(path=path, content=content, artefact=vouched, flavour=flavour, facts=facts)


def _vouched(path: Path, kind: str) -> tuple[bytes, Artefact | Refusal]:
    content = path.read_bytes()
    entry = _listed(path, kind)
    refusal = None if isinstance(entry, Refusal) else _differs(path, content, entry)
    if refusal is None:
        return content, entry
    # A rebuild replaces plan and manifest one after the other: between the two they seem to differ.
    content, entry = path.read_bytes(), _listed(path, kind)
    if isinstance(entry, Refusal):
        return content, entry
    return content, _differs(path, content, entry) or entry


def _listed(path: Path, kind: str) -> Artefact | Refusal:
    place = find_manifest(path)
    anyway = "or load it with trust=True (--trust) if you know who built it: a plan is code"
    again = f"Run: esrgan-export into {path.parent} again, with --force, {anyway}"
    if place is None:
        name = f"{path.name.split('.')[0]}.json"
        return Refusal(
            reason=f"has no manifest beside it: {name} would say what its sha256 is",
            mend=f"Put the {name} of the export there, {anyway}",
        )
    try:
        entry = load_manifest(place).artefact(path.name)
    except (ExportError, OSError) as error:
        return Refusal(reason=f"has a manifest that cannot be read ({one_line(error)})", mend=again)
    if entry is None or entry.kind != kind:
        listed = "does not list it" if entry is None else f"lists it as {entry.kind or 'nothing known'}"
        return Refusal(reason=f"is not vouched for: {place.name} {listed}", mend=again)
    return entry


def _differs(path: Path, content: bytes, entry: Artefact) -> Refusal | None:
    digest = hashlib.sha256(content).hexdigest()
    if digest == entry.sha256 and content:
        return None
    if len(content) != entry.size:
        state = "is cut off" if content else "is empty"
        if len(content) > entry.size:
            state = "is another file"
        reason = f"{state}: it has {len(content):,} bytes and its manifest says {entry.size:,}"
    else:
        reason = f"has sha256 {digest[:16]}… and its manifest says {str(entry.sha256)[:16] or 'nothing'}…"
    if not entry.built_from:
        return Refusal(reason=reason, mend="Run: esrgan-export again here, with --force")
    return Refusal(
        reason=reason, mend=f"Run: {rebuild_command(path)}, or open it with rebuild='auto'", rebuild=True
    )


def _trusted(path: Path, content: bytes, facts: DeviceFacts | None) -> Admitted | Refusal:
    # What a manifest says of another file is not asked: the plan itself has to do.
    if content[:4] not in _MAGIC:
        known = " or ".join(magic.decode() for magic in _MAGIC)
        return Refusal(
            reason=f"is no TensorRT plan: it begins with {content[:4]!r} and a plan with {known}",
            mend="Run: esrgan-export to make one",
        )
    version = content[_VERSION]
    compatible = content[:4] == b"vtrt"
    if compatible and (len(version) < 4 or not version[0]):
        return Refusal(
            reason="does not begin as a plan does: no version of TensorRT or of TensorRT for RTX is in its header",
            mend="Run: esrgan-export to make one",
        )
    name = "tensorrt_rtx" if compatible and version[0] < _FIRST_COMPATIBLE else "tensorrt"
    try:
        flavour = open_flavour(name)
    except MissingDependencyError as error:
        built = (
            f" {'.'.join(map(str, version))}, version compatible" if compatible and name == "tensorrt" else ""
        )
        return Refusal(reason=f"is a plan of {name}{built}", mend=one_line(error))
    refusal = _invalid(path, content, None, facts, flavour)
    return refusal or Admitted(path=path, content=content, artefact=None, flavour=flavour, facts=facts)


def _invalid(
    path: Path, content: bytes, artefact: Artefact | None, facts: DeviceFacts | None, flavour: Flavour
) -> Refusal | None:
    if facts is None or "engine_validity" not in flavour.capabilities:
        return validity_refusal(path, content, artefact, facts, flavour)
    device = Device(facts.ordinal)
    try:
        with device.bound():
            return validity_refusal(path, content, artefact, facts, flavour)
    finally:
        device.close()


def _rebuild(path: Path, refusal: Refusal, device: int) -> None:
    """Run the rebuild command; what lies above this room is not imported, and dies alone if it dies.

    Raises:
        EngineMismatchError: It failed.
    """
    arguments = [str(path), "--device", str(device)]
    if refusal.flavour:
        arguments += ["--flavour", refusal.flavour]
    subject = f"{path} {refusal.reason}"
    if not sys.executable:
        raise EngineMismatchError(f"{subject}, and there is no Python to rebuild it with. {refusal.mend}")
    warnings.warn(f"{subject}: rebuilding it, which can take minutes", RuntimeWarning, stacklevel=3)
    command = [sys.executable, "-m", "esrgan_deploy.engines.rebuild", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise EngineMismatchError(f"{subject}, and rebuilding it failed: {_last_words(done)}")


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode < 0:
        return f"the builder died of {signal.Signals(-done.returncode).name}"
    lines = done.stderr.strip().splitlines()
    return one_line(lines[-1])[:600] if lines else f"exit status {done.returncode}"
