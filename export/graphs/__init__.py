"""From a module to an ONNX graph, and every pass over it."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.graphs._conform import conform as conform
    from esrgan_deploy.export.graphs._conform import widen as widen
    from esrgan_deploy.export.graphs._cpu_weights import fitted as fitted
    from esrgan_deploy.export.graphs._edit import FEATURES as FEATURES
    from esrgan_deploy.export.graphs._edit import append as append
    from esrgan_deploy.export.graphs._edit import clone as clone
    from esrgan_deploy.export.graphs._edit import save as save
    from esrgan_deploy.export.graphs._edit import to_bytes as to_bytes
    from esrgan_deploy.export.graphs._emulate_half import measured_as as measured_as
    from esrgan_deploy.export.graphs._emulate_half import rounding_model as rounding_model
    from esrgan_deploy.export.graphs._emulate_half import runs_as_it_is as runs_as_it_is
    from esrgan_deploy.export.graphs._ends import bytes_in as bytes_in
    from esrgan_deploy.export.graphs._ends import bytes_out as bytes_out
    from esrgan_deploy.export.graphs._ends import is_watched as is_watched
    from esrgan_deploy.export.graphs._ends import to_uint8_form as to_uint8_form
    from esrgan_deploy.export.graphs._ends import watch as watch
    from esrgan_deploy.export.graphs._fold_and_nest import fold_scales as fold_scales
    from esrgan_deploy.export.graphs._fold_and_nest import nest_concats as nest_concats
    from esrgan_deploy.export.graphs._parts import Cut as Cut
    from esrgan_deploy.export.graphs._parts import cut_graph as cut_graph
    from esrgan_deploy.export.graphs._parts import cuts_of as cuts_of
    from esrgan_deploy.export.graphs._parts import trunk_of as trunk_of
    from esrgan_deploy.export.graphs._plan_forms import PlanForms as PlanForms
    from esrgan_deploy.export.graphs._plan_forms import form_for_plans as form_for_plans
    from esrgan_deploy.export.graphs._precision import to_precision as to_precision
    from esrgan_deploy.export.graphs._quantise_cpu import quantise_for_processor as quantise_for_processor
    from esrgan_deploy.export.graphs._quantise_tensorrt import add_remainders as add_remainders
    from esrgan_deploy.export.graphs._quantise_tensorrt import (
        apply_parameters_to_graph as apply_parameters_to_graph,
    )
    from esrgan_deploy.export.graphs._quantise_tensorrt import quantise as quantise
    from esrgan_deploy.export.graphs._recipe import UNSIGNED as UNSIGNED
    from esrgan_deploy.export.graphs._recipe import Array as Array
    from esrgan_deploy.export.graphs._recipe import Recipe as Recipe
    from esrgan_deploy.export.graphs._recipe import storable as storable
    from esrgan_deploy.export.graphs._recipe import unsigned_grid as unsigned_grid
    from esrgan_deploy.export.graphs._recipe import weight_steps as weight_steps
    from esrgan_deploy.export.graphs._resize import resize_output as resize_output
    from esrgan_deploy.export.graphs._resize import resize_ratio as resize_ratio
    from esrgan_deploy.export.graphs._trace import trace as trace

__getattr__, __dir__, __all__ = handed_on(__name__)
