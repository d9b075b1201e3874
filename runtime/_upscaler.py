"""Pictures in, larger pictures out."""

import dataclasses
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from esrgan_deploy._errors import InferenceError
from esrgan_deploy._files import sha256_of
from esrgan_deploy.runtime._frames import check_picture, job_of, new_result
from esrgan_deploy.runtime.queue import Guard, Job, Scheduler, borrowed_lanes, open_lanes, refuse_idle
from esrgan_deploy.runtime.sessions import Array, Session, SessionInfo, SessionOptions, model_path
from esrgan_deploy.runtime.tiling import Edge, TileOptions, TilePlan, cutter_for

__all__ = ["Upscaler", "UpscalerStats"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpscalerStats:
    """What an Upscaler did so far.

    Attributes:
        pictures: Pictures that were begun.
        batches: Batches that went through a device, repeated ones included.
        reruns: Batches that were no picture and were made again on an artefact with more range.
        halvings: Times that memory ran out and the tiles were made smaller.
        lost_devices: A phrase for each device that was lost.
    """

    pictures: int
    batches: int
    reruns: int
    halvings: int
    lost_devices: tuple[str, ...]


class Upscaler:
    """Enlarges pictures of any size with one model. All of it can be called from any thread.

    ```python
    with Upscaler("out/model.fp16.plan") as up:
        hr = up.upscale(lr)
        for hr in up.stream(frames): ...
        future = up.submit(lr)
        out = up.run(cuda_array, stream=stream)
    ```

    Args:
        model: An artefact of ``esrgan-export``, or its folder, of which the best that runs here is taken; None for
            the model that ships with the package; or open sessions, which stay open and stay the caller's.
        tile: Edge of the tiles in input pixels, 0 for the whole picture at once, ``"auto"`` for tiles that fit
            memory where the picture is larger than they are.
        halo: Input pixels around each tile that are computed and thrown away, so that no seam shows; None takes
            what was measured for this artefact (``esrgan-bench --seams``), else 16.
        edge: What the net sees beyond the picture's own edge: ``"repeat"`` the outermost pixels, as far as the halo
            goes; ``"zero"`` nothing, as in PyTorch, whose convolutions pad with black and leave a rim.
        strip: Rows that go through the parts of the net at once, where it has parts: a picture of any size shows no
            seam then, and memory goes with its width alone. None takes what 1.5 GiB hold, but 128 rows
            where more is free, 0 takes tiles.
        providers: What runs an ``.onnx``: ONNX Runtime execution providers in order of preference, such as
            ``["cpu"]``; ``["openvino"]`` or, with a device of Intel's, ``["openvino:GPU"]``; ``["auto"]`` for what is
            fastest on this processor of all that computes what PyTorch did, which is measured once; None takes CUDA
            where it is present, and the CPU, in ONNX Runtime.
        threads: CPU threads; None lets the library choose.
        devices: CUDA devices that share the work, such as ``[0, 1]``; None is device 0.
        streams: Batches in flight on each device; None is 3 on a GPU and 2 on a processor. OpenVINO computes so many
            at once, on a share of the cores each.
        trust: Whether a plan may be loaded that no manifest vouches for. A plan is code.
        rebuild: ``"auto"`` rebuilds a plan that does not fit this machine from the ONNX graph beside it, once.
        verify: Whether the golden pairs of the manifest are run before anything else.
        precision: Of a checkpoint, which PyTorch runs, or of an ``.onnx`` in OpenVINO: ``"fp32"``, ``"fp16"`` or
            ``"bf16"``; None is fp32, and with ``["auto"]`` whatever is fastest and holds its bounds.
        compile: Whether PyTorch compiles a checkpoint.
        range: White in an ``.onnx`` that others made: 1, 255, or ``(1, 255)`` of its input and output; None measures
            it on a few greys.
        layout: Its layout, ``"NCHW"`` or ``"NHWC"``; None reads it from its shape, or tries.
        output_name: Which of its outputs is the picture; None takes the one that is enlarged.

    Raises:
        EngineMismatchError: A plan does not fit this machine, or nothing vouches for it.
        InferenceError: The model cannot be run here.
        MissingDependencyError: The package that runs it is not installed.
        ParityError: ``verify`` found that it does not compute what PyTorch does.
        ValueError: An option is out of its range.
    """

    def __init__(
        self,
        model: str | Path | Session | Sequence[Session] | None = None,
        *,
        tile: int | Literal["auto"] = "auto",
        halo: int | None = None,
        edge: Edge = "repeat",
        strip: int | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        devices: Sequence[int] | None = None,
        streams: int | None = None,
        trust: bool = False,
        rebuild: Literal["never", "auto"] = "never",
        verify: bool = False,
        precision: Literal["fp32", "fp16", "bf16"] | None = None,
        compile: bool = False,  # noqa: A002 - the word that PyTorch's users know
        range: int | tuple[int, int] | None = None,  # noqa: A002 - the word that pictures have
        layout: Literal["NCHW", "NHWC"] | None = None,
        output_name: str | None = None,
    ) -> None:
        TileOptions(tile=tile, halo=halo or 0, edge=edge, strip=strip)
        ordinals = _ordinals(devices)
        providers = (providers,) if isinstance(providers, str) else providers
        if streams is not None and streams < 1:
            raise ValueError(f"streams is {streams}; it is at least 1, or None for the usual number")
        options = [
            SessionOptions(
                device=device,
                providers=None if providers is None else tuple(providers),
                threads=threads,
                streams=streams,
                trust=trust,
                rebuild=rebuild,
                precision=precision,
                compile=compile,
                range=range,
                layout=layout,
                output_name=output_name,
            )
            for device in ordinals
        ]
        path = model_path(model) if model is None or isinstance(model, (str, Path)) else None
        if path is not None:
            refuse_idle(path, options[0])
            lanes = open_lanes(
                path, ordinals, options, slots=streams, verify=verify, insist=devices is not None
            )
        else:
            sessions = model if isinstance(model, Sequence) else [model]
            lanes = borrowed_lanes(sessions, slots=streams)  # type: ignore[arg-type]
        self._lanes = tuple(lanes)
        # What one device cannot take in one piece goes in tiles on all of them.
        info = next((lane.info for lane in lanes if lane.info.most_in_parts is None), lanes[0].info)
        try:
            self._cutter = cutter_for(info, path, tile=tile, halo=halo, edge=edge, strip=strip)
        except BaseException:
            # Warnings may be errors here.
            for lane in lanes:
                lane.close()
            raise
        self._guard = Guard(path, options[0])
        self._scheduler = Scheduler(lanes, self._guard, self._cutter.smaller)
        self._process = os.getpid()
        self._pictures = 0
        self._decides = {
            "tile": tile, "halo": halo, "edge": edge, "strip": strip, "precision": precision, "range": range,
            "layout": layout, "output_name": output_name, "providers": None if providers is None else [*providers],
        }  # fmt: skip
        self._path = path
        self._channels = lanes[0].info.in_channels
        # Threads and device memory end with the last reference, or with the interpreter.
        self._finalizer = weakref.finalize(self, self._scheduler.close, cancel=True)

    @property
    def info(self) -> SessionInfo:
        """What the model takes and gives, and what computes it."""
        return self._lanes[0].info

    @property
    def stats(self) -> UpscalerStats:
        """What was done so far."""
        return UpscalerStats(
            pictures=self._pictures,
            batches=self._scheduler.batches,
            reruns=self._guard.reruns,
            halvings=self._scheduler.halvings,
            lost_devices=tuple(self._scheduler.lost),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides how a result looks, fit for JSON: the model's name and SHA-256, and the options.

        Raises:
            OSError: The model's file is gone.
        """
        digest = None if self._path is None else sha256_of(self._path)
        return {"model": self.info.name, "model_sha256": digest, **self._decides}

    def plan(self, height: int, width: int) -> TilePlan:
        """Return how a picture of that size is cut.

        Raises:
            InferenceError: No tile of the asked size can be placed.
        """
        return self._cutter.plan(height, width)

    def upscale(
        self, lr: Array, *, out: Array | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Array:
        """Enlarge one picture.

        Gray goes through an RGB model as three equal channels and comes back as the luma of the result; RGB
        goes through a gray model channel by channel. Alpha is enlarged by the model as a gray picture, within
        the range of the pixels around it, and colours under alpha 0 are replaced by those of the visible
        surroundings first, so that no dark fringe appears. An opaque alpha is not computed.

        Args:
            lr: ``(H, W)``, or ``(H, W, C)`` with C of 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha (not
                premultiplied); uint8, uint16, or float32 in 0..1. A model of the uint8 form computes on 8
                bits, whatever goes in.
            out: Where the result goes: an array of its shape and dtype, such as a memory map, which is filled
                from the top; None makes one.
            progress: Called with the tiles done and the tiles in all, from the threads that do them. There, and in
                what is added to a future, `submit` and `close` do not wait, and `upscale` and `stream` are refused.

        Returns:
            ``(floor(H·s), floor(W·s)[, C])``, of the same dtype, samples rounded half to even.

        Raises:
            InferenceError: The array is not such a picture, the model failed or made NaN, or memory is short.
        """
        self._refuse_fork()
        self._scheduler.refuse_inside("upscale()")
        check_picture(lr)
        if out is None and progress is None and lr.ndim == 3 and lr.shape[2] == self._channels:
            plan = self.plan(lr.shape[0], lr.shape[1])
            if plan.single:
                made = new_result((*plan.out_size, lr.shape[2]), lr.dtype)
                if self._scheduler.at_once(plan, plan.all_tiles, lr, made):
                    self._pictures += 1
                    return made
        return self._scheduler.run(self._job(lr, out=out, progress=progress))

    def submit(self, lr: Array, *, out: Array | None = None) -> Future[Array]:
        """Begin to enlarge a picture and return a future of what `upscale` returns.

        Waits while twice as many pictures are on their way as batches fit in flight, at least four, so that memory
        stays bounded; not in a callback of the same Upscaler, which would wait for itself. The picture must not be
        changed until the future is done. A future that has not begun can be cancelled.

        Raises:
            InferenceError: The array is not a picture, or the Upscaler is closed.
        """
        job = self._job(lr, out=out)
        self._scheduler.submit(job)
        return job.future

    def stream(self, frames: Iterable[Array]) -> Iterator[Array]:
        """Enlarge frames one after another; results come in order, and those behind are on their way already.

        Frames are taken in the caller's thread, only as many ahead as keep the devices busy, and copied, so that a
        source may fill one buffer again and again. Their size may change. What the iterator raises comes after the
        frames before it. When the consumer stops, no more frames are taken and what has not begun is dropped.

        Args:
            frames: Pictures as `upscale` takes them.

        Yields:
            The larger pictures, as `upscale` returns them.

        Raises:
            InferenceError: As from `upscale`.
        """
        self._scheduler.refuse_inside("stream()")
        ahead: deque[Future[Array]] = deque()
        source = iter(frames)
        failure: BaseException | None = None
        try:
            while True:
                while failure is None and source is not None and len(ahead) <= self._scheduler.places:
                    try:
                        # A decoder that fills one buffer again and again would change what is on its way.
                        ahead.append(self.submit(np.array(next(source))))
                    except StopIteration:
                        source = None  # type: ignore[assignment]
                    except Exception as error:
                        failure = error
                if not ahead:
                    break
                yield ahead.popleft().result()
            if failure is not None:
                raise failure
        finally:
            for future in ahead:
                future.cancel()

    def run(self, array: object, *, stream: object | None = None, out: object | None = None) -> object:
        """Enlarge one batch that is on the device already, on the caller's stream: no copy, no waiting.

        The batch is what the bare net sees: its edge is padded with zeros, whatever ``edge`` is, and the watchdog
        does not look at what stays on the device: to look at it would be to wait for it.

        Args:
            array: ``(N, H, W, C)`` uint8 or ``(N, C, H, W)`` floating as `info` states, C-contiguous, with
                ``__cuda_array_interface__`` or DLPack.
            stream: An integer handle, or a stream of PyTorch, CuPy, PyCUDA or anything with ``__cuda_stream__``;
                None is a stream of its own, which is waited for.
            out: Where the result goes; None makes an array.

        Returns:
            ``out``, or a new array on the device.

        Raises:
            InferenceError: Device, dtype, layout or shape do not fit; nothing was enqueued then.
        """
        self._refuse_fork()
        lane = self._lanes[0]
        if len(self._lanes) > 1:
            from esrgan_deploy.runtime.device import borrow_array

            device = borrow_array(array).device
            lanes = [one for one in self._lanes if one.info.device == device]
            if not lanes:
                own = ", ".join(str(one.info.device) for one in self._lanes)
                raise InferenceError(
                    f"the array lies on device {device}; this Upscaler has the devices {own}"
                )
            lane = lanes[0]
        self._scheduler.refuse_closed()
        return lane.session.run_on_device(array, stream=stream, out=out)

    def close(self, *, cancel: bool = False) -> None:
        """Finish what was submitted and release the devices; a second call does nothing.

        In a callback (a progress, or what was added to a future) it returns at once: what was submitted is finished
        all the same, and the devices are released when that is done.

        Args:
            cancel: Cancel what has not begun instead, and give up what has batches left to do; its future raises
                InferenceError.
        """
        if os.getpid() != self._process:
            # The parent's threads and device memory are not this process' to release.
            self._finalizer.detach()
            return
        self._scheduler.close(cancel=cancel)
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close(cancel=error is not None)
        except Exception:
            # Whatever the caller raised says more.
            if error is None:
                raise

    def _job(
        self, lr: Array, *, out: Array | None, progress: Callable[[int, int], None] | None = None
    ) -> Job:
        self._refuse_fork()
        check_picture(lr)
        self._scheduler.refuse_closed()
        plan = self.plan(lr.shape[0], lr.shape[1])
        job = job_of(lr, plan, channels=self._channels, out=out, progress=progress)
        self._pictures += 1
        return job

    def _refuse_fork(self) -> None:
        if os.getpid() != self._process:
            raise InferenceError(
                f"this Upscaler was opened in process {self._process} and used in its fork {os.getpid()}; CUDA and "
                "threads do not survive a fork. Open one in the child, or use the start method spawn"
            )


def _ordinals(devices: Sequence[int] | None) -> tuple[int, ...]:
    if devices is None:
        return (0,)
    if isinstance(devices, int):
        raise ValueError(f"devices is {devices}; it is a list, such as [{devices}]")
    if not devices or len(set(devices)) != len(devices):
        raise ValueError(f"devices is {list(devices)}; name each device once, and at least one")
    return tuple(devices)
