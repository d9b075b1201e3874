"""The training loop."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from esrgan_deploy._errors import TrainingError
from esrgan_deploy._files import replaced_atomically
from esrgan_deploy._optional import require
from esrgan_deploy._quality import Quality, paired_pictures
from esrgan_deploy.export import save_scales
from esrgan_deploy.export.nets import folds, placement
from esrgan_deploy.training._config import TrainConfig
from esrgan_deploy.training._report import Report, validate
from esrgan_deploy.training._states import newest_state, restore, save_state
from esrgan_deploy.training.data import Crops, RealEsrganDegradation, batches, gather
from esrgan_deploy.training.models import (
    FakeQuantisation,
    generator,
    generator_of,
    recompute_blocks,
    spec_of,
    teacher,
)
from esrgan_deploy.training.stages import GanStage, LossNotFiniteError, PsnrStage, learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Trained", "crops_of", "train"]

WEIGHTS = "model.safetensors"
BEST = "best.safetensors"

_CALIBRATION_START = 2**60
_CALIBRATION_BATCHES = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves.

    Attributes:
        weights: ``model.safetensors``: the averaged weights in float32 with BasicSR's names, for `esrgan-export`.
        steps: Steps taken in all, those before a resume included.
        seconds: Of this run, with validations and saving.
        images_per_second: HR crops learnt from, over all processes, without validations and saving.
        waited: Share of the loop's time spent waiting for crops.
        quality: The last validation, None without one.
    """

    weights: Path
    steps: int
    seconds: float
    images_per_second: float
    waited: float
    quality: Quality | None


def train(config: TrainConfig, *, say: Callable[[str], None] = print) -> Trained:
    """Train a generator as ESRGAN does (arXiv:1809.00219).

    Args:
        config: Everything that decides the weights.
        say: Takes the lines for the user, on the main process only.

    Raises:
        TrainingError: The data or the configuration do not fit, a loss is not finite, or a state cannot be
            written.
        CheckpointError: A checkpoint cannot be read, or is of another architecture.
        MissingDependencyError: The extra ``training`` is not installed.
    """
    require("accelerate", extra="training")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = _accelerator(config)
    tell = say if accelerator.is_main_process else lambda _: None
    state = _state_to_resume(config)
    if config.validate is not None:
        paired_pictures(config.validate)
    quantisation = _quantisation(config)
    stage = _stage(config, accelerator, quantisation)
    config.output.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():
        crops = crops_of(config, tell)
    first, best = 0, None
    if state is not None:
        facts = restore(accelerator, state, stage.net, _as_json(config))
        first, best = facts["step"], facts.get("best")
        tell(f"going on from {state}, step {first}")
    elif quantisation is not None:
        _calibrate(quantisation, accelerator, stage.net, crops, config.batch)
    with Report(config, accelerator, first=first, say=tell) as report:
        return _Loop(config, accelerator, stage, crops, report, quantisation).run(first, best)


class _Loop:
    def __init__(
        self,
        config: TrainConfig,
        accelerator: "Accelerator",
        stage: PsnrStage,
        crops: Crops,
        report: Report,
        quantisation: FakeQuantisation | None,
    ) -> None:
        self._config, self._accelerator, self._stage = config, accelerator, stage
        self._crops, self._report, self._quantisation = crops, report, quantisation
        self._quality: Quality | None = None
        self._best: float | None = None

    def run(self, first: int, best: float | None) -> Trained:
        config = self._config
        self._best = best
        parts = self._parts(first)
        started = time.perf_counter()
        for step in range(first, config.steps):
            with self._report.waiting():
                numbered = list(itertools.islice(parts, config.accumulate))
            losses = self._step(step, numbered)
            self._report.step(step + 1, losses, learning_rate(step, config))
            self._now_and_then(step + 1)
        return Trained(
            weights=config.output / WEIGHTS,
            steps=config.steps,
            seconds=time.perf_counter() - started,
            images_per_second=self._report.images_per_second,
            waited=self._report.waited_share,
            quality=self._quality,
        )

    def _step(self, step: int, numbered: Sequence[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        device = self._accelerator.device
        parts = [
            (_floats(lr.to(device, non_blocking=True)), _floats(hr.to(device, non_blocking=True)))
            for lr, hr, _ in numbered
        ]
        try:
            return self._stage.step(parts, learning_rate(step, self._config))
        except LossNotFiniteError as error:
            files = sorted({str(self._crops.source(int(n))) for _, _, numbers in numbered for n in numbers})
            state = newest_state(self._config.output)
            raise TrainingError(
                f"the loss is not finite at step {step + 1} ({error}), on crops of {', '.join(files)}. "
                + (f"The last good state is {state}" if state else "No state had been saved yet")
                + "; go on with --resume and a lower --learning-rate, or without --amp"
            ) from error

    def _now_and_then(self, done: int) -> None:
        config, last = self._config, done == self._config.steps
        if config.validate is not None and (last or done % config.validate_every == 0):
            self._validate(done)
        if last or done % config.save_every == 0:
            facts = {"config": _as_json(config), "best": self._best}
            with self._report.aside():
                save_state(self._accelerator, config.output, done, facts, keep=config.keep)
                self._save_weights(WEIGHTS)
            self._report.pictures(done, self._averaged_net(), self._crops)

    def _validate(self, done: int) -> None:
        if not self._accelerator.is_main_process:
            return
        assert self._config.validate is not None
        with self._report.aside():
            self._quality = validate(self._averaged_net(), self._config.validate, self._config.scale)
        self._report.quality(done, self._quality)
        if self._best is None or self._quality.psnr_y > self._best:
            self._best = self._quality.psnr_y
            self._save_weights(BEST)

    def _averaged_net(self) -> nn.Module:
        weights = self._stage.average.module.state_dict()
        net = generator_of(
            self._config, {key: value.to(self._accelerator.device) for key, value in weights.items()}
        )
        if self._quantisation is not None:
            self._quantisation.attach(net)
        return net.eval()

    def _save_weights(self, name: str) -> None:
        if not self._accelerator.is_main_process:
            return
        save_file = require("safetensors.torch", extra="training").save_file
        averaged = self._stage.average.module.state_dict()
        weights = {key: value.float().cpu().contiguous() for key, value in averaged.items()}
        with replaced_atomically(self._config.output / name) as temporary:
            save_file(weights, temporary)
        if self._quantisation is not None:
            save_scales(
                self._config.output / name,
                self._config.quantize,
                self._quantisation.scales,
                scale=self._config.scale,
            )

    def _parts(self, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        config, accelerator = self._config, self._accelerator
        on_gpu = accelerator.device.type == "cuda"
        workers = config.workers
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if on_gpu else 0
        numbers = batches(
            start=first,
            steps=config.steps,
            batch=config.batch,
            parts=config.accumulate,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        return iter(DataLoader(self._crops, batch_sampler=numbers, num_workers=workers, pin_memory=on_gpu))


def _accelerator(config: TrainConfig) -> "Accelerator":
    from accelerate import Accelerator, DistributedDataParallelKwargs

    try:
        accelerator = Accelerator(
            mixed_precision=config.amp,
            cpu=config.device is not None,
            # Batch norm's statistics belong to each process; sent around in place they would break the backward pass.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as error:
        raise TrainingError(f"amp is {config.amp}: {error}") from error
    if config.amp == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would train in fp32 without a word.
        raise TrainingError("amp is fp16, which needs a GPU; on the CPU bf16 and no are allowed")
    share = accelerator.num_processes * config.accumulate
    if config.batch % share:
        raise TrainingError(
            f"batch is {config.batch}, which {accelerator.num_processes} processes times accumulate "
            f"{config.accumulate} do not divide; give a multiple of {share}"
        )
    return accelerator


def _state_to_resume(config: TrainConfig) -> Path | None:
    state = newest_state(config.output)
    if state is not None and not config.resume:
        raise TrainingError(
            f"{config.output} holds a training already ({state.name}); add --resume, or give another --output"
        )
    return state


def crops_of(config: TrainConfig, say: Callable[[str], None]) -> Crops:
    """Return the crops that a configuration trains on; pictures that are not in the cache are decoded.

    Raises:
        TrainingError: The pictures do not fit the configuration.
    """
    cache = config.cache if config.cache is not None else config.output / "cache"
    pairs = gather(config.hr, config.lr, cache=cache, scale=config.scale, least=config.crop, say=say)
    pixels = sum(pair.size[0] * pair.size[1] for pair in pairs) * config.scale**2
    say(f"{len(pairs)} pictures, {pixels / 1e6:.1f} Mpx of HR")
    return Crops(
        pairs,
        scale=config.scale,
        crop=config.crop,
        seed=config.seed,
        augment=config.augment,
        detail=config.detail,
        degradation=RealEsrganDegradation(config.scale) if config.degradation == "realesrgan" else None,
    )


def _quantisation(config: TrainConfig) -> FakeQuantisation | None:
    if config.quantize == "no":
        return None
    spec = spec_of(config)
    return FakeQuantisation(placement(spec), config.quantize, folds(spec))


def _calibrate(
    quantisation: FakeQuantisation, accelerator: "Accelerator", net: nn.Module, crops: Crops, batch: int
) -> None:
    # Crops that no step takes, the same ones on every process.
    numbers = range(_CALIBRATION_START, _CALIBRATION_START + _CALIBRATION_BATCHES * batch)
    pictures = (
        torch.stack([_floats(crops[number][0]) for number in numbers[i : i + batch]]).to(accelerator.device)
        for i in range(0, len(numbers), batch)
    )
    quantisation.calibrate(accelerator.unwrap_model(net), pictures)


def _stage(
    config: TrainConfig, accelerator: "Accelerator", quantisation: FakeQuantisation | None
) -> PsnrStage:
    net = generator(config)
    if quantisation is not None:
        quantisation.attach(net)
        accelerator.register_for_checkpointing(quantisation)
    if config.checkpointing:
        recompute_blocks(net)
    if accelerator.device.type == "cuda":
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kind = GanStage if config.stage == "gan" else PsnrStage
    return kind(config, accelerator, net, teacher(config))


def _floats(picture: Tensor) -> Tensor:
    return picture.float() / 255.0


def _as_json(config: TrainConfig) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return values
