"""Where a net is quantised and with how many steps, as the builder of TensorRT for RTX sees it."""

from pathlib import Path
from typing import Any

from esrgan_deploy._spec import ModelSpec

__all__ = ["quantised_table", "traffic_of_quantised"]


def traffic_of_quantised(
    spec: ModelSpec, module: Any, folded: Any, folder: Path, *, side: int
) -> dict[str, dict[str, Any]]:
    """Build a net quantised in several ways, and return what each declares.

    The steps themselves change no kernel, so those of the activations are one number and not calibrated.

    Args:
        spec: Of the net.
        module: In fp32, with its weights.
        folded: Its rewritten fp32 graph; it is not changed.
        folder: For the files.
        side: Height and width of the picture in pixels.

    Returns:
        ``{"fp8, per tensor, body": {"kernels", "bytes_per_pixel", "convolutions": {"fp16": …, "fp8": …},
        "share"}, …}``: the convolution kernels by the dtype that they compute in, and the share of the
        multiply-adds that is quantised.

    Raises:
        EngineBuildError: TensorRT cannot build it, or a convolution is not of the format.
        ExportError: The architecture cannot be quantised.
        MissingDependencyError: TensorRT or torch is not installed.
    """
    from esrgan_deploy.engines import BuildOptions, ShapeRange, declared_bytes_per_pixel, engine_from_onnx
    from esrgan_deploy.export._graph import clone, save
    from esrgan_deploy.export._precision import to_precision
    from esrgan_deploy.export._qdq import quantise
    from esrgan_deploy.export.quantisation._recipe import Recipe, weight_steps
    from esrgan_deploy.export.quantisation._structure import layers

    found = layers(spec)
    options = BuildOptions(shapes=ShapeRange.fixed((1, side, side)))
    forms: dict[str, dict[str, Any]] = {}
    for kind in ("fp8", "int8"):
        for per_channel in (False, True):
            weights = {
                layer.name: weight_steps(
                    module.get_submodule(layer.name).weight.numpy(), layer, kind, per_channel=per_channel
                )
                for layer in found
            }
            recipe = Recipe(
                formats=dict.fromkeys(weights, kind),
                activations={layer.group: 2.0**-6 for layer in found},
                weights=weights,
            )
            for where, names in _places(found).items():
                graph, path = clone(folded), folder / f"q{len(forms)}.onnx"
                done = quantise(graph, found, recipe.only(names))
                save(to_precision(graph, "fp16"), path)
                built = engine_from_onnx(path, path.with_suffix(".qplan"), options, expect_precision=kind)
                forms[f"{kind}, per {'channel' if per_channel else 'tensor'}, {where}"] = {
                    "kernels": len(built.layers),
                    "bytes_per_pixel": declared_bytes_per_pixel(built.layers, side * side),
                    "convolutions": built.dtypes,
                    "share": done.share,
                }
    return forms


def quantised_table(forms: dict[str, dict[str, Any]], fp16: float) -> list[str]:
    """Return the lines of a table.

    Args:
        forms: See `traffic_of_quantised`.
        fp16: Bytes per pixel of the same graph in fp16.
    """
    lines = [f"{'quantised':44} {'MACs':>6} {'kernels':>8} {'bytes/LR px':>12} {'of fp16':>8}  convolutions"]
    for name, form in forms.items():
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in form["convolutions"].items())
        lines.append(
            f"{name:44} {form['share']:6.1%} {form['kernels']:8} {form['bytes_per_pixel']:12,.0f} "
            f"{form['bytes_per_pixel'] / fp16:8.1%}  {dtypes}"
        )
    return lines


def _places(found: Any) -> dict[str, list[str]]:
    body = [layer.name for layer in found if layer.place == "body"]
    tail = [layer.name for layer in found if layer.place == "tail"]
    places = {"body": body}
    if tail:
        # The last of the tail writes the most for a convolution that is left in fp16.
        places[f"body and tail but {tail[-1]}"] = [*body, *tail[:-1]]
        places["body and tail"] = [*body, *tail]
    return {**places, "all": [layer.name for layer in found]}
