"""Which artefact makes a bad frame again."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esrgan_deploy._manifest import Artefact, Manifest, save_manifest
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.runtime.queue import _guard as _fallback
from esrgan_deploy.runtime.queue._guard import fallback_for
from esrgan_deploy.runtime.sessions import SessionInfo

SPEC = ModelSpec(
    architecture="rrdbnet", scale=4, in_channels=3, out_channels=3, features=8, blocks=1, growth=4,
    source_sha256="0" * 64,
)  # fmt: skip
SHAPES = ((1, 16, 16), (1, 64, 64), (4, 128, 128))
INFO = SessionInfo(
    name="model.fp16.plan", form="uint8", dtype=np.dtype(np.uint8), in_channels=3, out_channels=3,
    scale=Fraction(4), min_shape=SHAPES[0], max_shape=SHAPES[2], provider="none",
)  # fmt: skip

Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Write an export of the given precisions, an fp32 graph among them; returns its folder."""

    def written(*precisions: str, **changes: dict[str, Any]) -> Path:
        artefacts = []
        for name in ["model.onnx", *(f"model.{p}.{kind}" for p in precisions for kind in ("onnx", "plan"))]:
            path = tmp_path / name
            path.write_bytes(name.encode())
            plan = name.endswith(".plan")
            fields: dict[str, Any] = {
                "kind": "plan" if plan else "onnx",
                "precision": "fp32" if name == "model.onnx" else name.split(".")[1],
                "form": "float" if name == "model.onnx" else "uint8",
                "outscale": 4.0,
                "shapes": SHAPES if plan else (),
                "flavour": "tensorrt_rtx" if plan else "",
            }
            artefacts.append(dataclasses.replace(Artefact.from_file(path, **fields), **changes.get(name, {})))
        save_manifest(
            Manifest(spec=SPEC, source="net.pth", artefacts=tuple(artefacts)), tmp_path / "model.json"
        )
        return tmp_path

    return written


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no card here; only whether there is one is asked."""
    monkeypatch.setattr(_fallback, "cuda_device_count", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any machine."""
    monkeypatch.setattr(_fallback, "cuda_device_count", lambda: 0)


def name_of(path: Path | None) -> str | None:
    """Return the name of a file."""
    return None if path is None else path.name


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("precisions", "of", "expected"),
    [
        (("fp16", "bf16", "fp32"), "model.fp16.plan", "model.bf16.plan"),
        (("fp8", "fp16", "fp32"), "model.fp8.plan", "model.fp32.plan"),
        (("int8", "fp16"), "model.int8.plan", "model.onnx"),
        (("fp16", "bf16", "fp32"), "model.bf16.plan", "model.fp32.plan"),
        (("fp16", "bf16"), "model.bf16.plan", "model.onnx"),
        (("fp16", "bf16", "fp32"), "model.fp32.plan", None),
        (("fp16", "bf16", "fp32"), "model.onnx", None),
    ],
)
def test_the_fastest_with_more_range_is_taken(export, precisions, of, expected):
    """One of the same range overflows again, and a slower one than needed holds up the film."""
    assert name_of(fallback_for(export(*precisions) / of, INFO)) == expected


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_is_a_graph(export):
    """A plan cannot be opened there, and ONNX Runtime has no bf16; the graph of the same form comes first."""
    folder = export("fp16", "bf16")
    assert name_of(fallback_for(folder / "model.fp16.onnx", INFO)) == "model.onnx"
    folder = export("fp16", "bf16", "fp32")
    assert name_of(fallback_for(folder / "model.fp16.onnx", INFO)) == "model.fp32.onnx"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    "change",
    [
        {"shapes": ((1, 16, 16), (1, 64, 64), (1, 128, 128))},
        {"shapes": ((1, 32, 32), (1, 64, 64), (4, 128, 128))},
        {"outscale": 2.0},
        {"verified": False},
        {"size_multiple": 2},
        {"flavour": "tensorrt_of_another_machine"},
        {"sha256": "0" * 64},
        {"size": 3},
        {"file": "../model.bf16.plan"},
    ],
    ids=str,
)
def test_one_that_does_not_fit_is_passed_over(export, change):
    """A frame of another size, or from a file that is not the proven one or cannot be opened here, is no help."""
    folder = export("fp16", "bf16", **{"model.bf16.plan": change})
    assert name_of(fallback_for(folder / "model.fp16.plan", INFO)) == "model.onnx"


@pytest.mark.usefixtures("gpu")
def test_nothing_is_known_without_a_manifest_that_vouches(export):
    """Any file may lie beside a graph; taken unseen, a frame of another net would be in the film."""
    folder = export("fp16", "bf16")
    path, manifest = folder / "model.fp16.plan", folder / "model.json"
    assert fallback_for(path, INFO) is not None
    assert fallback_for(path, dataclasses.replace(INFO, scale=Fraction(2))) is None
    assert fallback_for(path, dataclasses.replace(INFO, in_channels=1, out_channels=1)) is None
    stranger = folder / "model.other.plan"
    stranger.write_bytes(b"model.fp16.plan")
    assert fallback_for(stranger, INFO) is None
    path.write_bytes(b"another net of")
    assert fallback_for(path, INFO) is None
    path.write_bytes(b"model.fp16.plan")
    manifest.write_text("{")
    assert fallback_for(path, INFO) is None
    manifest.unlink()
    assert fallback_for(path, INFO) is None
