"""From a module to an ONNX graph, and every pass over it."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.graphs._conform import conform, widen
    from esrgan_deploy.export.graphs._cpu_weights import fitted
    from esrgan_deploy.export.graphs._edit import append, clone, save, to_bytes
    from esrgan_deploy.export.graphs._emulate_half import measured_as, rounding_model, runs_as_it_is
    from esrgan_deploy.export.graphs._fold_and_nest import fold_scales, nest_concats
    from esrgan_deploy.export.graphs._precision import to_precision
    from esrgan_deploy.export.graphs._quantise_cpu import quantise_for_processor
    from esrgan_deploy.export.graphs._quantise_tensorrt import (
        add_remainders,
        apply_parameters_to_graph,
        quantise,
    )
    from esrgan_deploy.export.graphs._recipe import (
        UNSIGNED,
        Array,
        Recipe,
        storable,
        unsigned_grid,
        weight_steps,
    )
    from esrgan_deploy.export.graphs._resize import resize_output, resize_ratio
    from esrgan_deploy.export.graphs._trace import trace
    from esrgan_deploy.export.graphs._uint8_form import to_uint8_form
    from esrgan_deploy.export.graphs._watchdog import is_watched, watch

__all__ = [
    "UNSIGNED",
    "Array",
    "Recipe",
    "add_remainders",
    "append",
    "apply_parameters_to_graph",
    "clone",
    "conform",
    "fitted",
    "fold_scales",
    "is_watched",
    "measured_as",
    "nest_concats",
    "quantise",
    "quantise_for_processor",
    "resize_output",
    "resize_ratio",
    "rounding_model",
    "runs_as_it_is",
    "save",
    "storable",
    "to_bytes",
    "to_precision",
    "to_uint8_form",
    "trace",
    "unsigned_grid",
    "watch",
    "weight_steps",
    "widen",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_conform": ("conform", "widen"),
        "_cpu_weights": ("fitted",),
        "_edit": ("append", "clone", "save", "to_bytes"),
        "_emulate_half": ("measured_as", "rounding_model", "runs_as_it_is"),
        "_fold_and_nest": ("fold_scales", "nest_concats"),
        "_precision": ("to_precision",),
        "_quantise_cpu": ("quantise_for_processor",),
        "_quantise_tensorrt": ("add_remainders", "apply_parameters_to_graph", "quantise"),
        "_recipe": ("Array", "Recipe", "UNSIGNED", "storable", "unsigned_grid", "weight_steps"),
        "_resize": ("resize_output", "resize_ratio"),
        "_trace": ("trace",),
        "_uint8_form": ("to_uint8_form",),
        "_watchdog": ("is_watched", "watch"),
    },
)
