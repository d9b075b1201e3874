"""ONNX Runtime on memory that someone else owns: addresses in, addresses out, no copy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from esrgan_deploy._console import one_line
from esrgan_deploy._errors import InferenceError
from esrgan_deploy._optional import require
from esrgan_deploy.runtime._fault_texts import fault_of
from esrgan_deploy.runtime._foreign import ForeignArray

__all__ = ["bound", "element_type", "failure_of", "reason_of", "run_bound"]

# What `NodeArg.type` calls the element types of pictures, and numpy.
ELEMENTS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


def element_type(value: Any) -> str:
    """Return the dtype of a graph's input or output as numpy spells it; the type's own name where it has none."""
    return ELEMENTS.get(value.type, str(value.type))


def bound(graph: Any, batch: ForeignArray, outputs: Sequence[ForeignArray]) -> Any:
    """Return an ``IOBinding`` of a graph to the memory of its input and of its outputs.

    Args:
        graph: An ``onnxruntime.InferenceSession`` with one input.
        batch: Its input.
        outputs: In the graph's order, of the shapes that it will make of the batch: with another one it fails.
    """
    binding = graph.io_binding()
    binding.bind_input(graph.get_inputs()[0].name, *_place(batch))
    for value, array in zip(graph.get_outputs(), outputs, strict=True):
        binding.bind_output(value.name, *_place(array))
    return binding


def run_bound(graph: Any, binding: Any, *, wait: bool) -> None:
    """Run a graph on what it is bound to.

    Args:
        graph: The ``onnxruntime.InferenceSession``.
        binding: From `bound`.
        wait: Whether to wait for the device; else the run's work is enqueued on the session's stream.

    Raises:
        Exception: ONNX Runtime's own, of many types.
    """
    options = None
    if not wait:
        options = require("onnxruntime", extra="cuda").RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    graph.run_with_iobinding(binding, options)


def failure_of(error: Exception, name: str, shape: tuple[int, ...]) -> InferenceError:
    """Return the error to raise for one of ONNX Runtime's: of memory, of a lost device, or of something else.

    Args:
        error: Of a run; ONNX Runtime has many types, none of them documented.
        name: Of the graph.
        shape: Of the batch.
    """
    return fault_of(str(error))(
        f"{name} failed on a batch of {'x'.join(map(str, shape))} ({reason_of(error)}); "
        "if memory ran out, use a smaller tile"
    )


def reason_of(error: Exception) -> str:
    """Return what an error of ONNX Runtime says, on one line and without its prefix."""
    # "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from ... failed:Protobuf parsing failed."
    text = one_line(error)
    return text.split(" : ", 2)[-1][:300] if text.startswith("[ONNXRuntimeError]") else text[:300]


def _place(array: ForeignArray) -> tuple[str, int, Any, list[int], int]:
    where = "cpu" if array.device < 0 else "cuda"
    return where, max(array.device, 0), np.dtype(array.dtype).type, list(array.shape), array.pointer
