"""Memory that runs out, frames that overflow, plans that do not fit: on the real device."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from esrgan_deploy import EngineMismatchError, EsrganDeployError, Upscaler
from esrgan_deploy._files import sha256_of
from esrgan_deploy._manifest import load_manifest, save_manifest
from esrgan_deploy.runtime import SessionOptions, open_session


def test_memory_that_runs_out_is_answered_with_smaller_tiles(opened, picture, record, backend):
    """Another program holds the card; the picture comes all the same."""
    if not torch.cuda.is_available():
        pytest.skip("memory of a GPU is needed to run out of it")
    session = opened(backend, "fp32")
    lr = picture(240, 240)
    with Upscaler(session, tile=64, halo=16) as up:
        expected = up.upscale(lr)
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - 150 * 2**20, dtype=torch.uint8, device="cuda")
    try:
        with Upscaler(session, tile=0, streams=1) as up:
            with pytest.warns(RuntimeWarning, match="memory ran out"):
                made = up.upscale(lr)
            record(halvings=up.stats.halvings)
    finally:
        del held
        torch.cuda.empty_cache()
    assert np.abs(made.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "onnxruntime"])
def test_an_overflow_is_made_again_in_fp32(tmp_path, picture, record, backend):
    """In real float16 arithmetic, seen by the reduction inside the graph."""
    from esrgan_deploy import ModelSpec
    from esrgan_deploy.engines import BuildOptions, ShapeRange
    from esrgan_deploy.export import ExportOptions, export_model
    from esrgan_deploy.export.nets import RRDBNet

    if not torch.cuda.is_available():
        pytest.skip("a processor computes fp16 graphs in fp32: nothing overflows")
    spec = ModelSpec(
        architecture="rrdbnet", scale=4, in_channels=3, out_channels=3, features=16, blocks=1, growth=16,
        source_sha256="",
    )  # fmt: skip
    torch.manual_seed(0)
    net = RRDBNet(spec)
    with torch.no_grad():
        net.conv_first.weight.mul_(3e4)
        net.conv_up1.weight.mul_(30)
        net.conv_up2.weight.div_(1e3)
        net.conv_last.weight.div_(900)
        net.conv_last.bias.add_(0.4)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    rtx = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}.get(backend)
    build = BuildOptions(shapes=ShapeRange.parse("1x16x16:1x64x64:1x128x128"), flavour=rtx or "auto")
    try:
        options = ExportOptions(plan=rtx is not None, build=build, form="uint8")
        export_model(tmp_path / "net.pth", tmp_path / "out", options)
        path = tmp_path / "out" / ("model.fp16.plan" if rtx else "model.fp16.onnx")
        providers = None if rtx else ["cuda"]
        with Upscaler(path, providers=providers) as up:
            made = up.upscale(picture(64, 64))
            record(reruns=up.stats.reruns)
    except EsrganDeployError as error:
        pytest.skip(f"{backend}: {error}")
    with Upscaler(tmp_path / "out" / "model.onnx", providers=["cpu"]) as up:
        expected = up.upscale(picture(64, 64))
    assert up.stats.reruns == 0
    assert np.abs(made.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_does_this_card_take_the_plan(artefact, record, backend):
    """The first question on a new card; the answer is written down either way."""
    path = artefact(backend, "fp16", "uint8")
    try:
        session = open_session(path)
    except EsrganDeployError as error:
        record(taken=False, answer=str(error))
        return
    record(taken=True, answer=session.info.provider)
    session.close()


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("fault", ["truncated", "flipped"])
def test_a_damaged_plan_is_refused_and_one_that_is_vouched_for_does_not_end_the_process(
    artefact, opened, tmp_path, backend, fault
):
    """First by its digest; and with a manifest that lies, by TensorRT itself, in one line."""
    opened(backend, "fp16", "uint8").close()
    source = artefact(backend, "fp16", "uint8")
    for name in (source.name, "model.json"):
        shutil.copy(source.with_name(name), tmp_path / name)
    plan = tmp_path / source.name
    content = bytearray(plan.read_bytes())
    if fault == "truncated":
        del content[len(content) // 2 :]
    else:
        content[:64] = bytes(64)
    plan.write_bytes(content)
    with pytest.raises(EngineMismatchError, match="sha256"):
        open_session(plan)
    manifest = load_manifest(tmp_path / "model.json")
    lying = tuple(
        dataclasses.replace(one, sha256=sha256_of(plan), size=len(content)) if one.file == plan.name else one
        for one in manifest.artefacts
    )
    save_manifest(dataclasses.replace(manifest, artefacts=lying), tmp_path / "model.json")
    with pytest.raises(EsrganDeployError) as caught:
        open_session(plan, SessionOptions())
    assert "\n" not in str(caught.value)


def test_a_nan_is_seen(opened, record, backend):
    """A kernel that clips NaN to a number makes a black picture of it: the health beside it must tell."""
    session = opened(backend, "fp16")
    slot = session.slot()
    batch = slot.prepare((1, 32, 32))
    batch[...] = 0.5
    batch[0, :, 7, 9] = np.nan
    slot.start()
    made = slot.finish()
    record(watched=made.health is not None, nan_in_the_picture=bool(np.isnan(made.batch).any()))
    assert np.isnan(made.batch).any() if made.health is None else not np.isfinite(made.health[0, 0])
    slot.close()
