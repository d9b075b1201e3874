"""What can be asked of the builder."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from esrgan_deploy._command_line import between, option
from esrgan_deploy._errors import EngineBuildError
from esrgan_deploy._flavour import FLAVOURS, Flavour
from esrgan_deploy.engines._shapes import ShapeRange

__all__ = ["BuildOptions", "refuse_unavailable", "supported_compute_capabilities"]

HARDWARE_COMPATIBILITY = ("none", "ampere+", "same-compute-capability")


def _bytes(gibibytes: str) -> int:
    return int(between(2**-30, 2**20)(gibibytes) * 2**30)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of one build; ``None`` leaves the choice to TensorRT.

    Attributes:
        shapes: Sizes that the plan accepts. One range makes one plan; several ranges are several plans,
            because a plan with several profiles reserves scratch memory for the largest of them.
        flavour: ``"auto"``, ``"tensorrt"`` or ``"tensorrt_rtx"``.
        workspace: Bytes that one kernel may use as scratch memory.
        optimization_level: 0..5; more compares more kernels and builds longer. TensorRT for RTX chooses its
            kernels when the plan is loaded and builds the same plan at every level.
        compute_capabilities: GPU architectures such as ``("8.6", "8.9")`` that a portable plan is built for,
            or ``("current",)``; empty for the library's own choice. TensorRT for RTX only.
        hardware_compatibility: ``"none"``, ``"ampere+"`` or ``"same-compute-capability"``: whether the plan
            runs on other GPUs than the one it was built on, at some cost in speed. Full TensorRT only.
        version_compatible: Whether later TensorRT versions can load the plan; such a plan carries code that
            runs when it is loaded.
        aux_streams: Most streams beside the caller's that the plan may use.
        timing_cache: Folder that keeps kernel timings between builds, one file per GPU, version and driver.
            Full TensorRT only.
        memory_limit: Bytes of GPU memory that the activations may take; ``None`` asks the GPU at hand, if
            there is one.

    Raises:
        EngineBuildError: A value is not allowed.
    """

    shapes: ShapeRange = option(
        factory=ShapeRange.default,
        group="TensorRT plan",
        type=ShapeRange.parse,
        metavar="MIN:OPT:MAX",
        help="range of a plan, each NxHxW or HxW; one for a static plan (default: 1x16x16:1x256x256:1x512x512)",
    )
    flavour: str = option("auto", choices=("auto", *FLAVOURS), help="which TensorRT builds")
    workspace: int | None = option(
        None, type=_bytes, metavar="GIB", help="scratch memory that the builder may use (default: no limit)"
    )
    optimization_level: int | None = option(
        None, least=0, most=5, metavar="0..5", help="how long the builder searches (default: TensorRT's own)"
    )
    compute_capabilities: tuple[str, ...] = option(
        (), metavar="X.Y[,...]", help="cards to build for; TensorRT for RTX only"
    )
    hardware_compatibility: str = option(
        "none", choices=HARDWARE_COMPATIBILITY, help="let a full TensorRT plan run on other cards"
    )
    version_compatible: bool = option(False, help="let a full TensorRT plan run on later versions")
    aux_streams: int | None = option(None, least=0, help="streams that one inference may use beside its own")
    timing_cache: Path | None = option(
        None, metavar="DIR", help="keep kernel timings here; full TensorRT only"
    )
    memory_limit: int | None = option(
        None,
        type=_bytes,
        metavar="GIB",
        help="refuse a range whose activations need more (default: what the GPU has)",
    )

    def __post_init__(self) -> None:
        _one_of("flavour", self.flavour, ("auto", *FLAVOURS))
        _one_of("hardware_compatibility", self.hardware_compatibility, HARDWARE_COMPATIBILITY)
        _at_least("workspace", self.workspace, 1, "a number of bytes of at least 1")
        _at_least("memory_limit", self.memory_limit, 1, "a number of bytes of at least 1")
        _at_least("aux_streams", self.aux_streams, 0, "0 or more")
        if self.optimization_level is not None and self.optimization_level not in range(6):
            raise EngineBuildError(f"optimization_level is {self.optimization_level!r}; allowed: 0 to 5")
        for capability in self.compute_capabilities:
            if capability != "current" and not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise EngineBuildError(
                    f"compute_capabilities holds {capability!r}; allowed: numbers such as 8.6 or 12.0, or "
                    "current"
                )
        if "current" in self.compute_capabilities and len(self.compute_capabilities) > 1:
            raise EngineBuildError(
                f"compute_capabilities is {', '.join(self.compute_capabilities)}; 'current' stands alone"
            )
        object.__setattr__(self, "compute_capabilities", tuple(dict.fromkeys(self.compute_capabilities)))


def refuse_unavailable(options: BuildOptions, flavour: Flavour) -> None:
    """Refuse by name every option that the flavour at hand does not have, and say what to use instead.

    Raises:
        EngineBuildError: At least one option is not available.
    """
    able = flavour.capabilities
    if options.compute_capabilities:
        if "compute_capabilities" not in able:
            raise EngineBuildError(
                f"compute_capabilities ({', '.join(options.compute_capabilities)}) is an option of "
                f"tensorrt_rtx; {flavour.name} builds for the GPU it runs on. Use hardware_compatibility, or "
                "--flavour tensorrt_rtx"
            )
        _refuse_targets(options.compute_capabilities, flavour.module)
    if options.hardware_compatibility != "none" and "hardware_compatibility" not in able:
        raise EngineBuildError(
            f"hardware_compatibility ({options.hardware_compatibility}) is an option of full tensorrt; "
            f"{flavour.name} plans run on several GPUs as they are. Use compute_capabilities to name them"
        )
    if options.timing_cache is not None and "timing_cache" not in able:
        raise EngineBuildError(
            f"timing_cache ({options.timing_cache}) is an option of full tensorrt; {flavour.name} times no "
            "kernels while it builds. Leave it out: the runtime keeps the compiled kernels in a runtime cache"
        )


def supported_compute_capabilities(trt: Any) -> tuple[str, ...]:
    """Return the architectures that a portable plan can name, ``("7.5", "8.0", …)``, in order."""
    numbers = sorted(int(name[2:]) for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name))
    return tuple(f"{number // 10}.{number % 10}" for number in numbers)


def _refuse_targets(capabilities: tuple[str, ...], trt: Any) -> None:
    supported = supported_compute_capabilities(trt)
    for capability in capabilities:
        if capability == "current" or capability in supported:
            continue
        card = " (H100, H200)" if capability == "9.0" else ""
        raise EngineBuildError(
            f"TensorRT for RTX cannot build for compute capability {capability}{card}; allowed: "
            f"{', '.join(supported)} or current. For {capability} build on that GPU with full TensorRT: "
            "pip install 'esrgan-deploy[tensorrt]', then --flavour tensorrt"
        )


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise EngineBuildError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def _at_least(name: str, value: int | None, least: int, allowed: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise EngineBuildError(f"{name} is {value!r}; allowed: {allowed}")
