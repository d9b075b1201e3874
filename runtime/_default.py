"""The model that is used when none is named."""

import importlib.resources
from pathlib import Path

from esrgan_deploy._errors import InferenceError

__all__ = ["default_model"]


def default_model() -> Path:
    """Return the path of the ONNX graph that ships with the package.

    Raises:
        InferenceError: This installation carries none.
    """
    model = Path(str(importlib.resources.files("esrgan_deploy.models") / "default.onnx"))
    if not model.is_file():
        raise InferenceError(
            f"no model was named and {model} does not exist. Run: esrgan-export model.pth -o out, "
            "then give out/model.onnx as the model"
        )
    return model
