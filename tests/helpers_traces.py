"""Lets torch.onnx trace each net once: seconds for the smallest, and most exports here are of the same few."""

import gc
import hashlib
import io
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from esrgan_deploy._files import replaced_atomically


class Whole(pickle.Pickler):
    """Writes tensors by their values, where torch writes where they lie; of some their names and shapes alone."""

    def __init__(self, file: io.BytesIO, named: dict[int, str]) -> None:
        super().__init__(file)
        self._named = named

    def persistent_id(self, one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return None
        name = self._named.get(id(one))
        return str(one.dtype), tuple(one.shape), name or one.detach().contiguous().numpy().tobytes()


def kept_in(folder: Path) -> Callable[..., Any]:
    """Return a ``torch.onnx.export`` that keeps what it traced in a folder, which several processes may share.

    Nets of this package that differ in their weights alone have one trace, into which those of each are put.
    """
    export, traced = torch.onnx.export, {}

    def once(module: Any, *arguments: Any, **options: Any) -> Any:
        # All that a trace depends on. What is written to a file, or is no module, is somebody else's call; a class or
        # a hook that is local to a test cannot be told from another.
        if len(arguments) != 1 or not isinstance(module, torch.nn.Module):
            return export(module, *arguments, **options)
        ours = type(module).__module__.startswith("esrgan_deploy.export.nets.")
        weights = dict(module.named_parameters()) if ours else {}
        asked = io.BytesIO()
        try:
            whole = Whole(asked, {id(value): name for name, value in weights.items()})
            whole.dump((module, arguments, repr(sorted(options.items()))))
        except (AttributeError, TypeError, pickle.PicklingError):
            return export(module, *arguments, **options)
        key = hashlib.sha256(asked.getbuffer()).hexdigest()
        kept = folder / f"{key}.onnx"
        if key not in traced and kept.exists():
            traced[key] = onnx.load(kept)
        elif key not in traced:
            # A seventh of a trace is spent on looking for garbage in what it makes.
            gc.disable()
            try:
                program = export(module, *arguments, **options)
            finally:
                gc.enable()
            if not weights.keys() <= program.model.graph.initializers.keys():
                return program
            traced[key] = ir.to_proto(program.model)
            with replaced_atomically(kept) as temporary:
                onnx.save(traced[key], temporary)
        model = ir.from_proto(traced[key])
        for name, value in weights.items():
            array = value.detach().clone().numpy()
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        return types.SimpleNamespace(model=model)

    return once
