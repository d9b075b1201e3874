"""The generators: modules, their stages, and what their convolutions are."""

from typing import TYPE_CHECKING

from esrgan_deploy._optional import handed_on

if TYPE_CHECKING:
    from esrgan_deploy.export.nets._compact import SRVGGNetCompact
    from esrgan_deploy.export.nets._convolutions import (
        LARGEST,
        LEAST_STEP,
        QUANTISED,
        Layer,
        Quantised,
        Rescaling,
        counted,
        folds,
        layers,
        placement,
        rescalings,
        share_of,
    )
    from esrgan_deploy.export.nets._rrdbnet import RRDB, RRDBNet
    from esrgan_deploy.export.nets._stages import Generator, Stage, State, output_of

__all__ = [
    "LARGEST",
    "LEAST_STEP",
    "QUANTISED",
    "RRDB",
    "Generator",
    "Layer",
    "Quantised",
    "RRDBNet",
    "Rescaling",
    "SRVGGNetCompact",
    "Stage",
    "State",
    "counted",
    "folds",
    "layers",
    "output_of",
    "placement",
    "rescalings",
    "share_of",
]

__getattr__, __dir__ = handed_on(
    __name__,
    {
        "_compact": ("SRVGGNetCompact",),
        "_convolutions": (
            "LARGEST",
            "LEAST_STEP",
            "Layer",
            "QUANTISED",
            "Quantised",
            "Rescaling",
            "counted",
            "folds",
            "layers",
            "placement",
            "rescalings",
            "share_of",
        ),
        "_rrdbnet": ("RRDB", "RRDBNet"),
        "_stages": ("Generator", "Stage", "State", "output_of"),
    },
)
