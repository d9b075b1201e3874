"""The names that RRDBNet's parts have had, and the dimensions read from its shapes.

Sources: BasicSR ``basicsr/archs/rrdbnet_arch.py`` (Real-ESRGAN as well), ESRGAN ``RRDBNet_arch.py`` (word
for word in BSRGAN's ``models/network_rrdbnet.py`` and RealSR's ``codes/models/modules/RRDBNet_arch.py``),
ESRGAN's first release ``architecture.py`` and its ``transer_RRDB_models.py``, KAIR's
``models/network_rrdb.py``. Spandrel's ``architectures/ESRGAN`` knows the same ones, except for KAIR's.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from torch import Tensor

from esrgan_deploy._errors import CheckpointError
from esrgan_deploy._spec import ModelSpec
from esrgan_deploy.export.checkpoints._layout import Layout, UnknownFamilyError, conv_shape, first_gap

__all__ = ["rrdb_layout"]

_MAX_DOUBLINGS = 4

# KAIR's blocks give a convolution without activation no sequence of its own, so that the fifth has no ".0".
_KAIR_FIFTH = re.compile(r"model\.1\.sub\.[0-9]+\.RDB[0-9]\.conv5\.(?:weight|bias)")
_OLD_TRUNK = re.compile(r"model\.1\.sub\.([0-9]{1,4})\.(?:weight|bias)")
_PLUS = re.compile(r"(?:RDB|rdb)[0-9]\.conv1x1\.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dialect:
    """Where each part of an RRDBNet stands, without ``.weight`` and ``.bias``.

    ``{n}``, ``{m}``, ``{k}``: block from 0, dense block and convolution from 1; ``{i}``: doubling from 1;
    ``{blocks}``, ``{up}``, ``{hr}``, ``{last}``: numbers in the flat sequence of old ESRGAN.
    """

    name: str
    title: str
    own: re.Pattern[str]
    block: re.Pattern[str]
    up: re.Pattern[str]
    parts: dict[str, str]


_DIALECTS = (
    _Dialect(
        name="basicsr",
        title="an RRDBNet as BasicSR names its parts",
        own=re.compile(r"body\.[0-9]+\.rdb|conv_body\.|conv_up[0-9]|conv_hr\."),
        block=re.compile(r"body\.([0-9]{1,4})\.rdb[0-9]"),
        up=re.compile(r"conv_up([0-9]{1,4})\.(?:weight|bias)"),
        parts={
            "first": "conv_first",
            "dense": "body.{n}.rdb{m}.conv{k}",
            "fifth": "body.{n}.rdb{m}.conv{k}",
            "trunk": "conv_body",
            "up": "conv_up{i}",
            "hr": "conv_hr",
            "last": "conv_last",
        },
    ),
    _Dialect(
        name="esrgan",
        title="an RRDBNet as ESRGAN names its parts",
        own=re.compile(r"RRDB_trunk\.|trunk_conv\.|upconv[0-9]|HRconv\."),
        block=re.compile(r"RRDB_trunk\.([0-9]{1,4})\.RDB[0-9]"),
        up=re.compile(r"upconv([0-9]{1,4})\.(?:weight|bias)"),
        parts={
            "first": "conv_first",
            "dense": "RRDB_trunk.{n}.RDB{m}.conv{k}",
            "fifth": "RRDB_trunk.{n}.RDB{m}.conv{k}",
            "trunk": "trunk_conv",
            "up": "upconv{i}",
            "hr": "HRconv",
            "last": "conv_last",
        },
    ),
    _Dialect(
        name="esrgan-old",
        title="an RRDBNet as old ESRGAN names its parts",
        own=re.compile(r"model\.[0-9]"),
        block=re.compile(r"model\.1\.sub\.([0-9]{1,4})\.RDB[0-9]"),
        up=re.compile(r"model\.([0-9]{1,4})\.(?:weight|bias)"),
        parts={
            "first": "model.0",
            "dense": "model.1.sub.{n}.RDB{m}.conv{k}.0",
            "fifth": "model.1.sub.{n}.RDB{m}.conv{k}.0",
            "trunk": "model.1.sub.{blocks}",
            "up": "model.{up}",
            "hr": "model.{hr}",
            "last": "model.{last}",
        },
    ),
)


def rrdb_layout(
    tensors: Mapping[str, Tensor], *, source: str, sha256: str, scale: int | None = None
) -> Layout | None:
    """Read the layout of an RRDBNet, or return None where the names are another family's.

    Raises:
        UnknownFamilyError: It is an ESRGAN+, whose dense blocks are others.
        CheckpointError: It is an RRDBNet, and of mixed dialects, incomplete or of impossible shapes.
    """
    if not any(dialect.block.match(key) for dialect in _DIALECTS for key in tensors):
        return None
    plus = next((key for key in tensors if _PLUS.search(key)), None)
    if plus is not None:
        raise UnknownFamilyError(
            f"{source} is an ESRGAN+ (arXiv:2001.08073), whose dense blocks add 1x1 convolutions ({plus!r}); "
            "it is not an RRDBNet and is not supported"
        )
    dialect = _only_dialect(tensors, source)
    blocks = _count_blocks(tensors, dialect, source)
    doublings = _count_doublings(tensors, dialect, source)
    keys = _keys(dialect, blocks, doublings)
    return Layout(
        spec=_spec(tensors, keys, blocks, doublings, dialect.name, source=source, sha256=sha256, scale=scale),
        dialect=dialect.name,
        title=dialect.title,
        keys={f"{part}.{kind}": f"{key}.{kind}" for part, key in keys.items() for kind in ("weight", "bias")},
    )


def _only_dialect(tensors: Mapping[str, Tensor], source: str) -> _Dialect:
    own = ((dialect, next(filter(dialect.own.match, tensors), None)) for dialect in _DIALECTS)
    witnesses = [(dialect, key) for dialect, key in own if key is not None]
    if len(witnesses) > 1:
        told = "; ".join(f"{key!r} is of {dialect.title}" for dialect, key in witnesses)
        raise CheckpointError(
            f"{source} mixes dialects ({told}); two checkpoints were merged, give one as it was saved"
        )
    dialect, witness = witnesses[0]
    if dialect.name == "esrgan-old":
        foreign = next((key for key in tensors if key.startswith(("conv_first.", "conv_last."))), None)
        if foreign is not None:
            raise CheckpointError(
                f"{source} mixes dialects ({foreign!r} is not of {dialect.title}, as {witness!r} is); "
                "two checkpoints were merged, give one as it was saved"
            )
        if any(_KAIR_FIFTH.match(key) for key in tensors):
            parts = dialect.parts | {"fifth": "model.1.sub.{n}.RDB{m}.conv{k}"}
            return dataclasses.replace(
                dialect, name="kair", title="an RRDBNet as KAIR names its parts", parts=parts
            )
    return dialect


def _count_blocks(tensors: Mapping[str, Tensor], dialect: _Dialect, source: str) -> int:
    numbers = {int(match[1]) for key in tensors if (match := dialect.block.match(key))}
    # Old ESRGAN's trunk convolution is numbered after the last block, and so tells when that one is missing.
    trunk = {int(match[1]) for key in tensors if (match := _OLD_TRUNK.fullmatch(key))}
    gap = first_gap(numbers | trunk)
    if gap is not None:
        raise CheckpointError(
            f"{source} has no block {gap} (blocks seen: {len(numbers)}, numbered up to {max(numbers)}); "
            "the file is incomplete, download or save it again"
        )
    return max(numbers) + 1


def _count_doublings(tensors: Mapping[str, Tensor], dialect: _Dialect, source: str) -> int:
    numbers = {int(match[1]) for key in tensors if (match := dialect.up.fullmatch(key))}
    if dialect.parts["up"].startswith("model."):
        doublings = _count_flat_doublings(numbers, source)
    else:
        doublings, gap = len(numbers), first_gap(numbers, start=1)
        if gap is not None:
            raise CheckpointError(
                f"{source} has no {dialect.parts['up'].format(i=gap)!r} although its upsampling goes up to "
                f"{max(numbers)}; the file is incomplete, download or save it again"
            )
    if doublings > _MAX_DOUBLINGS:
        raise CheckpointError(f"{source} enlarges by 2^{doublings}; up to {2**_MAX_DOUBLINGS} is supported")
    return doublings


def _count_flat_doublings(numbers: set[int], source: str) -> int:
    # model.0, model.1, then (resize, convolution, activation) for each doubling, HR, activation, last.
    doublings, rest = divmod(max(numbers, default=0) - 4, 3)
    expected = {0, *range(3, 3 * doublings + 1, 3), 3 * doublings + 2, 3 * doublings + 4}
    if rest or doublings < 0 or not numbers <= expected:
        seen = ", ".join(map(str, sorted(numbers)))
        raise CheckpointError(
            f"{source} has its convolutions at model.{{{seen}}}; an old ESRGAN net for x4 has them at "
            "model.{0, 3, 6, 8, 10}, other scales in step with that. It is incomplete, or enlarges by "
            "pixel-shuffle, which is not supported"
        )
    return doublings


def _keys(dialect: _Dialect, blocks: int, doublings: int) -> dict[str, str]:
    parts = dialect.parts
    keys = {"conv_first": parts["first"]}
    for n in range(blocks):
        for m in (1, 2, 3):
            for k in (1, 2, 3, 4, 5):
                template = parts["fifth" if k == 5 else "dense"]
                keys[f"body.{n}.rdb{m}.conv{k}"] = template.format(n=n, m=m, k=k)
    keys["conv_body"] = parts["trunk"].format(blocks=blocks)
    for i in range(1, doublings + 1):
        keys[f"conv_up{i}"] = parts["up"].format(i=i, up=3 * i)
    keys["conv_hr"] = parts["hr"].format(hr=3 * doublings + 2)
    keys["conv_last"] = parts["last"].format(last=3 * doublings + 4)
    return keys


def _spec(
    tensors: Mapping[str, Tensor],
    keys: Mapping[str, str],
    blocks: int,
    doublings: int,
    dialect: str,
    *,
    source: str,
    sha256: str,
    scale: int | None,
) -> ModelSpec:
    features, taken = conv_shape(tensors, f"{keys['conv_first']}.weight", source)
    growth, _ = conv_shape(tensors, f"{keys['body.0.rdb1.conv1']}.weight", source)
    given, _ = conv_shape(tensors, f"{keys['conv_last']}.weight", source)
    net_scale = 2**doublings
    # A net for x3 resizes once as well, by 3: only the caller can know.
    if scale == 3 and doublings == 1 and dialect in {"esrgan-old", "kair"}:
        net_scale = 3
    unshuffle = math.isqrt(taken // given)
    if taken != given * unshuffle**2 or unshuffle & (unshuffle - 1):
        unshuffle = 1
    if net_scale % unshuffle:
        raise CheckpointError(
            f"{source}: {keys['conv_first'] + '.weight'!r} takes {taken} channels for {given}, which is a "
            f"pixel-unshuffle by {unshuffle}, and the net enlarges by {net_scale}, which is no multiple of it"
        )
    return ModelSpec(
        architecture="rrdbnet",
        scale=net_scale // unshuffle,
        in_channels=taken // unshuffle**2,
        out_channels=given,
        features=features,
        blocks=blocks,
        growth=growth,
        source_sha256=sha256,
        unshuffle=unshuffle,
        size_multiple=unshuffle,
    )
