"""The facts that every written graph carries in itself."""

import json

import onnx_ir as ir

from esrgan_deploy._spec import METADATA_KEY, ModelSpec
from esrgan_deploy.export._watchdog import is_watched

__all__ = ["describe"]


def describe(
    model: ir.Model, spec: ModelSpec, *, precision: str, form: str, outscale: float, size_multiple: int
) -> None:
    """Write what a graph is into its metadata, as JSON under one key, so that it can stand without a manifest."""
    facts = {
        "precision": precision,
        "form": form,
        "outscale": outscale,
        "size_multiple": size_multiple,
        "watched": is_watched(model),
        "spec": spec.to_json(),
    }
    model.metadata_props.clear()
    model.metadata_props[METADATA_KEY] = json.dumps(facts)
