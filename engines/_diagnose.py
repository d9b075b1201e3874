"""What TensorRT logs when it refuses a graph, said as what to do."""

import re
from collections.abc import Sequence

__all__ = ["diagnose"]

_ON_GPU = "on a machine with an NVIDIA GPU and its driver"

# (what is found in the log, what it means and what to do). The first that matches is said, so causes stand
# above the errors that follow from them. Texts: tensorrt_rtx 1.7.1, and NVIDIA/TensorRT issues where noted.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), sentence)
    for pattern, sentence in (
        (
            r"Cannot compile for target\(s\) ([\w, ]+?), because .*? HW-specific datatypes: fp8",
            "the graph computes in FP8, which {0} does not have. Run: with --compute-capabilities of 8.9 or "
            "newer only, or build the fp16 graph for {0}",
        ),
        (
            r"Cannot compile for target\(s\) ([\w, ]+?), because .*? HW-specific datatypes: b16",
            "the graph computes in bfloat16, which {0} does not have. Run: with --compute-capabilities of "
            "8.0 or newer only, or build the fp16 graph for {0}",
        ),
        (
            r"Cannot compile for target\(s\) ([\w, ]+?), because .*? HW-specific datatypes: ([\w, ]+)",
            "the graph computes in {1}, which {0} does not have. Run: with other --compute-capabilities, or "
            "from a graph of another precision",
        ),
        (
            r"has type UInt8 but must have type",
            "the graph works on uint8 samples before they are cast, and TensorRT takes uint8 at the boundary "
            "only: Cast comes first on the input and last on the output. Run: esrgan-export --form uint8",
        ),
        (
            r"input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8",
            "the graph dequantises an INT32 bias, which TensorRT does not take. Run: the quantiser again "
            "with its bias left in floating point (ONNX Runtime: QuantizeBias=False)",
        ),
        (
            r"Quantized constant \((.+?)\) is only allowed before DQ",
            "the graph quantises the constant {0!r} of an operator that is no convolution. Run: the "
            "quantiser again for convolutions only (ONNX Runtime: op_types_to_quantize=['Conv'])",
        ),
        (
            r"Non-zero zero point is not supported",
            "the graph is quantised asymmetrically, and TensorRT takes zero points of 0 only. Run: the "
            "quantiser again with symmetric activations and weights",
        ),
        (
            r"Defaulting to INT8 instead",
            "the graph quantises to UINT8, which TensorRT reads as INT8 and so clips half the range. Run: "
            "the quantiser again, symmetrically, to INT8 or FP8",
        ),
        (
            r"Unable to load library: libnvinfer_lean",
            "a version-compatible plan needs TensorRT's lean runtime library, which is not installed. Run: "
            "without --version-compatible, or install full TensorRT with its lean runtime",
        ),
        (
            r"volume exceeds|exceeds \(2\^31\)|INT32_MAX|2147483647",  # NVIDIA/TensorRT 1948, 4123, 4408
            "a tensor has more elements than TensorRT counts (2,147,483,648). Run: with a smaller largest "
            "size in --shapes, and upscale in tiles",
        ),
        (
            r"no tactics to implement the operation within workspace limit",
            "no kernel gets by with the workspace that was allowed. Run: with a larger --workspace, or "
            "without that option",
        ),
        (
            r"static dimensions that don't match k(\w+) dimensions in profile.*?"
            r"Input dimensions are (\[[\d,-]+\]) but profile dimensions are (\[[\d,-]+\])",
            "the graph is fixed to an input of {1} and the plan was to take {2}. Run: with --shapes of that "
            "size, or export the checkpoint again with dynamic shapes",
        ),
        (
            r"ensure that the optimization profiles satisfy MIN<=OPT<=MAX",
            "the range of shapes is not in order. Run: with --shapes min:opt:max that grow on every axis",
        ),
        (
            r"no optimization profile has been defined",
            "the graph has dynamic shapes and the plan was given no range. Run: with --shapes min:opt:max",
        ),
        (
            r"reshape changes volume|dimensions must be equal for concatenation",
            "the graph cannot take pictures of these heights and widths. Run: with --shapes whose sides are "
            "multiples of the model's pixel-unshuffle factor, such as 2 or 4",
        ),
        (
            r"(\w+) must have same input types.*?of types (\w+) and (\w+)",
            "the graph mixes {1} and {2} in one operator, and a plan is strongly typed. Run: esrgan-export "
            "to convert the whole graph to one precision",
        ),
        (
            r"Plugin not found|No importer registered|no importer registered",
            "the graph holds an operator that TensorRT does not know. Run: esrgan-export from the "
            "checkpoint, or replace the operator",
        ),
        (
            r"Node input was not registered",
            "the graph reads a tensor that nothing makes. Run: esrgan-export again",
        ),
        (
            r"Failed to parse the ONNX model|MODEL_DESERIALIZE_FAILED",
            "the ONNX file is damaged. Run: esrgan-export again",
        ),
        (
            r"generateForCurrent",
            "--compute-capabilities current means the GPU at hand, and none can be used. Run: with numbers "
            "such as 8.6,8.9, or without that option",
        ),
        (
            r"CHECK\(status == CUDA_SUCCESS\) failed",
            "a plan that can be refitted is built with a GPU only, and none can be used. Run: without "
            f"refitting, or {_ON_GPU}",
        ),
        (
            r"Compute capability is invalid or not supported",
            "TensorRT for RTX cannot build for one of the --compute-capabilities. Run: with 7.5, 8.0, 8.6, "
            "8.9, 12.0 or 12.1, or with full TensorRT on the GPU itself",
        ),
        (
            r"[Oo]ut of memory|OutOfMemory|Requested amount of GPU memory|cudaErrorMemoryAllocation",
            "the GPU's memory is full. Run: with a smaller largest size in --shapes, and upscale in tiles; "
            "other processes may hold memory: nvidia-smi lists them",
        ),
        (
            r"Could not find any implementation for node",  # NVIDIA/TensorRT 3660, 4360
            "no kernel works for one of the layers at these sizes, mostly because memory runs out while it "
            "is timed. Run: with a smaller largest size in --shapes, or a larger --workspace",
        ),
    )
)

# On a machine without a GPU this follows every other error, so it is a cause only where it stands alone.
_NO_DRIVER = re.compile(r"cudaError 35|CUDA driver version is insufficient|CUDA initialization failure")

# Lines that follow an error and say nothing of it.
_NOISE = re.compile(r"--- (Begin|End) node ---|While parsing node number|bad optional access|cudaError 35")


def diagnose(messages: Sequence[str], *, subject: str) -> str:
    """Say what an unsuccessful build means and what to do, with the error itself in brackets.

    Args:
        messages: What TensorRT logged as errors and warnings, and the parser's errors, oldest first.
        subject: What could not be built, at the head of the sentence.

    Returns:
        One line.
    """
    for pattern, sentence in _RULES:
        for message in reversed(messages):
            match = pattern.search(message)
            if match:
                said = sentence.format(*(_architectures(group) for group in match.groups()))
                return f"{subject}: {said} {_bracketed(message)}"
    telling = [message for message in messages if not _NOISE.search(message)]
    if any(_NO_DRIVER.search(message) for message in telling or messages):
        said = (
            f"TensorRT needs a GPU here and finds no driver that fits. Run: {_ON_GPU}, or with "
            "--flavour tensorrt_rtx for a portable plan"
        )
    else:
        said = "TensorRT refused it. Run: esrgan-export from the checkpoint, or report the text in brackets"
    shown = telling or messages or ["nothing was logged"]
    return f"{subject}: {said} {_bracketed(shown[-1])}"


def _architectures(text: str) -> str:
    # "sm80, sm120" is how the log names compute capabilities 8.0 and 12.0.
    return re.sub(r"\bsm(\d+)(\d)\b", r"\1.\2", text)


def _bracketed(message: str) -> str:
    line = " ".join(message.split())
    return f"[{line if len(line) <= 300 else line[:297] + '...'}]"
