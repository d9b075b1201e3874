"""TensorRT under its two names: ``tensorrt`` for the GPU at hand, ``tensorrt_rtx`` for portable plans."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterator
from typing import Any

from esrgan_deploy._errors import EngineBuildError, MissingDependencyError

__all__ = ["FLAVOURS", "Flavour", "flavour_is_installed", "gpu_is_usable", "open_flavour"]

FLAVOURS = ("tensorrt", "tensorrt_rtx")

Sink = Callable[[str, str], None]

_PIP = {
    "tensorrt": "pip install 'esrgan-deploy[tensorrt]'",
    "tensorrt_rtx": "pip install 'esrgan-deploy[rtx]'",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flavour:
    """One of the two modules, with what it was found to be able to do.

    Attributes:
        module: The imported module; ``flavour.module.Builder`` and so on.
        name: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        version: Its own version, such as ``"11.4.0.106"``; the two flavours count differently.
        capabilities: Names found by looking for the members that carry them, never by version:
            ``compute_capabilities`` (plans for named architectures, built without a GPU),
            ``hardware_compatibility``, ``timing_cache``, ``engine_validity``.
        logger: The one logger of this module in this process. TensorRT keeps the first that it is given and
            warns of any other, so every builder and runtime is made with this one.
    """

    module: Any
    name: str
    version: str
    capabilities: frozenset[str]
    logger: Any

    @property
    def builds_without_gpu(self) -> bool:
        """Whether a plan can be built on a machine that has no GPU."""
        return "compute_capabilities" in self.capabilities

    @property
    def last_error(self) -> str:
        """The last error that TensorRT logged in this thread since `forget_errors`, on one line; else empty."""
        return " ".join(self.logger.last_error.split())

    def forget_errors(self) -> None:
        """Forget what this thread logged: what is refused next must not be given an older reason, or another's."""
        self.logger.last_error = ""

    @contextlib.contextmanager
    def listen(self, sink: Sink) -> Iterator[None]:
        """Hand every message that TensorRT logs inside the block to ``sink(severity, message)``.

        The severity is ``"INTERNAL_ERROR"``, ``"ERROR"``, ``"WARNING"``, ``"INFO"`` or ``"VERBOSE"``. What
        is raised while a message is taken, Ctrl-C among it, is raised when the block ends: nothing may travel
        through TensorRT's own frames.
        """
        self.logger.sinks.append(sink)
        try:
            yield
        finally:
            self.logger.sinks.remove(sink)
            raised, self.logger.raised = self.logger.raised, None
            if raised is not None:
                raise raised


def open_flavour(name: str | None = None) -> Flavour:
    """Import a flavour of TensorRT.

    Args:
        name: ``"tensorrt"``, ``"tensorrt_rtx"``, or ``"auto"`` (``None`` means the same): full TensorRT where
            it imports and a GPU can be used, TensorRT for RTX elsewhere.

    Raises:
        EngineBuildError: There is no flavour of that name.
        MissingDependencyError: It is not installed, or installed without the libraries that it needs.
    """
    if name is None or name == "auto":
        return _first_usable()
    if name not in FLAVOURS:
        raise EngineBuildError(
            f"there is no TensorRT flavour {name!r}; allowed: auto, {', '.join(FLAVOURS)}. Run: --flavour "
            "auto"
        )
    try:
        return _imported(name)
    except (ImportError, OSError) as error:
        raise MissingDependencyError(f"{_reason(name, error)}. Run: {_PIP[name]}") from error


def flavour_is_installed(name: str) -> bool:
    """Whether a plan of a flavour could be opened here; imports nothing."""
    return name in FLAVOURS and importlib.util.find_spec(name) is not None


@functools.cache
def gpu_is_usable() -> bool:
    """Whether the CUDA driver is there and sees a GPU; asked once in a process."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
        status, count = runtime.cudaGetDeviceCount()
    except (ImportError, OSError, RuntimeError):
        return False
    return int(status) == 0 and int(count) > 0


def _first_usable() -> Flavour:
    reasons = []
    for name in FLAVOURS:
        try:
            flavour = _imported(name)
        except (ImportError, OSError) as error:
            reasons.append(_reason(name, error))
            continue
        if flavour.builds_without_gpu or gpu_is_usable():
            return flavour
        reasons.append(f"{name} {flavour.version} is installed and no GPU can be used")
    raise MissingDependencyError(
        f"no TensorRT can be used here: {'; '.join(reasons)}. Run: {_PIP['tensorrt_rtx']} (builds portable "
        f"plans without a GPU) or {_PIP['tensorrt']} (builds for the GPU it runs on)"
    )


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return f"{name} is not installed"
    # The bindings alone install and do not import: the libraries are a package of their own.
    return f"{name} is installed but does not import ({' '.join(str(error).split())})"


@functools.cache
def _imported(name: str) -> Flavour:
    module = importlib.import_module(name)
    return Flavour(
        module=module,
        name=name,
        version=str(module.__version__),
        capabilities=_capabilities(module),
        logger=_logger(module),
    )


def _capabilities(trt: Any) -> frozenset[str]:
    config = trt.IBuilderConfig
    portable = hasattr(config, "set_compute_capability")
    runtime_cache = hasattr(getattr(trt, "IRuntimeConfig", None), "create_runtime_cache")
    found = {
        "compute_capabilities": portable,
        # RTX has both members, warns that the first is unsupported and calls the second a deprecated no-op.
        "hardware_compatibility": hasattr(config, "hardware_compatibility_level") and not portable,
        "timing_cache": hasattr(config, "create_timing_cache") and not runtime_cache,
        "engine_validity": hasattr(trt.Runtime, "get_engine_validity"),
    }
    return frozenset(capability for capability, there in found.items() if there)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.sinks: list[Sink] = []
            self._said = threading.local()
            self.raised: BaseException | None = None

        @property
        def last_error(self) -> str:
            return str(getattr(self._said, "error", ""))

        @last_error.setter
        def last_error(self, message: str) -> None:
            self._said.error = message

        def log(self, severity: Any, message: str) -> None:
            # An exception that left here would cross C++ frames that know nothing of Python.
            try:
                if severity.name in {"ERROR", "INTERNAL_ERROR"}:
                    self.last_error = message
                for sink in tuple(self.sinks):
                    sink(severity.name, message)
            except BaseException as error:
                self.raised = self.raised or error

    return Logger()
