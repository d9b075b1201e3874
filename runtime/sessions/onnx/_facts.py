"""What an ONNX graph takes and gives: from the graph's own metadata, else by running it."""

import dataclasses
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError
from esrgan_deploy._spec import HEALTH_OUTPUT, METADATA_KEY, UNBOUNDED, Form, ModelSpec
from esrgan_deploy.runtime.sessions._protocol import SessionInfo

__all__ = ["DTYPES", "are_picture_and_health", "facts_of_graph"]

# What `NodeArg.type` calls the element types of pictures.
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)

Run = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Input:
    """The input of a graph, read from its declaration; 0 stands for an open dimension."""

    form: Form
    dtype: np.dtype[Any]
    number: int
    channels: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Facts:
    """What a declaration does not say."""

    scale: Fraction
    size_multiple: int
    in_channels: int
    out_channels: int
    spec: ModelSpec | None = None
    precision: str = ""


def facts_of_graph(path: Path, graph: Any, run: Run, *, provider: str) -> SessionInfo:
    """Describe an open graph.

    Args:
        path: The file that it came from.
        graph: An ``onnxruntime.InferenceSession``.
        run: Runs one batch.
        provider: What computes, in words.

    Raises:
        InferenceError: The graph is not one that enlarges pictures.
    """
    if '"whole"' in graph.get_modelmeta().custom_metadata_map.get(METADATA_KEY, ""):
        raise InferenceError(
            f"{path} is a part of a graph and no model by itself; give the graph: the name without .trunk or .tail"
        )
    declared = _declared_input(path, graph)
    known = _from_metadata(graph)
    channels = declared.channels or (known.in_channels if known else 3)
    facts = known if known and not declared.height else _measure(path, run, declared, channels)
    if facts.out_channels != channels or channels not in (1, 3):
        raise InferenceError(
            f"{path} makes {facts.out_channels} channels of {channels}; "
            "a picture is 3 to 3 (RGB) or 1 to 1 (gray)"
        )
    fixed = (declared.number, declared.height, declared.width)
    return SessionInfo(
        name=path.name,
        form=declared.form,
        dtype=declared.dtype,
        in_channels=channels,
        out_channels=facts.out_channels,
        scale=facts.scale,
        size_multiple=facts.size_multiple,
        min_shape=(fixed[0] or 1, fixed[1] or 1, fixed[2] or 1),
        max_shape=(fixed[0] or UNBOUNDED, fixed[1] or UNBOUNDED, fixed[2] or UNBOUNDED),
        provider=provider,
        spec=known.spec if known else None,
        precision=known.precision if known else "",
        watched=len(graph.get_outputs()) == 2,
    )


def _declared_input(path: Path, graph: Any) -> _Input:
    inputs, outputs = graph.get_inputs(), graph.get_outputs()
    if len(inputs) != 1 or not (len(outputs) == 1 or are_picture_and_health(outputs)):
        raise InferenceError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs "
            f"({', '.join(value.name for value in outputs)}); a graph that enlarges pictures has one of each, and "
            f"may have a second output {HEALTH_OUTPUT!r}, (N, 3) float32"
        )
    kind, shape = inputs[0].type, inputs[0].shape
    if kind not in DTYPES or len(shape) != 4:
        raise InferenceError(
            f"{path} takes {kind} of rank {len(shape)}; allowed are float32 and float16 (N, C, H, W) and "
            "uint8 (N, H, W, C). Run: esrgan-export with another precision or form"
        )
    sizes = [size if isinstance(size, int) else 0 for size in shape]
    if kind == "tensor(uint8)":
        form, (number, height, width, channels) = "uint8", sizes
    else:
        form, (number, channels, height, width) = "float", sizes
    if bool(height) != bool(width):
        raise InferenceError(f"{path} fixes one side of the picture only ({shape}); fix both or none")
    return _Input(
        form="uint8" if form == "uint8" else "float",
        dtype=np.dtype(DTYPES[kind]),
        number=number,
        channels=channels,
        height=height,
        width=width,
    )


def are_picture_and_health(outputs: list[Any]) -> bool:
    """Whether a graph's outputs are a picture and its `BatchOutput.health`, as only esrgan-export writes them."""
    if len(outputs) != 2 or outputs[1].name != HEALTH_OUTPUT:
        return False
    return outputs[1].type == "tensor(float)" and len(outputs[1].shape) == 2 and outputs[1].shape[1] == 3


def _from_metadata(graph: Any) -> _Facts | None:
    """Return what esrgan-export wrote into the graph; None where it is not there or makes no sense.

    Unlike a manifest beside the file it cannot be about another file, and it goes where the file goes.
    """
    text = graph.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
    try:
        data = json.loads(text)
        facts = _Facts(
            scale=Fraction(data["outscale"]).limit_denominator(10000),
            size_multiple=int(data["size_multiple"]),
            in_channels=int(data["spec"]["in_channels"]),
            out_channels=int(data["spec"]["out_channels"]),
            spec=_spec(data["spec"]),
            precision=str(data.get("precision", "")),
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return facts if facts.scale > 0 and facts.size_multiple > 0 else None


def _spec(data: dict[str, Any]) -> ModelSpec | None:
    # Running a graph takes four of its numbers; the rest only says how much it computes.
    try:
        return ModelSpec.from_json(data)
    except (TypeError, ValueError):
        return None


def _measure(path: Path, run: Run, declared: _Input, channels: int) -> _Facts:
    """Find scale, size multiple and output channels from what the graph makes of small blank pictures.

    Raises:
        InferenceError: It enlarges no size by one factor.
    """
    if declared.height:
        return _measure_fixed(path, run, declared, channels)
    failure: Exception | None = None
    for multiple in MULTIPLES:
        try:
            facts = _measure_at(run, declared, channels, multiple)
        except Exception as error:
            failure = error
            continue
        if facts is not None:
            return facts
    reason = f" ({one_line(failure)[:200]})" if failure else ""
    raise InferenceError(
        f"{path} does not enlarge pictures whose sides are multiples of 1, 2, 4, … or {MULTIPLES[-1]} by one "
        f"factor{reason}"
    ) from failure


def _measure_fixed(path: Path, run: Run, declared: _Input, channels: int) -> _Facts:
    try:
        height, width, made = _probe(run, declared, channels, declared.height, declared.width)
    except Exception as error:
        raise InferenceError(f"{path} failed on a blank picture ({one_line(error)[:200]})") from error
    scale = Fraction(height, declared.height)
    if Fraction(width, declared.width) != scale:
        raise InferenceError(
            f"{path} makes {width}x{height} pixels of {declared.width}x{declared.height}; "
            "both sides must grow by one factor"
        )
    return _Facts(scale=scale, size_multiple=1, in_channels=channels, out_channels=made)


def _measure_at(run: Run, declared: _Input, channels: int, multiple: int) -> _Facts | None:
    # Long and thin: enough pixels along one side to see a broken scale, and few in all. None where the sizes
    # follow no single factor, as when a net pads its input to a multiple of its own.
    long, _, made = _probe(run, declared, channels, 60 * multiple, multiple)
    scale = Fraction(long, 60 * multiple)
    if scale.denominator != 1:
        longer = _probe(run, declared, channels, 1000 * multiple, multiple)[0]
        if longer != math.floor(1000 * multiple * scale):
            scale = Fraction(longer, 1000 * multiple)
    height, width, _ = _probe(run, declared, channels, 7 * multiple, multiple)
    if (height, width) != (math.floor(7 * multiple * scale), math.floor(multiple * scale)):
        return None
    return _Facts(scale=scale, size_multiple=multiple, in_channels=channels, out_channels=made)


def _probe(run: Run, declared: _Input, channels: int, height: int, width: int) -> tuple[int, int, int]:
    number = declared.number or 1
    if declared.form == "uint8":
        _, height, width, made = run(np.zeros((number, height, width, channels), declared.dtype)).shape
    else:
        _, made, height, width = run(np.zeros((number, channels, height, width), declared.dtype)).shape
    return height, width, made
