"""SPAN: its names, its convolutions collapsed, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esrgan_deploy._errors import CheckpointError
from esrgan_deploy.export import ExportOptions, export_model, load_checkpoint
from esrgan_deploy.export.nets import layers, rescalings

MEAN = (0.4488, 0.4371, 0.4040)


class _Trained(nn.Module):
    """A 3×3 convolution as it is trained: a skip beside three in a row, the picture padded in front of them."""

    def __init__(self, read: int, made: int) -> None:
        super().__init__()
        self.sk = nn.Conv2d(read, made, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(read, 2 * read, 1), nn.Conv2d(2 * read, 2 * made, 3), nn.Conv2d(2 * made, made, 1)
        )
        self.eval_conv = nn.Conv2d(read, made, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.pad(x, (1, 1, 1, 1))) + self.sk(x)
        return out


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (_Trained(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = functional.silu(self.c1_r(x))
        third = self.c3_r(functional.silu(self.c2_r(first)))
        return (third + x) * (torch.sigmoid(third) - 0.5), first


class Span(nn.Module):
    """SPAN as it is trained, written for these tests after arXiv:2311.12770."""

    def __init__(self, *, width: int = 8, scale: int = 2, channels: int = 3, norm: bool = True) -> None:
        super().__init__()
        if not norm:
            self.register_buffer("no_norm", torch.zeros(1))
        self.norm = norm
        self.conv_1 = _Trained(channels, width)
        for number in range(1, 7):
            setattr(self, f"block_{number}", _Block(width))
        self.conv_cat = nn.Conv2d(4 * width, width, 1)
        self.conv_2 = _Trained(width, width)
        self.upsampler = nn.Sequential(
            nn.Conv2d(width, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )
        torch.manual_seed(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.15 if parameter.ndim > 1 else 0.05)
        # A picture of 0..255 would saturate every attention, and an output of many levels fp16.
        nn.init.normal_(self.conv_1.sk.weight, std=0.01)
        nn.init.normal_(self.conv_1.conv[0].weight, std=0.01)
        nn.init.normal_(self.upsampler[0].weight, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm:
            x = (x - x.new_tensor(MEAN).reshape(1, 3, 1, 1)) * 255
        shallow = self.conv_1(x)
        early, _ = self.block_1(shallow)
        x, late = early, None
        for number in range(2, 7):
            x, late = getattr(self, f"block_{number}")(x)
        assert late is not None
        out: Tensor = self.upsampler(self.conv_cat(torch.cat([shallow, self.conv_2(x), early, late], 1)))
        return out


@pytest.mark.parametrize("wrapper", ["", "params", "params_ema"])
@pytest.mark.parametrize(("scale", "norm", "channels"), [(2, True, 3), (4, False, 3), (1, False, 1)])
def test_the_collapsed_net_is_the_trained_one(
    scale: int, norm: bool, channels: int, wrapper: str, tmp_path: Path
) -> None:
    """Collapsing loses no more than fp32's own rounding, at the borders as inside, and reads no stale convolution."""
    net = Span(scale=scale, norm=norm, channels=channels)
    state = net.state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / "span.pth")
    checkpoint = load_checkpoint(tmp_path / "span.pth")
    spec = checkpoint.spec
    assert (spec.architecture, checkpoint.dialect, spec.scale) == ("span", "span", scale)
    assert (spec.features, spec.blocks, spec.size_multiple) == (8, 6, 1)
    assert spec.mean == (MEAN if norm else ())
    picture = torch.rand(2, channels, 9, 13, dtype=torch.float64)
    with torch.inference_mode():
        wanted = net.double()(picture)
        made = checkpoint.module()(picture.float())
        exact = checkpoint.module().double()(picture)
    spread = float(wanted.std())
    assert spread > 0.001
    # Double, so that what is left is the rounding of the weights to fp32 alone.
    assert float((exact - wanted).abs().max()) < 3e-6 * spread
    assert float((made - wanted).abs().max()) < 1e-4 * spread


@pytest.mark.slow
def test_a_span_is_exported_and_verified(tmp_path: Path) -> None:
    """From the file to graphs in both forms that hold their bounds, at any size."""
    torch.save({"params": Span(width=16).state_dict()}, tmp_path / "span.pth")
    for form in ("float", "uint8"):
        manifest = export_model(
            tmp_path / "span.pth",
            tmp_path / form,
            ExportOptions(precisions=("fp16",), form=form, plan=False),
        )
        assert manifest.verified
        assert manifest.spec.mean == MEAN


def test_its_convolutions_are_counted_and_can_be_quantised(tmp_path: Path) -> None:
    """A convolution that is left out would stay in half precision, and the cost be another net's."""
    torch.save(Span(width=8, scale=4).state_dict(), tmp_path / "span.pth")
    checkpoint = load_checkpoint(tmp_path / "span.pth")
    found = layers(checkpoint.spec)
    module = checkpoint.module()
    convolutions = {name: one for name, one in module.named_modules() if isinstance(one, nn.Conv2d)}
    assert [layer.name for layer in found] == list(convolutions)
    assert {layer.name: layer.macs for layer in found} == {
        name: one.weight.numel() for name, one in convolutions.items()
    }
    assert checkpoint.spec.flops_per_pixel == 2 * sum(layer.macs for layer in found)
    assert rescalings(checkpoint.spec) == ()
    # What is rounded before it is concatenated cannot be read twice in FP8, as what has a group of its own is.
    assert [layer.name for layer in found if layer.group != layer.name] == ["conv_cat"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda s: s.pop("block_4.c2_r.conv.1.bias"),
            "lacks 1 of the .*block_4.c2_r.conv.1.bias.*incomplete",
        ),
        (lambda s: s.update({"block_7.x": torch.zeros(2)}), "reads like a SPAN and has 1 tensors.*block_7.x"),
        (lambda s: s.update({"block_1.c1_r.sk.bias": torch.zeros(3)}), r"block_1.c1_r.sk.bias' is \(3,\)"),
        (
            lambda s: s.update({"conv_2.sk.weight": torch.zeros(8, 8, 3, 3)}),
            r"conv_2.sk.weight' has the shape",
        ),
        (
            lambda s: s.update(
                {"conv_2.conv.0.weight": torch.zeros(15, 8, 1, 1), "conv_2.conv.0.bias": torch.zeros(15)}
            ),
            "parts of 'conv_2' do not fit",
        ),
        (
            lambda s: s.update({"upsampler.0.weight": torch.zeros(13, 8, 3, 3)}),
            "makes 13 channels.*no square",
        ),
        (lambda s: s["conv_cat.weight"].fill_(float("nan")), "NaN or infinite"),
        (lambda s: s["conv_1.conv.2.bias"].fill_(float("inf")), "NaN or infinite"),
    ],
    ids=["missing", "unknown", "bias", "skip", "parts", "scale", "nan", "inf in a part"],
)
def test_what_is_no_span_is_refused_in_one_line(change: object, told: str, tmp_path: Path) -> None:
    state = Span().state_dict()
    change(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "span.pth")
    with pytest.raises(CheckpointError, match=told) as caught:
        load_checkpoint(tmp_path / "span.pth")
    assert "\n" not in str(caught.value)


def test_a_mean_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """A gray net with its norm on would need a mean that is in no file."""
    state = Span(channels=1, norm=False).state_dict()
    del state["no_norm"]
    torch.save(state, tmp_path / "span.pth")
    with pytest.raises(CheckpointError, match="takes 1 channels and has no 'no_norm'"):
        load_checkpoint(tmp_path / "span.pth")
