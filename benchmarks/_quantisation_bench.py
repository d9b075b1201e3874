"""Judges graphs against an fp32 one, on sets of pictures."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esrgan_deploy._bicubic import bicubic_downscale
from esrgan_deploy._console import one_line
from esrgan_deploy._errors import BenchmarkError, InferenceError, MediaError
from esrgan_deploy._files import picture_files, sha256_of
from esrgan_deploy._judge import Pan, Shown, Upscale, judge, remembered
from esrgan_deploy._optional import require
from esrgan_deploy._quality import paired_pictures
from esrgan_deploy.benchmarks._machine import describe_machine
from esrgan_deploy.benchmarks._quantisation_graphs import FP32, Opened, opened
from esrgan_deploy.benchmarks._quantisation_peers import PeerGraph

__all__ = ["compare", "name_of", "pictures_of"]

SCHEMA = 1


def compare(
    reference: Path,
    graphs: Mapping[str, Path],
    sets: Sequence[Path],
    *,
    peers: Sequence[PeerGraph] = (),
    pictures: int | None = None,
    pan: Pan | None = None,
    panned: int = 2,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judge graphs against an fp32 one on sets of pictures.

    Args:
        reference: The fp32 graph.
        graphs: What is judged, by name.
        sets: Folders; see `pictures_of`.
        peers: What is judged besides; one that has no graph, or whose graph does not run, keeps its line.
        pictures: How many of each set; None takes all.
        pan: For the flicker; None takes none.
        panned: On how many pictures of each set.
        threads: Of ONNX Runtime; None lets it choose.
        say: Receives one line before each.

    Returns:
        ``{"schema": 1, "environment", "reference": {"name", "sha256", "arithmetic"}, "sets": {name: {"pictures",
        "psnr_y", "ssim_y"}}, "methods": [{"name", "sha256", "arithmetic", "share": `Share` by field, "sets":
        {name: `Judgement`}} or {"name", "left_out"}], "pan"}``, fit for JSON.

    Raises:
        BenchmarkError: The reference is quantised or in half precision, or two sets have one name.
        MediaError: A set holds no pictures, or they do not fit each other.
    """
    names = [name_of(folder) for folder in sets]
    if len(set(names)) < len(names) or not names:
        raise BenchmarkError(f"--sets {', '.join(names) or 'names none'}: give each set once, at least one")
    with opened(reference, threads=threads) as fine:
        if fine.arithmetic != FP32:
            raise BenchmarkError(
                f"{reference} computes in {fine.arithmetic}; the reference is the fp32 graph"
            )
        bench = _Bench(
            sets={
                name: pictures_of(folder, fine.scale, most=pictures)
                for name, folder in zip(names, sets, strict=True)
            },
            reference=remembered(fine.upscale),
            scale=fine.scale,
            pan=pan,
            panned=panned,
            threads=threads,
            say=say,
        )
        itself = bench.judged(fine, upscale=bench.reference)
        methods = [bench.row(name, path) for name, path in graphs.items()]
        methods += [bench.row_of_peer(peer) for peer in peers]
    return {
        "schema": SCHEMA,
        "environment": describe_machine(),
        "reference": {"name": reference.name, "sha256": sha256_of(reference), "arithmetic": FP32},
        "sets": {
            name: {"pictures": len(bench.sets[name]), "psnr_y": one["psnr_y"], "ssim_y": one["ssim_y"]}
            for name, one in itself.items()
        },
        "pan": None if pan is None else {**dataclasses.asdict(pan), "pictures": panned},
        "methods": methods,
    }


def pictures_of(folder: Path, scale: int, *, most: int | None = None) -> list[Shown]:
    """Return the pictures of a set with their truth, in the order of their names.

    Args:
        folder: Holds ``LR`` and ``HR``; or pictures, which are the truth, and LR is made of them.
        scale: HR pixels per LR pixel and axis.
        most: How many at most.

    Raises:
        MediaError: There is none, or LR and HR do not pair.
    """
    image = require("PIL.Image", extra="media")

    def read(path: Path) -> Any:
        with image.open(path) as opened_picture:
            return np.asarray(opened_picture.convert("RGB"))

    if (folder / "LR").is_dir() or (folder / "HR").is_dir():
        pairs = paired_pictures(folder)[:most]
        return [Shown(name=lr.name, lr=read(lr), truth=read(hr)) for lr, hr in pairs]
    if not folder.is_dir():
        raise MediaError(
            f"--sets {folder} is not a folder. Give one with LR and HR in it, or with HR pictures"
        )
    found = []
    for path in picture_files(folder)[:most]:
        truth = read(path)
        height, width = (side // scale * scale for side in truth.shape[:2])
        truth = truth[:height, :width]
        found.append(Shown(name=path.name, lr=bicubic_downscale(truth, scale), truth=truth))
    if not found:
        raise MediaError(
            f"--sets {folder} holds no pictures. Give one with LR and HR in it, or with HR pictures"
        )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Bench:
    sets: Mapping[str, Sequence[Shown]]
    reference: Upscale
    scale: int
    pan: Pan | None
    panned: int
    threads: int | None
    say: Callable[[str], None]

    def judged(
        self, graph: Opened, *, upscale: Upscale | None = None, pan: Pan | None = None
    ) -> dict[str, Any]:
        found = {}
        for name, pictures in self.sets.items():
            one = judge(
                pictures,
                self.reference,
                upscale or graph.upscale,
                scale=self.scale,
                on=name,
                arithmetic=graph.arithmetic,
                pan=pan,
                panned=self.panned,
            )
            found[name] = {**one.to_json(), "ssim_change": one.ssim_change}
        return found

    def row(self, name: str, path: Path) -> dict[str, Any]:
        self.say(f"judging {name}")
        with opened(path, threads=self.threads) as graph:
            if graph.scale != self.scale:
                raise BenchmarkError(f"{path} enlarges {graph.scale} times, the reference {self.scale} times")
            return {
                "name": name,
                "sha256": sha256_of(path),
                "arithmetic": graph.arithmetic,
                "share": dataclasses.asdict(graph.share),
                "sets": self.judged(graph, pan=self.pan),
            }

    def row_of_peer(self, peer: PeerGraph) -> dict[str, Any]:
        if peer.path is None:
            return {"name": peer.name, "left_out": peer.why}
        try:
            return self.row(peer.name, peer.path)
        except (BenchmarkError, InferenceError) as error:
            return {"name": peer.name, "left_out": one_line(error)[:200]}


def name_of(folder: Path) -> str:
    """Return what a set is called: benchmark sets keep one folder for each scale, such as ``Set5/x4``."""
    folder = folder.resolve()
    inner = folder.name[:1] == "x" and folder.name[1:].isdecimal()
    return folder.parent.name if inner else folder.name
