"""What training code wraps around a generator's weights, taken off."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeGuard

from torch import Tensor

from esrgan_deploy._errors import CheckpointError
from esrgan_deploy.export.checkpoints._unpickle import MAX_BYTES, StandIn

__all__ = ["keys_seen", "unwrap"]

# In the order of preference: an average over the training steps is what its author means to be used.
_WRAPPERS = (
    "params_ema", "params-ema", "g_ema", "netG_ema", "net_g_ema", "generator_ema", "model_ema", "ema_model",
    "ema", "ema_state_dict", "state_dict_ema", "params", "state_dict", "model_state_dict", "generator",
    "netG", "net_g", "G", "g", "model", "net", "network", "module", "weights",
)  # fmt: skip
# The same for names: DataParallel and torch.compile add one, whole training modules keep several nets.
_PREFIXES = (
    "module.", "_orig_mod.", "params_ema.", "g_ema.", "netG_ema.", "net_g_ema.", "generator_ema.",
    "model_ema.", "ema_model.", "ema.", "params.", "state_dict.", "generator.", "netG.", "net_g.", "G.",
    "model.", "net.", "network.", "sr_model.",
)  # fmt: skip
# One key of each family: where one stands, the names are the net's own, old ESRGAN's "model." among them.
_OWN_NAMES = re.compile(r"(?:conv_first|model\.0|body\.0|conv_1\.sk)\.weight|RRDB_trunk\.\d")
# What some write for "body.0.rdb1.conv1.weight": a module allows no dot in the name of a parameter.
_FLAT_NAMES = re.compile(r"(?:(body)_(\d+)_(rdb\d)_)?(conv\w+)_(weight|bias)")
_MAX_DEPTH = 6
_MAX_NAME = 500


def unwrap(loaded: object, source: str) -> dict[str, Tensor]:
    """Return the named tensors of the generator inside whatever a checkpoint holds.

    Dictionaries such as ``{"params_ema": …, "params": …}`` are opened, an average before the plain weights, and so
    are objects by their attributes; a module that was saved whole gives what its ``state_dict()`` would;
    prefixes such as ``module.`` and ``netG.`` are taken off, and the nets beside the generator are left out.

    Args:
        loaded: What the file holds.
        source: The file's name, for messages.

    Raises:
        CheckpointError: There are no named tensors in it, or one of them holds no numbers.
    """
    state = _generator_of(loaded)
    for key, value in state.items():
        if _is_rebuilt(value):
            raise CheckpointError(
                f"{source}: {str(key)[:80]!r} is made by {value.name[:80]!r}; dense floating-point weights are needed"
            )
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        seen = keys_seen(state) if state else _what(loaded)
        hint = ""
        if {"optimizers", "schedulers"} & {str(key) for key in state}:
            hint = "; it is the state of a training, whose weights lie beside it as net_g_*.pth"
        raise CheckpointError(f"{source} holds no named weights (seen: {seen}){hint}")
    # Not the bytes that are stored: a stride of zero makes any shape out of one number.
    claimed = sum(value.numel() * value.element_size() for value in tensors.values())
    if claimed > MAX_BYTES:
        raise CheckpointError(
            f"{source} claims {claimed} bytes of weights, over {MAX_BYTES >> 30} GiB; it is refused"
        )
    return _without_prefixes(tensors)


def keys_seen(keys: Iterable[object]) -> str:
    """Return the number of keys and the first few of them, for a message."""
    names = [repr(str(key)[:80]) for key in keys]
    if len(names) <= 5:
        return ", ".join(names)
    return f"{', '.join(names[:5])} and {len(names) - 5} more"


def _generator_of(loaded: object) -> Mapping[object, object]:
    candidates: list[Mapping[object, object]] = []
    _collect(loaded, candidates, set(), _MAX_DEPTH)
    for state in candidates:
        if any(isinstance(key, str) and _OWN_NAMES.search(key) for key in state):
            return state
    return next(iter(candidates), loaded if isinstance(loaded, Mapping) else {})


def _collect(
    loaded: object, candidates: list[Mapping[object, object]], visited: set[int], depth: int
) -> None:
    # A pickle can hold a dictionary inside itself: each is visited once.
    if not isinstance(loaded, Mapping) or id(loaded) in visited or depth == 0:
        return
    visited.add(id(loaded))
    if "_parameters" in loaded and "_modules" in loaded:
        loaded = _state_of(loaded, visited)
    for wrapper in _WRAPPERS:
        _collect(loaded.get(wrapper), candidates, visited, depth - 1)
    if any(isinstance(value, Tensor) or _is_rebuilt(value) for value in loaded.values()):
        candidates.append(loaded)


def _is_rebuilt(value: object) -> TypeGuard[StandIn]:
    """Tell whether a value is a tensor of a kind that is not read: sparse, quantized, without data."""
    return isinstance(value, StandIn) and value.name.startswith("torch._utils._rebuild_")


def _state_of(root: Mapping[object, object], visited: set[int]) -> Mapping[object, object]:
    """Return the tensors that ``state_dict()`` of a whole module would, by the attributes that modules have."""
    state: dict[object, object] = {}
    waiting: list[tuple[str, Mapping[object, object] | StandIn]] = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        hidden = module.get("_non_persistent_buffers_set")
        unsaved = (
            {name for name in hidden[:_MAX_NAME] if isinstance(name, str)}
            if isinstance(hidden, list)
            else set()
        )
        for part in ("_parameters", "_buffers", "_modules"):
            members = module.get(part)
            # A file can hold a module inside itself: the members of each are visited once, too.
            if not isinstance(members, Mapping) or id(members) in visited:
                continue
            visited.add(id(members))
            for key, value in members.items():
                if len(prefix) + len(key) > _MAX_NAME or (part == "_buffers" and key in unsaved):
                    continue
                name = f"{prefix}{key}"
                if part == "_modules" and isinstance(value, StandIn):
                    waiting.append((f"{name}.", value))
                else:
                    flat = _FLAT_NAMES.fullmatch(name)
                    state[".".join(filter(None, flat.groups())) if flat else name] = value
    return state


def _what(loaded: object) -> str:
    if isinstance(loaded, StandIn):
        return f"what {loaded.name[:80]!r} would make; it was not executed"
    return f"a {type(loaded).__name__}"


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    state = tensors
    for _ in range(_MAX_DEPTH):
        if any(_OWN_NAMES.match(key) for key in state):
            return state
        for prefix in _PREFIXES:
            inner = {
                key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
            }
            # Of an unknown family nothing is left out, for spandrel may know it: every key has to have the
            # prefix.
            if inner and (len(inner) == len(state) or any(_OWN_NAMES.search(key) for key in inner)):
                state = inner
                break
        else:
            return state
    return state
