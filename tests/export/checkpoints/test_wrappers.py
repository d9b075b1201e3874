"""What lies around the weights: dictionaries in dictionaries, prefixes, the other nets of a training."""

import pytest
import torch
from torch import Tensor

from esrgan_deploy import _errors
from esrgan_deploy.export.checkpoints._wrappers import keys_seen, unwrap

_NET = {"conv_first.weight": torch.zeros(4, 3, 3, 3), "body.0.rdb1.conv1.weight": torch.ones(2, 4, 3, 3)}
_OLD = {
    "model.0.weight": torch.zeros(4, 3, 3, 3),
    "model.1.sub.0.RDB1.conv1.0.weight": torch.ones(2, 4, 3, 3),
}
_OTHER = {name: value + 5 for name, value in _NET.items()}


def _prefixed(prefix: str, net: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in net.items()}


def _same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(found[name] is wanted[name] for name in wanted)


@pytest.mark.parametrize("net", [_NET, _OLD], ids=["new names", "old names"])
@pytest.mark.parametrize(
    "wrapper",
    [
        *(
            "params_ema",
            "params-ema",
            "params",
            "state_dict",
            "model_state_dict",
            "model",
            "net",
            "generator",
        ),
        *("g_ema", "netG", "net_g", "weights"),
    ],
)
def test_each_wrapper_is_taken_off(wrapper: str, net: dict[str, Tensor]) -> None:
    assert _same(unwrap({wrapper: net, "epoch": 3}, "x"), net)


def test_wrappers_in_wrappers_are_taken_off() -> None:
    assert _same(unwrap({"model": {"state_dict": {"params": _NET}}, "step": torch.tensor(4)}, "x"), _NET)


@pytest.mark.parametrize("ema", ["params_ema", "params-ema", "g_ema", "ema"])
def test_the_average_is_taken_whichever_comes_first(ema: str) -> None:
    """The plain weights of the last step are noisier: Real-ESRGAN's own script takes params_ema."""
    assert _same(unwrap({"params": _OTHER, ema: _NET}, "x"), _NET)
    assert _same(unwrap({ema: _NET, "params": _OTHER}, "x"), _NET)


def test_an_average_that_holds_no_net_is_passed_over() -> None:
    assert _same(unwrap({"ema": {"decay": torch.tensor(0.999)}, "params": _NET}, "x"), _NET)
    assert _same(unwrap({"params_ema": {}, "params": _NET}, "x"), _NET)


@pytest.mark.parametrize("net", [_NET, _OLD], ids=["new names", "old names"])
@pytest.mark.parametrize(
    "prefix", ["module.", "netG.", "generator.", "_orig_mod.", "net_g.module.", "model.", "module.netG."]
)
def test_each_prefix_is_taken_off(prefix: str, net: dict[str, Tensor]) -> None:
    assert _same(unwrap(_prefixed(prefix, net), "x"), net)


def test_old_names_keep_the_model_that_is_their_own() -> None:
    assert _same(unwrap(_OLD, "x"), _OLD)


def test_of_a_whole_training_module_the_averaged_generator_is_left() -> None:
    """Lightning and MMEditing keep discriminator, generator and its average in one state_dict."""
    whole = {
        **_prefixed("generator.", _OTHER),
        **_prefixed("generator_ema.", _NET),
        "discriminator.conv0.weight": torch.zeros(1),
        "step_counter": torch.zeros(1),
    }
    assert _same(unwrap({"state_dict": whole}, "x"), _NET)


def test_of_an_unknown_family_nothing_is_left_out() -> None:
    """Spandrel decides by all the keys; a prefix that every key has is no part of the net."""
    swin = {"layers.0.attn.qkv.weight": torch.zeros(3), "model.norm.weight": torch.zeros(3)}
    assert unwrap(swin, "x").keys() == swin.keys()
    assert unwrap(_prefixed("module.", swin), "x").keys() == swin.keys()


def test_a_dictionary_inside_itself_ends() -> None:
    loop: dict[str, object] = {"epoch": 3}
    for name in ("params", "model", "net", "state_dict"):
        loop[name] = loop
    with pytest.raises(_errors.CheckpointError, match="no named weights"):
        unwrap(loop, "x")


def test_up_to_five_keys_are_shown_and_the_others_counted() -> None:
    assert keys_seen("abcde") == "'a', 'b', 'c', 'd', 'e'"
    assert keys_seen("abcdef") == "'a', 'b', 'c', 'd', 'e' and 1 more"
    assert keys_seen("abcdefgh").endswith("'e' and 3 more")


@pytest.mark.parametrize(
    ("loaded", "told"),
    [
        ({"epoch": 1, "iter": 2}, "'epoch', 'iter'"),
        ({"epoch": 1, "optimizers": [], "schedulers": []}, "net_g_"),
        ([torch.zeros(3)], "a list"),
        (torch.zeros(3), "a Tensor"),
        ({}, "a dict"),
        ({"params": {}}, "'params'"),
    ],
)
def test_files_without_named_weights_say_what_they_hold(loaded: object, told: str) -> None:
    with pytest.raises(_errors.CheckpointError, match=f"no named weights.*{told}"):
        unwrap(loaded, "x")


def test_only_the_state_of_a_training_is_called_one() -> None:
    with pytest.raises(_errors.CheckpointError) as caught:
        unwrap({"epoch": 1}, "x")
    assert "net_g_" not in str(caught.value)
