"""Whether a plan fits the TensorRT and the card at hand, told before it is loaded."""

import dataclasses
import functools
import importlib.metadata
import re
import shlex
from pathlib import Path
from typing import Any

from esrgan_deploy._errors import MissingDependencyError
from esrgan_deploy._flavour import FLAVOURS, Flavour, open_flavour
from esrgan_deploy._manifest import Artefact
from esrgan_deploy.runtime.device import DeviceFacts

__all__ = [
    "Refusal",
    "flavour_of",
    "rebuild_command",
    "refusals",
    "validity_refusal",
]

# What the header of a serialised engine says to TensorRT for RTX, and whether another build would mend it:
# EngineInvalidityDiagnostics of its API.
_DIAGNOSTICS = {
    "VERSION_MISMATCH": ("another version of TensorRT for RTX built it", True),
    "UNSUPPORTED_CC": ("it was not built for this compute capability", True),
    "MALFORMED_ENGINE": ("it does not begin as a plan does", True),
    "OLD_CUDA_DRIVER": ("the driver is too old for it", False),
    "OLD_CUDA_RUNTIME": ("the CUDA runtime is too old for it", False),
    "INSUFFICIENT_GPU_MEMORY": ("the GPU has too little memory for it", False),
    "CUDA_ERROR": ("CUDA does not work here", False),
}
_CUDA_MAJORS = range(11, 20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a plan is not loaded.

    Attributes:
        reason: Both sides of what does not fit, to follow the plan's name.
        mend: What to do, a sentence with a command.
        rebuild: Whether the rebuild command mends it.
        flavour: What that command has to be told to build with; empty for the flavour that the plan had.
    """

    reason: str
    mend: str
    rebuild: bool = False
    flavour: str = ""

    def __str__(self) -> str:
        return f"{self.reason}. {self.mend}"


def refusals(path: Path, artefact: Artefact, facts: DeviceFacts | None, flavour: Flavour) -> Refusal | None:
    """Return the first thing about a plan that does not fit, by what its manifest says; None where all does.

    Versions: a plan of TensorRT for RTX loads in the release that built it and no other; one of full TensorRT
    too, unless it was built to be version compatible, and then in later releases (NVIDIA's pages "Engine
    Compatibility" of both).

    Args:
        path: The plan, for the command.
        artefact: What the manifest says of it.
        facts: Of the card; None where there is none, and then nothing is asked of it.
        flavour: The TensorRT at hand, of the plan's flavour.
    """
    if facts is not None:
        needed = _needed_driver(flavour.name)
        if needed is not None and facts.driver < needed:
            return Refusal(
                reason=f"needs {flavour.name} {flavour.version}, which needs a driver of CUDA {_cuda(needed)}, and "
                f"the driver here knows CUDA {_cuda(facts.driver)}",
                mend="Update the NVIDIA driver; nvidia-smi shows what it is",
            )
    if not _version_fits(artefact, flavour):
        return _rebuildable(
            path,
            artefact,
            f"was built with {artefact.flavour} {artefact.flavour_version or 'of a version unknown'} and "
            f"{flavour.name} {flavour.version} is installed",
        )
    if facts is not None and not _capability_fits(artefact, facts, flavour):
        built = f" ({artefact.gpu})" if artefact.gpu else ""
        return _rebuildable(
            path,
            artefact,
            f"was built for compute capability {', '.join(artefact.compute_capabilities)}{built} and {facts.name} "
            f"has {facts.compute_capability}",
        )
    return None


def validity_refusal(
    path: Path, content: bytes, artefact: Artefact | None, facts: DeviceFacts | None, flavour: Flavour
) -> Refusal | None:
    """Ask TensorRT whether a plan is valid here, where it can be asked; it reads the header alone.

    It is asked about the card whose context is current. Without a card only a header that is not one counts: the
    rest it cannot tell then.
    """
    if "engine_validity" not in flavour.capabilities:
        return None
    trt = flavour.module
    flavour.forget_errors()
    validity, mask = trt.Runtime(flavour.logger).get_engine_validity(content)
    if validity != trt.EngineValidity.INVALID:
        return None
    found = [
        (name, *known)
        for name, known in _DIAGNOSTICS.items()
        if int(mask) & int(getattr(trt.EngineInvalidityDiagnostics, name, 0))
    ]
    if facts is None:
        found = [one for one in found if one[0] == "MALFORMED_ENGINE"]
        if not found:
            return None
    said = "; ".join(text for _, text, _ in found) or flavour.last_error or "without saying why"
    reason = f"is not valid for {flavour.name} {flavour.version} here: {said}"
    if artefact is not None and found and all(mends for *_, mends in found):
        return _rebuildable(path, artefact, reason)
    return Refusal(
        reason=reason, mend="Run: nvidia-smi to see the driver and the memory, or esrgan-export again here"
    )


def flavour_of(path: Path, artefact: Artefact) -> Flavour | Refusal:
    """Return the TensorRT that a plan was built with, or why it cannot be had."""
    name = artefact.flavour
    if name not in FLAVOURS:
        said = f"is of the flavour {name!r} by its manifest; {' and '.join(FLAVOURS)} are known"
        return _rebuildable(path, artefact, said, flavour="auto")
    try:
        return open_flavour(name)
    except MissingDependencyError as error:
        missing, _, install = str(error).partition(". Run: ")
    reason = f"was built with {name} {artefact.flavour_version} and {missing}"
    try:
        other = open_flavour("auto")
    except MissingDependencyError:
        return Refusal(reason=reason, mend=f"Run: {install}")
    refusal = _rebuildable(path, artefact, f"{reason}, {other.name} {other.version} is", flavour=other.name)
    return dataclasses.replace(refusal, mend=f"{refusal.mend}. Or run: {install}")


def rebuild_command(path: Path, *options: str) -> str:
    """Return the command that rebuilds a plan, to be pasted into a shell."""
    return shlex.join(["python", "-m", "esrgan_deploy.engines.rebuild", str(path), *options])


def _rebuildable(path: Path, artefact: Artefact, reason: str, *, flavour: str = "") -> Refusal:
    if not artefact.built_from:
        return Refusal(reason=reason, mend="Run: esrgan-export again here, with --force")
    command = rebuild_command(path, *(("--flavour", flavour) if flavour else ()))
    return Refusal(
        reason=reason, mend=f"Run: {command}, or open it with rebuild='auto'", rebuild=True, flavour=flavour
    )


def _version_fits(artefact: Artefact, flavour: Flavour) -> bool:
    built, here = artefact.flavour_version, flavour.version
    if built == here:
        return True
    if flavour.name != "tensorrt" or artefact.options.get("version_compatible") is not True:
        return False
    return bool(built) and _numbers(built) <= _numbers(here)


def _capability_fits(artefact: Artefact, facts: DeviceFacts, flavour: Flavour) -> bool:
    wanted = artefact.compute_capabilities
    # Empty and "current" are choices that the manifest does not spell out: TensorRT has to be asked.
    if not wanted or "current" in wanted or facts.compute_capability in wanted:
        return True
    ampere = artefact.options.get("hardware_compatibility") == "ampere+" and flavour.name == "tensorrt"
    return ampere and _numbers(facts.compute_capability) >= (8, 0)


@functools.cache
def _needed_driver(flavour: str) -> int | None:
    # Libraries of one CUDA major run on every driver of that major and of later ones. The wheels say it in their
    # names; an installation by other means says nothing, and TensorRT itself will.
    for major in _CUDA_MAJORS:
        try:
            importlib.metadata.version(f"{flavour}_cu{major}_libs")
        except importlib.metadata.PackageNotFoundError:
            continue
        return major * 1000
    return None


def _numbers(version: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
