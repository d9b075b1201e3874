"""What OpenVINO computes on, and in which arithmetic."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime.sessions._protocol import SessionOptions

__all__ = ["Target", "arithmetic_of", "is_openvino", "openvino_core", "processor_name", "target_for"]

NAME, CPU = "openvino", "CPU"

# How the properties INFERENCE_PRECISION_HINT, and OPTIMIZATION_CAPABILITIES of what has the instructions, name each.
# Source: docs.openvino.ai, "Precision Control".
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
CAPABILITIES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}


def is_openvino(providers: Sequence[str] | None) -> bool:
    """Whether providers name OpenVINO itself: ``"openvino"``, or with a device of it, ``"openvino:GPU"``.

    ``"OpenVINOExecutionProvider"`` is ONNX Runtime's own, in a build of ONNX Runtime that has it.

    Args:
        providers: As `SessionOptions.providers`.
    """
    return any(name.partition(":")[0].lower() == NAME for name in providers or ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a graph is compiled for.

    Attributes:
        device: As OpenVINO names it: ``"CPU"``, ``"GPU"``, ``"GPU.1"``, ``"NPU"``, ``"AUTO:GPU,CPU"``.
        label: The device's full name.
        able: What it has instructions for.
        precision: What the convolutions compute in, ``"fp32"``, ``"fp16"`` or ``"bf16"``; quantised ones in INT8.
        threads: On the processor; None lets OpenVINO choose.
        at_once: Batches that are computed at the same time.
    """

    device: str
    label: str
    able: tuple[str, ...]
    precision: str
    threads: int | None
    at_once: int

    @property
    def fixed(self) -> bool:
        """Whether each shape is compiled by itself: an NPU takes no other, and a GPU is slower with others."""
        return self.device != CPU

    def settings(self) -> dict[str, Any]:
        """Return the properties to compile with."""
        # By default convolutions run in what the device is fastest in, and another net than the one that was
        # verified is computed.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[self.precision]}
        if self.at_once > 1:
            settings |= {
                "PERFORMANCE_HINT": "THROUGHPUT",
                "PERFORMANCE_HINT_NUM_REQUESTS": self.at_once,
            }
        else:
            settings["PERFORMANCE_HINT"] = "LATENCY"
        if self.device == CPU:
            # Two processes whose threads are pinned to the same cores share one core and leave another idle.
            settings["ENABLE_CPU_PINNING"] = False
            if self.threads is not None:
                settings["INFERENCE_NUM_THREADS"] = self.threads
        return settings


@functools.cache
def openvino_core() -> Any:
    """Return the ``openvino.Core`` of this process: each one loads the plugins anew.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    return require("openvino", extra="openvino").Core()


def arithmetic_of(device: str = CPU) -> tuple[str, ...]:
    """Return what a device computes in by instructions of its own, most exact first: ``("fp32", "bf16")``.

    Args:
        device: As OpenVINO names it.

    Raises:
        InferenceError: There is no such device.
        MissingDependencyError: OpenVINO is not installed.
    """
    found = _property(device, "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, capability in CAPABILITIES.items() if capability in found)


def processor_name() -> str:
    """Return the processor's full name.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    return str(_property(CPU, "FULL_DEVICE_NAME"))


def target_for(options: SessionOptions, precision: str, name: str) -> Target:
    """Return what to compile a graph for.

    Args:
        options: `SessionOptions.providers` names OpenVINO.
        precision: Of the graph, where it is known.
        name: Of the graph, for messages.

    Raises:
        InferenceError: There is no such device, it lacks that arithmetic, or another provider is named beside it.
        MissingDependencyError: OpenVINO is not installed.
    """
    device = _device(options.providers or ())
    able = arithmetic_of(device)
    asked = options.precision
    if asked is None:
        # Its own: quantised graphs are fp32 between their integers, and those in fp16 are no faster on a processor.
        asked = "bf16" if precision == "bf16" and "bf16" in able else "fp32"
        if asked not in able:
            raise InferenceError(
                f"{device} of OpenVINO computes in {' and '.join(able)} and not in fp32, as {name} says; say that it "
                f"may: precision={able[0]!r}"
                if able
                else f"{device} of OpenVINO names no arithmetic of floats; use another device for {name}"
            )
    if asked not in able:
        raise InferenceError(
            f"{device} of OpenVINO ({_property(device, 'FULL_DEVICE_NAME')}) has no instructions for {asked}, only "
            f"for {' and '.join(able)}; leave precision out"
        )
    return Target(
        device=device,
        label=_property(device, "FULL_DEVICE_NAME"),
        able=able,
        precision=asked,
        threads=options.threads,
        at_once=options.streams or 1,
    )


def _device(providers: Sequence[str]) -> str:
    if len(providers) != 1:
        raise InferenceError(
            f"providers are {', '.join(providers)}; OpenVINO takes a graph whole or not at all, so name it alone"
        )
    device = providers[0].partition(":")[2].upper() or CPU
    found = openvino_core().available_devices
    # GPU is the first of GPU.0 and GPU.1; of AUTO:GPU,CPU OpenVINO itself looks up the rest.
    known = {CPU, *found, *(one.partition(".")[0] for one in found)}
    if ":" not in device and device not in {*known, "AUTO"}:
        raise InferenceError(
            f"OpenVINO finds no device {device} here, only {', '.join(sorted(found))}; an Intel GPU or NPU needs "
            "its driver, and the group render where it is used in a container"
        )
    return device


def _property(device: str, name: str) -> Any:
    try:
        # Of devices in a row the first that is a device.
        return openvino_core().get_property(device.rpartition(":")[2].partition(",")[0], name)
    except RuntimeError as error:
        raise InferenceError(f"OpenVINO cannot use the device {device} ({one_line(error)[:200]})") from error
