"""What an Upscaler opens: which artefact, and on which devices."""

from collections.abc import Sequence
from pathlib import Path

from esrgan_deploy._errors import EsrganDeployError, InferenceError
from esrgan_deploy._flavour import flavour_is_installed
from esrgan_deploy._manifest import load_manifest
from esrgan_deploy.runtime._cuda import cuda_device_count
from esrgan_deploy.runtime._default import default_model
from esrgan_deploy.runtime._lane import Lane
from esrgan_deploy.runtime._session import PLANS, Session, SessionOptions, open_session

__all__ = ["borrowed_lanes", "model_path", "open_lanes", "refuse_idle"]


def model_path(model: str | Path | None) -> Path:
    """Return the artefact that a name stands for: itself, the best in a folder, or the model that ships.

    Raises:
        InferenceError: The folder holds no artefact, or those of several models.
    """
    if model is None:
        return default_model()
    path = Path(model)
    return _best_in(path) if path.is_dir() else path


def open_lanes(
    path: Path,
    devices: Sequence[int],
    options: Sequence[SessionOptions],
    *,
    slots: int | None,
    verify: bool = False,
    insist: bool = False,
) -> list[Lane]:
    """Open one artefact on each device, and run its golden pairs there if asked to; all of them or none.

    Args:
        path: The artefact.
        devices: Their ordinals.
        options: How to open it, for each of them.
        slots: Batches in flight on each.
        verify: Whether to run the golden pairs.
        insist: Whether it must compute on those devices, because somebody named them.

    Raises:
        EsrganDeployError: One cannot be opened.
    """
    lanes: list[Lane] = []
    try:
        for device, how in zip(devices, options, strict=True):
            session = open_session(path, how)
            lanes.append(Lane(session, slots=slots))
            if insist and session.info.device != device:
                raise InferenceError(
                    f"{path.name} runs on {session.info.provider}, not on the GPU {device} of devices="
                    f"{list(devices)}; leave devices out, or give a plan or the provider cuda"
                )
            if verify:
                from esrgan_deploy.runtime._golden import verify_golden

                verify_golden(session, path)
    except BaseException:
        for lane in lanes:
            lane.close()
        raise
    return lanes


def refuse_idle(path: Path, options: SessionOptions) -> None:
    """Refuse options of PyTorch for what PyTorch does not run, and of foreign graphs for what is none.

    Raises:
        ValueError: One was given for another kind of artefact.
    """
    suffix = path.suffix.lower()
    if suffix in (".onnx", *PLANS) and (options.precision is not None or options.compile):
        raise ValueError(
            f"precision and compile are for checkpoints, which PyTorch runs; {path.name} computes as it was exported"
        )
    if suffix != ".onnx" and options.describes:
        raise ValueError(f"range, layout and output_name are for .onnx graphs, and {path.name} is none")


def borrowed_lanes(sessions: Sequence[Session], *, slots: int | None) -> list[Lane]:
    """Return lanes over sessions that somebody else closes.

    Raises:
        InferenceError: There is none, or they are not of one model.
    """
    if not sessions:
        raise InferenceError("an empty list of sessions enlarges nothing; give at least one")
    for session in sessions:
        if not hasattr(session, "info"):
            raise ValueError(f"model is {session!r}; it is a path, an open session, several, or None")
    first = sessions[0].info
    for other in (session.info for session in sessions[1:]):
        if (other.form, other.scale, other.in_channels) != (first.form, first.scale, first.in_channels):
            raise InferenceError(
                f"{first.name} and {other.name} are not one model: x{float(first.scale):g} {first.form} of "
                f"{first.in_channels} channels, x{float(other.scale):g} {other.form} of {other.in_channels}"
            )
    return [Lane(session, slots=slots, owned=False) for session in sessions]


def _best_in(folder: Path) -> Path:
    manifests = []
    for candidate in sorted(folder.glob("*.json")):
        try:
            manifests.append(load_manifest(candidate))
        except EsrganDeployError:
            continue
    if len(manifests) != 1:
        found = "the artefacts of several models" if manifests else "no manifest that can be read"
        raise InferenceError(
            f"{folder} holds {found}; give the artefact itself, such as {folder / 'model.onnx'}"
        )
    here = [artefact for artefact in manifests[0].artefacts if (folder / artefact.file).is_file()]
    plans = [one.file for one in here if Path(one.file).suffix in PLANS and flavour_is_installed(one.flavour)]
    graphs = [one.file for one in here if one.file.endswith(".onnx")]
    # On a GPU what was made for it, in the order of the export; elsewhere the fp32 graph, which comes first.
    for name in [*plans, *graphs] if cuda_device_count() else graphs:
        return folder / name
    raise InferenceError(
        f"{folder} holds neither a plan nor a graph of its manifest. Run: esrgan-export again"
    )
