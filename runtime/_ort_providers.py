"""ONNX Runtime's execution providers: their names in short, and the options that fit this work."""

from collections.abc import Sequence

from esrgan_deploy._errors import InferenceError

__all__ = ["on_cuda", "provider_settings"]

PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
# These take the address of an NVIDIA device's memory and an ordinal.
ON_CUDA = (CUDA, TENSORRT, "NvTensorRTRTXExecutionProvider")

# https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html. Nothing here was timed on a GPU.
CUDA_OPTIONS = {
    # The default searches exhaustively for each convolution and each new shape, which takes seconds; the pictures of
    # a folder all differ.
    "cudnn_conv_algo_search": "HEURISTIC",
    # An fp32 graph computes in fp32: what it is verified against does. cuDNN's own graphs may use TF32 all the same
    # (ONNX Runtime's pull request 19470), which only NVIDIA_TF32_OVERRIDE=0 in the environment forbids.
    "use_tf32": "0",
    # By default the arena doubles with each request, and the last doubling is what does not fit.
    "arena_extend_strategy": "kSameAsRequested",
}


def provider_settings(
    available: Sequence[str], wanted: Sequence[str] | None, *, device: int
) -> list[tuple[str, dict[str, str]]]:
    """Return the providers to open a graph with, and their options.

    Args:
        available: What this ONNX Runtime was built with, by full name.
        wanted: In order of preference, by full name or in short (``"cpu"``, ``"cuda"``, ``"tensorrt"``,
            ``"openvino"``); None for CUDA where it is present, and the CPU.
        device: Ordinal of the CUDA device.

    Raises:
        InferenceError: One is not available.
    """
    names = [name for name in PREFERRED if name in available] if wanted is None else _full(available, wanted)
    return [(name, _options(name, device)) for name in names]


def on_cuda(provider: str) -> bool:
    """Return whether a provider computes on a CUDA device."""
    return provider in ON_CUDA


def _full(available: Sequence[str], wanted: Sequence[str]) -> list[str]:
    by_name = {name.removesuffix("ExecutionProvider").lower(): name for name in available}
    chosen = []
    for name in wanted:
        key = name.removesuffix("ExecutionProvider").lower()
        if key not in by_name:
            raise InferenceError(
                f"this ONNX Runtime has no provider {name!r}, only {', '.join(sorted(by_name))}; "
                "CUDA comes with: pip uninstall onnxruntime, then pip install 'esrgan-deploy[cuda]'"
            )
        chosen.append(by_name[key])
    return chosen


def _options(name: str, device: int) -> dict[str, str]:
    if name not in ON_CUDA:
        return {}
    options = {"device_id": str(device)}
    return options | CUDA_OPTIONS if name == CUDA else options
