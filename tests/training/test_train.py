"""Whole trainings, of seconds each."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from esrgan_deploy import training
from esrgan_deploy._errors import CheckpointError, MediaError, TrainingError
from esrgan_deploy._metrics import crop_border, luma, psnr
from esrgan_deploy.engines import BuildOptions, ShapeRange
from esrgan_deploy.export import ExportOptions, export_model
from esrgan_deploy.runtime import Upscaler
from esrgan_deploy.training.models import generator

STATIC = BuildOptions(shapes=ShapeRange.parse("1x16x16"))


def train(config, say=lambda _: None):
    """Train, in silence unless told otherwise."""
    return training.train(config, say=say)


def _log(config):
    return [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_what_a_training_makes_can_be_exported_and_computes_the_same(small, benchmark_set):
    """The figure that the training prints is the one that the exported graph reaches."""
    from PIL import Image

    config = small(steps=60, save_every=60, validate=benchmark_set, validate_every=30)
    trained = train(config)
    losses = [line["l1"] for line in _log(config) if "l1" in line]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20]), "it does not learn"
    last = [line["psnr_y"] for line in _log(config) if "psnr_y" in line][-1]
    assert trained.quality.psnr_y == last
    manifest = export_model(trained.weights, config.output / "out", ExportOptions(plan=False, build=STATIC))
    assert manifest.spec.features == 8
    lr, hr = (np.asarray(Image.open(benchmark_set / name / "rocket.png").copy()) for name in ("LR", "HR"))
    with Upscaler(config.output / "out" / "model.onnx", edge="zero") as upscaler:
        made = upscaler.upscale(lr)
    assert psnr(luma(crop_border(made, 4)), luma(crop_border(hr, 4))) == pytest.approx(last, abs=0.01)


def test_the_keys_of_the_optimiser_reach_it(small, tmp_path):
    """A schedule, a clip or an average that is not applied trains something, only not what was asked for."""
    ends = {}
    for name, keys in {"plain": {}, "clip": {"clip": 1e-3}, "ema": {"ema": 0.0}}.items():
        config = small(output=tmp_path / name, **keys)
        ends[name] = load_file(train(config).weights)["conv_hr.weight"]
    assert not torch.equal(ends["clip"], ends["plain"])
    assert not torch.equal(ends["ema"], ends["plain"])
    keys = {"schedule": "multistep", "milestones": [3, 5], "gamma": 0.1, "warmup": 2, "learning_rate": 1e-3}
    config = small(output=tmp_path / "rates", **keys)
    train(config)
    rates = [line["learning_rate"] for line in _log(config)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_progress_says_the_speed_the_wait_and_the_time_left(small):
    """Who waits for days wants to know for how long."""
    said = []
    train(small(steps=4, log_every=2), say=said.append)
    assert said[0] == "3 pictures, 0.6 Mpx of HR"
    assert said[-1].startswith("step 4/4  l1 0.")
    assert "images/s  waited " in said[-1]
    assert said[-1].endswith("0:00:00 left")


def test_tensorboard_has_the_curves_and_sample_pictures(small, benchmark_set):
    """Figures alone do not show a checkerboard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small(validate=benchmark_set, validate_every=3)
    train(config)
    events = EventAccumulator(str(config.output / "tensorboard"))
    events.Reload()
    assert {"l1", "learning_rate", "images_per_second", "psnr_y", "ssim_rgb"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("l1")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Images("sample 0")] == [3, 6]
    assert (events.Images("sample 0")[0].width, events.Images("sample 0")[0].height) == (96, 32)


@pytest.mark.slow
def test_the_gan_stage_moves_the_generator_by_all_three_terms(small, tmp_path):
    """ESRGAN is L1, VGG and GAN together; each leaves its mark."""
    torch.manual_seed(0)
    from esrgan_deploy.training.models._vgg import Vgg19Features

    vgg = tmp_path / "vgg.pth"
    torch.save(Vgg19Features().state_dict(), vgg)
    start = tmp_path / "start.pth"
    torch.save(generator(small()).state_dict(), start)
    ends = {}
    for name, keys in {
        "all": {},
        "no perceptual": {"perceptual_weight": 0.0},
        "no gan": {"gan_weight": 0.0},
        "no l1": {"pixel_weight": 0.0},
        "unet": {"discriminator": "unet"},
    }.items():
        config = small(
            stage="gan", start=start, vgg=vgg, steps=2, save_every=2, output=tmp_path / name, **keys
        )
        ends[name] = load_file(train(config).weights)["conv_last.weight"]
        names = set(_log(config)[-1])
        assert {"l1", "gan", "discriminator"} <= names
        assert ("perceptual" in names) == (name != "no perceptual")
    for name in list(ends)[1:]:
        assert not torch.equal(ends[name], ends["all"]), name


@pytest.mark.slow
def test_the_discriminator_learns_to_tell_them_apart(small):
    """Its loss starts at log 2; a generator that is held still is found out."""
    still = {"stage": "gan", "perceptual_weight": 0, "gan_weight": 0, "discriminator": "unet"}
    config = small(**still, steps=60, save_every=60, log_every=20)
    train(config)
    losses = [line["discriminator"] for line in _log(config)]
    assert losses[-1] < losses[0] < 0.75


def test_without_vgg_weights_the_gan_stage_does_not_begin(small, monkeypatch, tmp_path):
    """Neither an output folder nor a cache is made for a training that cannot be."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    config = small(stage="gan")
    with pytest.raises(TrainingError, match="the perceptual loss needs VGG19's weights"):
        train(config)
    assert not config.output.exists()


def test_a_crop_that_does_not_fit_the_discriminator_is_refused(small):
    """The linear layers of the one and the pooling of the other fix it."""
    for kind, message in (
        ("vgg", "crop is 9: an HR crop is 36 pixels wide; the vgg discriminator needs a multiple of 32"),
        ("unet", "crop 9 at x4 is 36 pixels; discriminator unet takes multiples of 8"),
    ):
        with pytest.raises(TrainingError, match=message):
            train(small(stage="gan", perceptual_weight=0, crop=9, discriminator=kind))


def test_parts_of_a_batch_add_up_to_the_batch(small, tmp_path):
    """Accumulation is for memory and must not change what is learnt."""
    ends = []
    for accumulate in (1, 4):
        config = small(accumulate=accumulate, output=tmp_path / str(accumulate))
        ends.append(load_file(train(config).weights))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=2e-4)
    losses = [[line["l1"] for line in _log(small(output=tmp_path / name))] for name in ("1", "4")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_checkpointing_trains_the_same_weights_to_the_bit(small, tmp_path):
    """Chosen for memory, it must not change the model."""
    plain = load_file(train(small()).weights)
    config = small(checkpointing=True, output=tmp_path / "recomputed")
    recomputed = load_file(train(config).weights)
    assert all(torch.equal(value, recomputed[name]) for name, value in plain.items())


def test_the_degradation_of_real_esrgan_is_what_is_learnt_from_when_asked_for(small, tmp_path):
    """Bicubic LR in its place would make a model that keeps every JPEG block."""
    losses = []
    for degradation in ("bicubic", "realesrgan"):
        config = small(degradation=degradation, steps=20, save_every=20, output=tmp_path / degradation)
        train(config)
        losses.append(sum(line["l1"] for line in _log(config)) / 20)
    assert losses[1] > 1.2 * losses[0]


@pytest.mark.slow
def test_a_student_comes_closer_to_its_teacher_than_the_truth_would_bring_it(small, tmp_path):
    """Distillation: the teacher's pictures are what is learnt."""
    with torch.no_grad():
        weights = generator(small(seed=5, features=12)).state_dict()
        # A teacher unlike any photograph: it turns red off.
        weights["conv_last.weight"][0] = 0.0
    path = tmp_path / "teacher.pth"
    torch.save(weights, path)
    red = {}
    for share in (0.0, 1.0):
        config = small(
            architecture="srvggnetcompact", blocks=2, steps=150, save_every=150, teacher=path, teacher_weight=share,
            output=tmp_path / str(share), learning_rate=5e-3,
        )  # fmt: skip
        weights = train(config).weights
        student = generator(small(architecture="srvggnetcompact", blocks=2, start=weights))
        with torch.no_grad():
            red[share] = float(student(torch.full((1, 3, 12, 12), 0.5))[:, 0, 16:-16, 16:-16].mean())
    assert red[1.0] < 0.2
    assert red[0.0] > 0.4


def test_pictures_too_small_for_the_crop_are_refused(small):
    """At the start, not at the step that draws them."""
    with pytest.raises(TrainingError, match=r"3 of the HR pictures are under 800 pixels"):
        train(small(crop=200))


def test_a_validation_folder_that_is_none_is_refused(small, tmp_path):
    """Before the first step, not at the first validation hours later."""
    config = small(validate=tmp_path, validate_every=6)
    with pytest.raises(MediaError, match="LR is not a folder"):
        train(config)
    assert not list(config.output.glob("state-*"))


def test_a_loss_that_is_not_finite_stops_with_the_step_the_files_and_the_state(small, monkeypatch):
    """Otherwise a night is spent on NaN, and no one knows where it began."""
    config = small(steps=9, start=None)
    steps = []
    from torch.nn import functional

    true_loss = functional.l1_loss

    def sometimes(made, hr):
        steps.append(1)
        return true_loss(made, hr) * (float("nan") if len(steps) == 5 else 1.0)

    monkeypatch.setattr("esrgan_deploy.training.stages._psnr.functional.l1_loss", sometimes)
    with pytest.raises(TrainingError) as caught:
        train(config)
    message = str(caught.value)
    assert message.startswith("the loss is not finite at step 5 (l1 nan), on crops of ")
    assert "astronaut.png" in message or "coffee.png" in message or "cat.png" in message
    assert f"The last good state is {config.output / 'state-00000003'}" in message
    assert all(
        torch.isfinite(value).all() for value in load_file(config.output / "model.safetensors").values()
    )


def test_a_training_is_not_begun_over_another(small):
    """A day's states must not go for a forgotten --output."""
    config = small()
    train(config)
    with pytest.raises(TrainingError, match=r"holds a training already \(state-00000006\); add --resume"):
        train(config)
    with pytest.raises(
        TrainingError, match="was trained with other keys: batch 4 then, 8 now; seed 0 then, 3 now"
    ):
        train(small(resume=True, seed=3, batch=8))


def test_a_state_of_another_architecture_is_refused_with_the_keys(small):
    """Loaded in part it would be neither net."""
    train(small())
    with pytest.raises(
        CheckpointError, match=r"of another architecture .*missing \(body\.1\.rdb1\.conv1\.bias"
    ):
        train(small(resume=True, blocks=2))


def test_a_damaged_state_says_what_to_do(small):
    """A disk that lied must not end in a traceback."""
    config = small()
    train(config)
    (config.output / "state-00000006" / "optimizer.bin").write_bytes(b"nothing")
    with pytest.raises(
        CheckpointError, match=r"state-00000006 cannot be resumed from .*\. Remove it to go on"
    ):
        train(small(resume=True))


def test_the_best_model_stays_the_best_over_a_resume(small, benchmark_set):
    """A resumed run that validates worse must not take its name."""
    keys = {"validate": benchmark_set, "validate_every": 20, "steps": 20, "save_every": 20}
    config = small(**keys)
    train(config)
    best = (config.output / "best.safetensors").read_bytes()
    # A rate that ruins the model.
    facts = json.loads((config.output / "state-00000020" / "training.json").read_text())
    facts["config"]["learning_rate"] = 1.0
    (config.output / "state-00000020" / "training.json").write_text(json.dumps(facts))
    train(small(**keys | {"steps": 40, "resume": True, "learning_rate": 1.0}))
    figures = [line["psnr_y"] for line in _log(config) if "psnr_y" in line]
    assert figures[1] < figures[0]
    assert (config.output / "best.safetensors").read_bytes() == best


def test_only_the_newest_states_are_kept(small):
    """Each is three times the model and more."""
    config = small(steps=9, keep=2)
    train(config)
    assert sorted(path.name for path in config.output.glob("state-*")) == ["state-00000006", "state-00000009"]


def test_saving_and_validating_leave_the_random_numbers_of_the_program_alone(small, benchmark_set):
    """A training that draws is not to repeat itself after each save, nor is the program that it runs in."""
    drawn = []

    def say(line):
        if line.startswith("step 1/"):
            torch.manual_seed(1234)
        elif line.startswith("step "):
            drawn.append(torch.rand(1).item())

    train(small(steps=4, save_every=1, validate=benchmark_set, validate_every=1), say=say)
    assert len(drawn) >= 3
    generator = torch.Generator().manual_seed(1234)
    assert drawn == [torch.rand(1, generator=generator).item() for _ in drawn]
