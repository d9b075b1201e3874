"""What a training reports: its samples, its validation and its log."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from esrgan_deploy._optional import require
from esrgan_deploy._quality import Quality, measure_pairs
from esrgan_deploy.training._config import TrainConfig
from esrgan_deploy.training.data import Crops

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["LOG", "Report", "validate"]


Picture = npt.NDArray[np.uint8]

LOG = "log.jsonl"
"""In the output folder: one JSON table a line, the means since the line before."""
_SAMPLES = 4


@torch.no_grad()
def validate(net: nn.Module, folder: Path, scale: int) -> Quality:
    """Upscale ``folder/LR`` with a net in float32 and compare with ``folder/HR``; the border cropped is the scale.

    Raises:
        MediaError: A folder is missing, or the pairs do not fit each other.
    """
    device = next(net.parameters()).device

    def upscale(picture: Picture) -> Picture:
        lr = torch.from_numpy(picture.copy()).to(device).permute(2, 0, 1)[None].float() / 255.0
        out = (net(lr).clamp(0, 1) * 255.0).round().to(torch.uint8)
        result: Picture = out[0].permute(1, 2, 0).cpu().numpy()
        return result

    return measure_pairs(upscale, folder, crop=scale, arithmetic="fp32 (PyTorch)")


class Report:
    """Collects losses and times; writes on the main process only.

    Args:
        config: How often, and where.
        accelerator: Says which process this is.
        first: Step that the run begins with; later lines of an earlier run are taken out of the log.
        say: Takes a line for the user.
    """

    def __init__(
        self, config: TrainConfig, accelerator: "Accelerator", *, first: int, say: Callable[[str], None]
    ) -> None:
        self._config, self._say = config, say
        self._main = accelerator.is_main_process
        self._sums: dict[str, float] = {}
        self._count = self._taken = 0
        self._waited = self._waited_now = self._aside_now = 0.0
        self._begun = self._since = time.perf_counter()
        self._aside_all = 0.0
        self._path = config.output / LOG
        self._board: Any = None
        if self._main:
            _cut_log(self._path, first)
            require("tensorboard", extra="training")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(config.output / "tensorboard"), purge_step=first)

    def __enter__(self) -> "Report":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    @property
    def waited_share(self) -> float:
        """Share of the loop's time that was spent waiting for crops."""
        return self._waited / self._spent()

    @property
    def images_per_second(self) -> float:
        """Speed of the run so far."""
        return self._taken * self._config.batch / self._spent()

    def _spent(self) -> float:
        return max(time.perf_counter() - self._begun - self._aside_all, 1e-9)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self._waited += spent
        self._waited_now += spent

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time of the block out of the speed."""
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self._aside_now += spent
        self._aside_all += spent

    def step(self, done: int, losses: dict[str, float], rate: float) -> None:
        """Take in a step; every ``log_every`` of them becomes a line."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._taken += 1
        config = self._config
        if done % config.log_every and done != config.steps:
            return
        now = time.perf_counter()
        spent = max(now - self._since - self._aside_now, 1e-9)
        means = {name: total / self._count for name, total in self._sums.items()}
        speed = self._count / spent
        line = {"step": done, **means, "learning_rate": rate, "images_per_second": speed * config.batch}
        if self._main:
            self._write({**line, "waited": self._waited_now / spent})
        text = "  ".join(f"{name} {value:.5f}" for name, value in means.items())
        self._say(
            f"step {done}/{config.steps}  {text}  rate {rate:.1e}  {speed * config.batch:.1f} images/s  "
            f"waited {self._waited_now / spent:.1%}  {_clock((config.steps - done) / speed)} left"
        )
        self._sums, self._count = {}, 0
        self._since, self._waited_now, self._aside_now = now, 0.0, 0.0

    def quality(self, done: int, quality: Quality) -> None:
        """Take in a validation."""
        kept = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "crop")
        self._write({"step": done, **{name: getattr(quality, name) for name in kept}})
        self._say(
            f"step {done}  {quality.pictures} pictures, crop {quality.crop}: Y {quality.psnr_y:.2f} dB / "
            f"{quality.ssim_y:.4f}, RGB {quality.psnr_rgb:.2f} dB / {quality.ssim_rgb:.4f}"
        )

    @torch.no_grad()
    def pictures(self, done: int, net: nn.Module, crops: Crops) -> None:
        """Show a few crops in TensorBoard, each as LR, what the net makes of it, and HR."""
        if self._board is None:
            return
        with self.aside():
            device = next(net.parameters()).device
            for number in range(_SAMPLES):
                lr, hr = (part.float()[None] / 255.0 for part in crops[number][:2])
                made = net(lr.to(device)).clamp(0, 1).cpu()
                shown = [functional.interpolate(lr, size=hr.shape[-2:], mode="nearest"), made, hr]
                self._board.add_image(f"sample {number}", torch.cat(shown, dim=3)[0], done)

    def _write(self, values: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")
        for name, value in values.items():
            if name != "step":
                self._board.add_scalar(name, value, values["step"])


def _cut_log(path: Path, first: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        # A kill can leave half a line.
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= first:
                kept.append(line + "\n")
    path.write_text("".join(kept))


def _clock(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{int(seconds % 60):02d}"
