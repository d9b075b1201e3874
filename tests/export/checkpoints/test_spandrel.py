"""Other architectures, with and without spandrel.

Spandrel is not installed where these tests run. What is proven of the adapter, with a stand-in, is that it
maps the attributes that spandrel documents (0.4: ModelLoader, ImageModelDescriptor, SizeRequirements).
"""

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esrgan_deploy import _errors
from esrgan_deploy.export.checkpoints import load_checkpoint


@pytest.fixture
def swin(tmp_path: Path) -> Path:
    path = tmp_path / "swin.pth"
    torch.save({"params": {f"layers.{i}.weight": torch.full((3,), float(i)) for i in range(9)}}, path)
    return path


@pytest.mark.skipif(importlib.util.find_spec("spandrel") is not None, reason="spandrel is installed")
def test_without_spandrel_the_refusal_tells_keys_families_and_the_command(swin: Path) -> None:
    with pytest.raises(_errors.CheckpointError) as caught:
        load_checkpoint(swin)
    message = str(caught.value)
    assert "'layers.0.weight'" in message
    assert "4 more" in message
    assert "RRDBNet" in message
    assert "SRVGGNetCompact" in message
    assert "pip install 'esrgan-deploy[spandrel]'" in message
    assert "\n" not in message


@dataclasses.dataclass
class _Sizes:
    minimum: int = 0
    multiple_of: int = 1
    square: bool = False


class _Net(nn.Module):
    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("index", torch.arange(4))
        self.up = nn.Upsample(scale_factor=scale)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(x) * self.gain
        return out


class _Descriptor:
    def __init__(self, model: nn.Module, **fields: Any) -> None:
        self.model = model
        self.architecture = types.SimpleNamespace(id="SwinIR")
        self.scale, self.input_channels, self.output_channels = 2, 3, 3
        self.supports_half, self.supports_bfloat16 = False, True
        self.size_requirements = _Sizes(minimum=16, multiple_of=24)
        vars(self).update(fields)


class _UnsupportedError(Exception):
    pass


def _stand_in(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    class Loader:
        def __init__(self, device: str) -> None:
            assert device == "cpu"

        def load_from_state_dict(self, state: dict[str, Tensor]) -> object:
            assert "layers.0.weight" in state
            if isinstance(found, Exception):
                raise found
            return found

    module = types.ModuleType("spandrel")
    vars(module).update(
        ModelLoader=Loader, ImageModelDescriptor=_Descriptor, UnsupportedModelError=_UnsupportedError
    )
    monkeypatch.setitem(sys.modules, "spandrel", module)


def test_what_spandrel_says_of_a_net_reaches_its_specification(
    swin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(monkeypatch, _Descriptor(_Net()))
    checkpoint = load_checkpoint(swin)
    spec = checkpoint.spec
    assert (spec.architecture, checkpoint.dialect, spec.scale, spec.size_multiple) == (
        "SwinIR",
        "spandrel",
        2,
        24,
    )
    assert (spec.supports_half, spec.supports_bfloat16) == (False, True)
    assert (spec.in_channels, spec.out_channels, spec.features, spec.flops_per_pixel) == (3, 3, 0, None)
    module = checkpoint.module()
    assert module(torch.zeros(1, 3, 24, 48)).shape == (1, 3, 48, 96)
    module.get_parameter("gain").zero_()
    assert checkpoint.module().get_parameter("gain").item() == 1.0


def test_interpolation_leaves_index_buffers_alone(swin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, _Descriptor(_Net()))
    mixed = load_checkpoint(swin, denoise_strength=0.5, denoise_with=swin)
    assert torch.equal(mixed.tensors["index"], torch.arange(4))
    assert mixed.module()(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 16, 16)


class _Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("needs a mask")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (_UnsupportedError(), "does not know"),
        (KeyError("layers.1.norm"), "fails to load.*layers.1.norm"),
        (object(), "as object; only nets of one picture"),
        (_Descriptor(_Net(), size_requirements=_Sizes(square=True)), "square pictures"),
        (_Descriptor(_Net(3)), "where \\(1, 3, 144, 144\\) was announced"),
        (_Descriptor(_Fails()), "does not run.*needs a mask"),
    ],
    ids=["unknown", "near miss", "inpainting", "square", "other scale", "cannot run"],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    found: object, told: str, swin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(monkeypatch, found)
    with pytest.raises(_errors.CheckpointError, match=f"known: RRDBNet.*{told}") as caught:
        load_checkpoint(swin)
    assert "\n" not in str(caught.value)


def test_a_known_family_never_goes_to_spandrel(swin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged RRDBNet is to be refused for what is wrong with it, not handed on."""
    _stand_in(monkeypatch, AssertionError("spandrel was asked"))
    torch.save(
        {"conv_first.weight": torch.zeros(4, 3, 3, 3), "body.0.rdb1.conv1.weight": torch.zeros(1)}, swin
    )
    with pytest.raises(_errors.CheckpointError, match="has the shape"):
        load_checkpoint(swin)
