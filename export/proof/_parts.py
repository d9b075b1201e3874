"""Whether a graph in parts computes what it computes in one piece."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from esrgan_deploy._files import part_of, sha256_of
from esrgan_deploy._parity import Bound, Comparer
from esrgan_deploy._spec import METADATA_KEY
from esrgan_deploy.export.graphs import measured_as, rounding_model, runs_as_it_is, save
from esrgan_deploy.runtime import Session, SessionOptions, open_session, plan_tiles
from esrgan_deploy.runtime.sessions import PartsInfo, PartsSlot
from esrgan_deploy.runtime.tiling import run_batch, run_strips

__all__ = ["verify_parts"]

_SAME = Bound(max_abs=0.01 / 255, min_psnr=90.0, min_within_one=1.0, max_bias=0.001)
"""Nothing but the order of sums may differ, a hundredth of a level: of the uint8 form a sample in 100,000."""

# Low, so that the small pictures of a proof have several, and the blocks what to keep between them.
_STRIP = 8


def verify_parts(path: Path, precision: str, pictures: Mapping[str, npt.NDArray[np.uint8]]) -> dict[str, Any]:
    """Compare a graph in strips with itself in one piece, in the arithmetic of its precision, and judge it.

    Args:
        path: The graph, with its parts beside it.
        precision: Of its tensors; half precision is computed with every tensor rounded, see `measured_as`.
        pictures: By name, ``(N, H, W, C)``.

    Returns:
        The figures, with what they breach.

    Raises:
        InferenceError: ONNX Runtime refuses a part.
    """
    comparer = Comparer(f"strips of {_STRIP} rows, against {path.name}", measured_as(precision))
    with _as_computed(path, precision) as place, contextlib.closing(_opened(place)) as session:
        info = session.info
        # Whole levels, of the uint8 form.
        bytes_out = info.form == "uint8"
        bound = dataclasses.replace(_SAME, max_abs=None) if bytes_out else _SAME
        with contextlib.closing(session.slot()) as slot:
            for name, batch in pictures.items():
                for picture in batch:
                    given = picture if bytes_out else picture.astype(np.float32) / 255
                    height, width, channels = given.shape
                    whole = plan_tiles(
                        height,
                        width,
                        tile=0,
                        halo=0,
                        edge="zero",
                        multiple=info.size_multiple,
                        scale=info.scale,
                    )
                    expected, made = (np.empty((*whole.out_size, channels), given.dtype) for _ in range(2))
                    run_batch(slot, info, whole, whole.all_tiles, given, expected)
                    strips = dataclasses.replace(whole, strip=_STRIP * info.size_multiple)
                    parts = cast(PartsSlot, slot).parts
                    # What the net makes of noise may be no picture; here it need only be the same.
                    run_strips(parts, info, strips, given, made, check=lambda made: None)
                    comparer.add(name, _planar(expected), made[None] if bytes_out else _planar(made))
    found = comparer.result()
    return {**found.to_json(), "breaches": found.breaches(bound)}


def _opened(path: Path) -> Session:
    return open_session(path, SessionOptions(providers=("cpu",)))


def _planar(picture: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    peak = 255 if picture.dtype == np.uint8 else 1
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / np.float32(peak)


@contextlib.contextmanager
def _as_computed(path: Path, precision: str) -> Iterator[Path]:
    """Yield a graph that a processor computes as its dtypes say, its parts beside it."""
    if runs_as_it_is(precision):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model.onnx"
        _round(path, place, precision, None)
        for name in ("trunk", "tail"):
            _round(part_of(path, name), part_of(place, name), precision, sha256_of(place))
        yield place


def _round(source: Path, target: Path, precision: str, whole: str | None) -> None:
    graph = ir.external_data.load_to_model(ir.load(source))
    facts = graph.metadata_props[METADATA_KEY]
    if whole is not None:
        facts = PartsInfo.from_json(facts).of(whole).to_json()
    graph = rounding_model(graph, precision)
    graph.metadata_props[METADATA_KEY] = facts
    save(graph, target)
