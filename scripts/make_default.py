"""Put trained weights into the package as the default model: python scripts/make_default.py weights.safetensors

Writes default.safetensors (fp16), and default.onnx with its parts, which `esrgan-upscale` runs where nothing was
exported: the verified fp32 graph with its weights stored as fp16, so that the wheel stays small. Run it in an
environment that has the package with the extras export and cpu.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors.torch import load_file, save_file

from esrgan_deploy._files import replaced_atomically
from esrgan_deploy._parity import planar
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.export._write_graphs import write_parts
from esrgan_deploy.export.graphs import cuts_of, save
from esrgan_deploy.export.proof import golden_pictures, run, session_of

MODELS = Path(__file__).resolve().parent.parent / "src" / "esrgan_deploy" / "models"


def main() -> None:
    if len(sys.argv) == 2:
        weights = {name: value.half().contiguous() for name, value in load_file(sys.argv[1]).items()}
        with replaced_atomically(MODELS / "default.safetensors") as temporary:
            save_file(weights, temporary)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        manifest = export_model(MODELS / "default.safetensors", folder, ExportOptions(plan=False))
        assert all(artefact.verified for artefact in manifest.artefacts if artefact.kind == "onnx")
        model = ir.load(folder / "model.onnx")
        exact = session_of(folder / "model.onnx")
        store_as_half(model)
        save(model, MODELS / "default.onnx")
        # The names that say where to cut stand at the weights of the exact graph.
        cut = cuts_of(ir.load(folder / "model.onnx"), manifest.spec)
        write_parts(model, cut, MODELS / "default.onnx", form="float", watchdog=False)
        stored = session_of(MODELS / "default.onnx")
        for picture in golden_pictures(3).values():
            np.testing.assert_allclose(
                run(stored, planar(picture))[0], run(exact, planar(picture))[0], atol=1e-3
            )
    for path in sorted(MODELS.glob("default.*")):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def store_as_half(model: ir.Model) -> None:
    """Store the weights in fp16 behind casts to fp32, which a runtime folds when it loads the graph."""
    graph = model.graph
    first = next(iter(graph))
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < 64:
            continue
        name = value.name
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}_cast")
        cast.outputs[0].name = f"{name}_fp32"
        for node, index in list(value.uses()):
            if node is not cast:
                node.replace_input_with(index, cast.outputs[0])
        value.const_value = ir.tensor(tensor.numpy().astype(np.float16), name=name)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        graph.insert_before(first, cast)


if __name__ == "__main__":
    main()
