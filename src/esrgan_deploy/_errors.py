"""The one tree of errors that a caller has to know.

EsrganDeployError
├── CheckpointError          a checkpoint cannot be read, or is not of a family that is known
├── ExportError              a graph cannot be traced, rewritten or written
├── ParityError              an artefact does not compute what PyTorch computes
├── EngineBuildError         TensorRT cannot build a plan from the graph
├── EngineMismatchError      a plan was built for another flavour, version or card
├── InferenceError           an artefact that loaded fails while it runs
│   ├── OutOfMemoryError     a batch did not fit into memory; a smaller one may
│   └── DeviceLostError      the device computes nothing any more
├── MediaError               a picture or a film cannot be read or written
├── TrainingError            a training cannot start, or cannot go on
├── BenchmarkError           a file of results is none, or two of them cannot be compared
└── MissingDependencyError   an optional package is not installed

A message is one line: what happened, the value seen, what is allowed, and what to run next.
"""

__all__ = [
    "BenchmarkError",
    "CheckpointError",
    "DeviceLostError",
    "EngineBuildError",
    "EngineMismatchError",
    "EsrganDeployError",
    "ExportError",
    "InferenceError",
    "MediaError",
    "MissingDependencyError",
    "OutOfMemoryError",
    "ParityError",
    "TrainingError",
]


class EsrganDeployError(Exception):
    """Base of every error that this package raises on purpose; anything else is a bug."""


class CheckpointError(EsrganDeployError):
    """A checkpoint cannot be read, or is not of a family that is known."""


class ExportError(EsrganDeployError):
    """A graph cannot be traced, rewritten or written."""


class ParityError(EsrganDeployError):
    """An artefact does not compute what PyTorch computes."""


class EngineBuildError(EsrganDeployError):
    """TensorRT cannot build a plan from the graph."""


class EngineMismatchError(EsrganDeployError):
    """A plan was built for another flavour, version or card."""


class InferenceError(EsrganDeployError):
    """An artefact that loaded fails while it runs."""


class OutOfMemoryError(InferenceError):
    """A batch did not fit into memory; a smaller one may."""


class DeviceLostError(InferenceError):
    """The device computes nothing any more, whatever it is given; its context is broken. Open a new process."""


class MediaError(EsrganDeployError):
    """A picture or a film cannot be read or written."""


class MissingDependencyError(EsrganDeployError, ImportError):
    """An optional package is not installed."""


class TrainingError(EsrganDeployError):
    """A training cannot start with what it was given, or cannot go on."""


class BenchmarkError(EsrganDeployError):
    """A file of results is none, or two of them cannot be compared."""
