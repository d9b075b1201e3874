"""From a file to a module: real checkpoints, every dialect at full size, interpolation."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from esrgan_deploy import _errors
from esrgan_deploy._files import sha256_of
from esrgan_deploy.export.checkpoints import Checkpoint, load_checkpoint

Weights = dict[str, Tensor]
Maker = Callable[..., Weights]


def _identical(a: Checkpoint, b: Checkpoint) -> bool:
    # Bit for bit: torch.equal would take -0.0 for 0.0.
    return list(a.tensors) == list(b.tensors) and all(
        torch.equal(value.view(torch.int32), b.tensors[name].view(torch.int32))
        for name, value in a.tensors.items()
    )


def test_the_official_compact_net_is_the_same_in_each_of_its_files(assets: Path) -> None:
    """The release file, its deflated repack and the alphabetical safetensors hold one net."""
    names = ("", ".rezipped-deflate", "")
    suffixes = (".pth", ".pth", ".safetensors")
    loaded = [
        load_checkpoint(assets / "models" / f"realesr-animevideov3{name}{suffix}")
        for name, suffix in zip(names, suffixes, strict=True)
    ]
    assert _identical(loaded[0], loaded[1])
    assert _identical(loaded[0], loaded[2])
    spec = loaded[0].spec
    assert spec.source_sha256 == "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d"
    assert (spec.architecture, spec.scale, spec.features, spec.blocks) == ("srvggnetcompact", 4, 64, 16)
    assert loaded[0].source == "realesr-animevideov3.pth"
    assert {checkpoint.dialect for checkpoint in loaded} == {"compact"}


def test_the_trained_small_rrdb_is_described(assets: Path) -> None:
    checkpoint = load_checkpoint(assets / "models" / "rrdb-small-x4.pth")
    spec = checkpoint.spec
    assert (spec.architecture, checkpoint.dialect) == ("rrdbnet", "basicsr")
    assert (spec.features, spec.growth, spec.blocks, spec.scale, spec.unshuffle) == (32, 16, 4, 4, 1)
    assert sum(value.numel() for value in checkpoint.tensors.values()) == 758_755
    picture = torch.rand(1, 3, 6, 5)
    assert checkpoint.module()(picture).shape == (1, 3, 24, 20)


def test_the_module_is_frozen_and_its_own(assets: Path) -> None:
    """Half precision or a rewrite of one module must not reach the checkpoint or the next module."""
    checkpoint = load_checkpoint(assets / "models" / "rrdb-small-x4.pth")
    module = checkpoint.module()
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert list(module.state_dict()) == list(checkpoint.tensors)
    before = checkpoint.tensors["conv_first.weight"].clone()
    module.get_parameter("conv_first.weight").zero_()
    module.half()
    assert torch.equal(checkpoint.tensors["conv_first.weight"], before)
    assert torch.equal(checkpoint.module().get_parameter("conv_first.weight"), before)


def _save(weights: Weights, path: Path, wrapper: str) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
    elif wrapper.endswith("."):
        torch.save({wrapper + name: value for name, value in weights.items()}, path)
    else:
        torch.save({wrapper: weights} if wrapper else weights, path)
    return path


@pytest.mark.slow
def test_the_full_net_is_bit_identical_in_each_dialect(tmp_path: Path, named: Maker) -> None:
    """23 blocks of 64 features, as each project published them; nothing may be lost, swapped or reordered."""
    sizes = {"features": 64, "growth": 32, "blocks": 23}
    weights = named(**sizes)
    # How each project wraps what it saves: Real-ESRGAN, ESRGAN/BSRGAN, old ESRGAN, KAIR.
    files = {
        "RealESRGAN.pth": ("basicsr", "params_ema"),
        "RealESRGAN.safetensors": ("basicsr", ""),
        "BSRGAN.pth": ("esrgan", ""),
        "ESRGAN_old.pth": ("esrgan-old", "module."),
        "KAIR.pth": ("kair", "netG."),
    }
    for file, (dialect, wrapper) in files.items():
        path = _save(named(dialect, **sizes), tmp_path / file, wrapper)
        found = load_checkpoint(path)
        path.unlink()
        assert found.dialect == dialect
        assert list(found.tensors) == list(weights)
        assert len(found.tensors) == 702
        for name, value in weights.items():
            assert found.tensors[name].dtype is torch.float32
            assert torch.equal(found.tensors[name].view(torch.int32), value.view(torch.int32)), (file, name)
        assert (found.spec.features, found.spec.growth, found.spec.blocks) == (64, 32, 23)
    assert list(found.module().state_dict()) == list(weights)


def _upstream_dni(a: Weights, b: Weights, strength: float) -> Weights:
    # RealESRGANer.dni: dni_weight = [strength, 1 - strength].
    weights = [strength, 1 - strength]
    return {name: weights[0] * a[name] + weights[1] * b[name] for name in a}


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_two_compact_nets_are_interpolated_as_real_esrgan_does(
    strength: float, tmp_path: Path, compact_weights: Maker
) -> None:
    first, second = compact_weights(seed=1), compact_weights(seed=2)
    a = _save(first, tmp_path / "general.pth", "params")
    b = _save(second, tmp_path / "wdn.pth", "params")
    mixed = load_checkpoint(a, denoise_strength=strength, denoise_with=b)
    for name, value in _upstream_dni(first, second, strength).items():
        assert torch.equal(mixed.tensors[name], value)
    digests = {1.0: sha256_of(a), 0.0: sha256_of(b)}
    digest = mixed.spec.source_sha256
    assert mixed.spec == dataclasses.replace(load_checkpoint(a).spec, source_sha256=digest)
    # Another strength is another net, and whatever is kept by the digest is not taken up for it.
    assert {end for end, one in digests.items() if one == digest} == digests.keys() & {strength}
    other = load_checkpoint(a, denoise_strength=0.75, denoise_with=b)
    assert other.spec.source_sha256 != digest
    assert mixed.source == f"{strength:g} general.pth + {1 - strength:g} wdn.pth"


def test_the_ends_are_the_checkpoints_themselves(tmp_path: Path, compact_weights: Maker) -> None:
    first, second = compact_weights(seed=1), compact_weights(seed=2)
    first["body.0.bias"][:2] = torch.tensor([-0.0, 1.0])
    second["body.0.bias"][:2] = torch.tensor([1.0, -0.0])
    a, b = _save(first, tmp_path / "a.pth", "params"), _save(second, tmp_path / "b.pth", "params")
    assert _identical(load_checkpoint(a, denoise_strength=1.0, denoise_with=b), load_checkpoint(a))
    assert _identical(load_checkpoint(a, denoise_strength=0.0, denoise_with=b), load_checkpoint(b))
    # Upstream needs no second file at full strength, and neither does this.
    assert _identical(load_checkpoint(a, denoise_strength=1.0), load_checkpoint(a))


def test_rrdb_nets_of_two_dialects_are_interpolated(tmp_path: Path, named: Maker) -> None:
    """ESRGAN's network interpolation: the PSNR-oriented and the GAN net may have been saved years apart."""
    first, second = named(seed=1), named(seed=2)
    a = _save(named("esrgan-old", seed=1), tmp_path / "a.pth", "")
    b = _save(second, tmp_path / "b.pth", "params_ema")
    mixed = load_checkpoint(a, denoise_strength=0.8, denoise_with=b)
    for name, value in _upstream_dni(first, second, 0.8).items():
        assert torch.equal(mixed.tensors[name], value)


@pytest.mark.parametrize(
    ("other", "told"),
    [({"scale": 2}, "scale is 4 and 2"), ({"blocks": 3}, "blocks is 2 and 3"), ({"features": 9}, "features")],
)
def test_nets_that_differ_are_not_interpolated(
    other: dict[str, int], told: str, tmp_path: Path, compact_weights: Maker
) -> None:
    a = _save(compact_weights(), tmp_path / "a.pth", "params")
    b = _save(compact_weights(**other), tmp_path / "b.pth", "params")
    with pytest.raises(_errors.CheckpointError, match=f"a.pth and b.pth cannot be interpolated.*{told}"):
        load_checkpoint(a, denoise_strength=0.5, denoise_with=b)


@pytest.mark.parametrize(
    ("strength", "second", "told"),
    [
        (0.5, False, "needs a second checkpoint"),
        (None, True, "no strength"),
        (1.5, True, "from 0 to 1"),
        (-0.1, True, "from 0 to 1"),
        (float("nan"), True, "from 0 to 1"),
    ],
)
def test_a_strength_that_makes_no_sense_is_refused(
    strength: float | None, second: bool, told: str, tmp_path: Path, compact_weights: Maker
) -> None:
    a = _save(compact_weights(), tmp_path / "a.pth", "params")
    with pytest.raises(_errors.CheckpointError, match=told):
        load_checkpoint(a, denoise_strength=strength, denoise_with=a if second else None)


def test_a_damaged_second_checkpoint_is_the_one_that_is_named(tmp_path: Path, compact_weights: Maker) -> None:
    a = _save(compact_weights(), tmp_path / "a.pth", "params")
    (tmp_path / "b.pth").write_bytes(a.read_bytes()[:100])
    with pytest.raises(_errors.CheckpointError, match=r"b\.pth is a truncated"):
        load_checkpoint(a, denoise_strength=0.5, denoise_with=tmp_path / "b.pth")


def test_a_checkpoint_prints_in_one_line(assets: Path) -> None:
    assert len(repr(load_checkpoint(assets / "models" / "rrdb-small-x4.pth"))) < 600


def test_reading_leaves_no_file_open_or_mapped(tmp_path: Path, compact_weights: Maker) -> None:
    """A safetensors file that is overwritten after loading must not change the weights that were read."""
    path = _save(compact_weights(), tmp_path / "a.safetensors", "")
    loaded = load_checkpoint(path)
    before = loaded.tensors["body.0.weight"].clone()
    with path.open("r+b") as file:
        file.seek(200)
        file.write(bytes(2000))
    assert torch.equal(loaded.tensors["body.0.weight"], before)


def test_the_scale_of_an_old_x3_net_reaches_the_module(tmp_path: Path, named: Maker) -> None:
    path = _save(named("esrgan-old", scale=2), tmp_path / "x3.pth", "")
    module: nn.Module = load_checkpoint(path, scale=3).module()
    assert module(torch.zeros(1, 3, 4, 5)).shape == (1, 3, 12, 15)


def test_files_from_before_torch_1_6_hold_the_same_weights(tmp_path: Path, named: Maker) -> None:
    weights = named()
    torch.save({"params": weights}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    new = _save(weights, tmp_path / "new.pth", "params")
    assert _identical(load_checkpoint(tmp_path / "old.pth"), load_checkpoint(new))
