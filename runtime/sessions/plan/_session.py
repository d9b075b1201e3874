"""A TensorRT plan as a session.

Written against the bindings of TensorRT 11.4, TensorRT for RTX 1.7 and cuda.bindings 13. Nothing of it was run on a
GPU so far: the tests run its logic on a driver and an engine that are simulated in Python, and hold every name
against the bindings.
"""

import contextlib
import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esrgan_deploy._errors import InferenceError
from esrgan_deploy.runtime.device import Device
from esrgan_deploy.runtime.sessions._protocol import SessionInfo, SessionOptions
from esrgan_deploy.runtime.sessions.plan._admit import admit_plan
from esrgan_deploy.runtime.sessions.plan._engine import PlanEngine
from esrgan_deploy.runtime.sessions.plan._interop import PlanOnDevice
from esrgan_deploy.runtime.sessions.plan._parts import PlanParts, open_parts
from esrgan_deploy.runtime.sessions.plan._slot import PlanSlot

__all__ = ["PlanSession"]


class PlanSession:
    """A ``.plan`` on one CUDA device; see `Session` for the protocol.

    Joins the CUDA context that is current in the constructing thread, where it is one of that device, and else the
    device's primary context; works on streams of its own. Takes the first optimization profile.

    Raises:
        EngineMismatchError: The plan is of another flavour, version or card, or nothing vouches for it.
        InferenceError: It is not a plan that enlarges pictures, or CUDA fails.
        MissingDependencyError: TensorRT or cuda-bindings is not installed.
    """

    def __init__(self, path: Path, options: SessionOptions | None = None) -> None:
        options = options or SessionOptions()
        admitted = admit_plan(path, options)
        self._turn = threading.Lock()
        self._slot: PlanSlot | None = None
        self._closed = False
        self._device = Device(options.device)
        self._engine: PlanEngine | None = None
        self._parts: PlanParts | None = None
        try:
            with self._device.bound():
                self._engine = PlanEngine(admitted, self._device, cuda_graph=options.cuda_graph)
                self._info = self._engine.describe()
                self._parts = open_parts(admitted, self._device, self._info, cuda_graph=options.cuda_graph)
            if self._parts is not None:
                self._info = dataclasses.replace(self._info, most_in_parts=self._parts.most)
        except BaseException:
            self._let_go()
            raise
        self._arrays = PlanOnDevice(self._engine, self._device, self._info)

    @property
    def info(self) -> SessionInfo:
        """What the session takes and gives."""
        return self._info

    def slot(self) -> PlanSlot:
        """Return a new slot; see `Session.slot`."""
        return PlanSlot(self._open(), self._device, self._info, self._parts)

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Enlarge one batch; see `Session.run`.

        Raises:
            InferenceError: The batch is not of that form, the session is closed, or it failed.
        """
        info = self._info
        wanted = info.batch_shape(0, 0, 0)
        channel = 3 if info.form == "uint8" else 1
        if batch.dtype != info.dtype or batch.ndim != 4 or batch.shape[channel] != wanted[channel]:
            layout = "(N, H, W, C)" if info.form == "uint8" else "(N, C, H, W)"
            raise InferenceError(
                f"{info.name} takes {layout} {info.dtype.name} with C = {wanted[channel]}, and the batch is "
                f"{batch.shape} {batch.dtype.name}"
            )
        sides = batch.shape[1:3] if info.form == "uint8" else batch.shape[2:4]
        with self._turn:
            self._open()
            self._slot = self._slot or self.slot()
            np.copyto(self._slot.prepare((batch.shape[0], *sides)), batch)
            self._slot.start()
            return self._slot.finish().batch

    def run_on_device(
        self, array: object, *, stream: object | None = None, out: object | None = None
    ) -> object:
        """Enqueue one batch that is on the device already; see `Session.run_on_device`.

        Raises:
            InferenceError: As there. A batch and ``out`` begin at multiples of 256 bytes, as TensorRT wants it, and
                the stream is neither under capture nor one of another context.
        """
        return self._arrays.run(array, stream=stream, out=out)

    def close(self) -> None:
        """Release what the session holds, on a lost device too; a second call does nothing."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            slot, self._slot = self._slot, None
        if slot is not None:
            slot.close()
        self._arrays.close()
        self._let_go()

    def _open(self) -> PlanEngine:
        if self._closed or self._engine is None:
            raise InferenceError(f"the session of {self._info.name} is closed; open it again")
        return self._engine

    def _let_go(self) -> None:
        # Contexts and engines free memory of the device when they are dropped, so its context is current then.
        parts = () if self._parts is None else (self._parts.trunk, self._parts.tail)
        with contextlib.suppress(InferenceError), self._device.bound():
            for engine in (self._engine, *parts):
                if engine is not None:
                    with contextlib.suppress(Exception):
                        engine.keep_kernels()
                    engine.close()
            self._engine = self._parts = None
        self._engine = self._parts = None
        self._device.close()
