"""Keys of a training: in YAML, on the command line, both."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esrgan_deploy._errors import TrainingError
from esrgan_deploy.training import TrainConfig, read_config
from esrgan_deploy.training._cli import main

NEEDED = {"output": "run", "hr": ["pictures"]}


def test_an_unknown_key_is_refused_with_the_one_that_was_meant(tmp_path):
    """Ignored, a misspelt learning rate would cost a night."""
    path = tmp_path / "train.yaml"
    path.write_text("output: run\nhr: [pictures]\nlearning_rat: 0.1\n")
    with pytest.raises(TrainingError, match=r"unknown key 'learning_rat'; did you mean learning_rate\?"):
        read_config(path, {})


def test_the_command_line_wins_over_the_file(tmp_path):
    """The other way round a sweep over one file would train the same thing again and again."""
    path = tmp_path / "train.yaml"
    path.write_text("output: run\nhr: [pictures]\nlearning_rate: 2.0e-4\nsteps: 10\nmilestones: [3, 5]\n")
    config = read_config(path, {"steps": "20"})
    assert (config.steps, config.learning_rate, config.milestones) == (20, 2e-4, (3, 5))


def test_a_number_that_yaml_reads_as_a_text_is_still_a_number(tmp_path):
    """YAML 1.1 takes 2e-4 for a text."""
    path = tmp_path / "train.yaml"
    path.write_text("output: run\nhr: pictures\nlearning_rate: 2e-4\n")
    assert read_config(path, {}).learning_rate == 2e-4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"steps": 0}, "steps is 0; it is at least 1"),
        ({"steps": 1.5}, "steps is 1.5; it is a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it is a finite number"),
        ({"learning_rate": True}, "learning_rate is True; it is a number"),
        ({"ema": 1.0}, "ema is 1.0; it is below 1"),
        ({"teacher_weight": 1.5}, "teacher_weight is 1.5; it is at most 1"),
        ({"stage": "both"}, "stage is both; allowed are psnr, gan"),
        ({"augment": "maybe"}, "augment is 'maybe'; it is true or false"),
        ({"hr": []}, "hr names no folder"),
        ({"batch": 10, "accumulate": 4}, "accumulate divides the batch"),
        ({"lr": ["low"], "degradation": "realesrgan"}, "choose one"),
        ({"schedule": "multistep"}, "milestones is empty"),
        ({"architecture": "srvggnetcompact", "checkpointing": True}, "checkpointing recomputes RRDBs"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_its_key(keys, message):
    """A training that starts with nonsense is found out hours later."""
    with pytest.raises(TrainingError) as caught:
        read_config(None, NEEDED | keys)
    assert message in str(caught.value)


def test_what_is_required_and_absent_is_named():
    """A traceback of a dataclass says nothing to a user."""
    with pytest.raises(TrainingError, match="output, hr not given"):
        read_config(None, {})


def test_every_key_is_in_the_help_with_its_meaning_and_its_default(capsys):
    """A key that no one can look up is no key."""
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    folded = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(TrainConfig):
        option = re.escape(f"--{field.name.replace('_', '-')}")
        meaning = re.escape(" ".join(field.metadata["help"].split()))
        default = {dataclasses.MISSING: r"\(required\)", None: "", (): ""}.get(
            field.default, rf"(\(default: {re.escape(str(field.default))}\))?"
        )
        assert re.search(rf"{option}\b[^()]* {meaning} ?{default}", folded), field.name


def test_a_file_that_is_no_table_is_refused(tmp_path, capsys):
    """One line, not YAML's traceback."""
    path = tmp_path / "train.yaml"
    path.write_text("- a\n- b\n")
    assert main([str(path)]) == 1
    assert (
        capsys.readouterr().err
        == f"esrgan-train: {path} holds list; a training is one table of `key: value`\n"
    )
    path.write_text("a: [b\n")
    assert main([str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"esrgan-train: {path} cannot be read as YAML: ")
    assert main([str(tmp_path / "none.yaml")]) == 1
    assert "No such file" in capsys.readouterr().err


RECIPES = ["default_gan", "default_psnr", "esrgan_gan", "esrgan_psnr"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_printed_and_read_back(name, capsys, tmp_path):
    """A recipe with a key that is no more would be found out by a user."""
    assert main(["recipe", name]) == 0
    path = tmp_path / "train.yaml"
    path.write_text(capsys.readouterr().out)
    config = read_config(path, {"hr": ["pictures"], "output": "run"})
    assert config.stage == name.partition("_")[2]


def test_a_recipe_that_is_none_is_a_usage_error_with_the_names(capsys):
    """The names are what the user needs next."""
    with pytest.raises(SystemExit) as caught:
        main(["recipe", "best"])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in RECIPES)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps=1e3"],
        ["--steps=0"],
        ["--learning-rate=nan"],
        ["--hr", "a\0b"],
        ["--milestones", "5,x"],
        ["--seed=" + "9" * 400],
        ["--stage=best"],
        ["run", "--stage=best"],
        ["run", "--hr", "photographs", "--output"],
        [],
        ["interpolate", "a.pth", "b.pth", "-o", "c.safetensors", "--alpha=nan"],
    ],
)
def test_an_option_that_is_not_allowed_is_one_line_and_exit_2(arguments, capsys):
    """Scripts tell a wrong call from a training that failed by the status."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("esrgan-train")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "steps: 2026-13-45",
        "[" * 5000,
        "hr: gone\noutput: run\nsteps: 1" + "0" * 400,
        'hr: gone\noutput: "a\\0b"',
    ],
)
def test_a_value_that_yaml_or_the_system_cannot_hold_is_one_line(text, tmp_path, capsys):
    """Each was a traceback: a date that is none, a text of brackets, a NUL in a path, a number beyond any float."""
    path = tmp_path / "train.yaml"
    path.write_text(text)
    assert main([str(path)]) == 1
    assert capsys.readouterr().err.startswith("esrgan-train: ")


def test_a_recipe_that_could_not_be_written_is_a_failure():
    """`recipe NAME > train.yaml` on a full disk left nothing and the interpreter's own words for it."""
    code = (
        "import sys; from esrgan_deploy.training._cli import main; sys.exit(main(['recipe', 'esrgan_gan']))"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "esrgan-train: No space left on device: standard output. Free some space or write elsewhere; "
        "nothing was left half-written\n"
    )
