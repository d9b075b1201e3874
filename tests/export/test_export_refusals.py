"""What esrgan-export is handed by mistake, and what it calls its folder."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from esrgan_deploy.export._cli import main


def _refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("esrgan-export: ")]
    return line


class _Vgg(nn.Module):
    """As VGGStyleDiscriminator of BasicSR names its parts: a logit for each picture."""

    def __init__(self):
        super().__init__()
        self.conv0_0 = nn.Conv2d(3, 8, 3, 1, 1)
        self.conv0_1 = nn.Conv2d(8, 8, 4, 2, 1, bias=False)
        self.bn0_1 = nn.BatchNorm2d(8)
        self.linear1 = nn.Linear(8 * 16, 100)
        self.linear2 = nn.Linear(100, 1)


class _UNet(nn.Module):
    """As UNetDiscriminatorSN of Real-ESRGAN names its parts: a logit for each pixel."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, 1, 1)
        self.conv1 = nn.utils.spectral_norm(nn.Conv2d(8, 16, 4, 2, 1, bias=False))
        self.conv2 = nn.utils.spectral_norm(nn.Conv2d(16, 32, 4, 2, 1, bias=False))
        self.conv4 = nn.utils.spectral_norm(nn.Conv2d(32, 16, 3, 1, 1, bias=False))
        self.conv9 = nn.Conv2d(16, 1, 3, 1, 1)


class _Patch(nn.Module):
    """As PatchGAN's discriminators name their parts: a logit for each place."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 4, 2, 1), nn.Conv2d(8, 16, 4, 2, 1), nn.Conv2d(16, 1, 4, 1, 1)]
        self.model = nn.Sequential(*layers)


@pytest.mark.parametrize("net", [_Vgg, _UNet, _Patch])
@pytest.mark.parametrize("key", ["params", None])
def test_a_discriminator_is_called_one(net, key, tmp_path, capsys):
    """Trainings leave net_d beside net_g; a list of keys does not tell that the other file was meant."""
    path = tmp_path / "net_d_5000.pth"
    state = net().state_dict()
    torch.save(state if key is None else {key: state}, path)
    line = _refused(capsys, path, "-o", tmp_path / "out")
    assert f"{path} is a discriminator" in line
    assert "net_g" in line
    assert not (tmp_path / "out").exists()


def test_a_net_of_another_kind_is_not_called_a_discriminator(tmp_path, capsys):
    """A gray net of an unknown family ends in one channel as well."""
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 1, 3))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    assert "is of no family that is known" in _refused(capsys, tmp_path / "net.pth", "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("4x Net v1.5.pth", "4x Net v1.5"),
        ("4x.net.v2.SAFETENSORS", "4x.net.v2"),
        (".pth", ".pth-out"),
        ("model.fp16.onnx", "model.fp16"),
    ],
)
def test_the_folder_has_the_models_whole_name(name, folder, tmp_path, monkeypatch, capsys):
    """ "4x Net v1.5" and "4x Net v1.6" both went into "4x Net v1", the later one refused or in the other's place."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"PK no checkpoint")
    # An export is there already, so that the line names the folder before anything is read.
    Path(folder).mkdir()
    for file in ("model.onnx", "model.json"):
        (Path(folder) / file).write_text("{}")
    line = _refused(capsys, name)
    if folder == ".pth-out":
        # Nothing is left of the name without its suffix: never the folder that one stands in.
        assert line.startswith("esrgan-export: .pth is a file; -o names a folder")
    else:
        assert line.startswith(f"esrgan-export: {folder} already holds model.onnx, model.json")


@pytest.mark.parametrize("name", ["pipe.onnx", "pipe.pth"])
def test_a_pipe_is_called_one(name, tmp_path, capsys):
    """Opened, it waits for a writer for ever."""
    os.mkfifo(tmp_path / name)
    assert f"{name} is a pipe or a device" in _refused(capsys, tmp_path / name, "-o", tmp_path / "out")
