"""What a job takes from its inputs, where the outputs go, and what it refuses by name."""

import os
from pathlib import Path

import pytest

from esrgan_deploy import MediaError
from esrgan_deploy.runtime import Job


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder in which the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(*names: str) -> None:
    """Make files; nothing here looks into them."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def made(*inputs: str, **how) -> dict[str, str]:
    """Of each input its output, as far as they can be begun."""
    found = Job(inputs, "out", **how).look()
    return {str(item.source): str(item.output) for item, state, _ in found if state == "pending"}


def refused(*inputs: str, **how) -> dict[str, str]:
    """Of each input that cannot be begun why."""
    return {
        str(item.source): why for item, state, why in Job(inputs, "out", **how).look() if state == "refused"
    }


def test_a_folder_is_mirrored(here):
    """Also the folders in it; what is hidden, is no picture, or is the output itself is none of the job's."""
    files(
        "in/b.JPG",
        "in/a/x.png",
        "in/a/b/y.tif",
        "in/.hidden.png",
        "in/.git/z.png",
        "in/notes.txt",
        "in/out/a.png",
    )
    found = Job(["in"], "in/out").look()
    assert [(str(i.source), str(i.output)) for i, _, _ in found] == [
        ("in/a/b/y.tif", "in/out/a/b/y.tif"), ("in/a/x.png", "in/out/a/x.png"), ("in/b.JPG", "in/out/b.JPG"),
    ]  # fmt: skip
    assert not Path("in/out/.esrgan-job.sqlite").exists()


def test_several_folders_keep_their_names(here):
    """Two folders of one camera hold the same names."""
    files("one/a.png", "two/a.png", "b.webp")
    assert made("one", "two/", "b.webp") == {
        "one/a.png": "out/one/a.png", "two/a.png": "out/two/a.png", "b.webp": "out/b.webp",
    }  # fmt: skip


def test_what_cannot_be_written_in_its_own_format_becomes_a_png(here):
    """A name without a suffix keeps its dots: of "scan v1.5" the 5 is none."""
    files("scan v1.5", "b.gif")
    assert made("scan v1.5", "b.gif") == {"scan v1.5": "out/scan v1.5.png", "b.gif": "out/b.gif.png"}


def test_patterns_are_expanded_and_mirrored(here):
    """Where the shell did not; below the part before the first wildcard, and never into the output."""
    files("in/a/x.png", "in/y.png", "in/z.jpg", "out/w.png")
    assert made("in/**/*.png") == {"in/a/x.png": "out/a/x.png", "in/y.png": "out/y.png"}
    assert made("**/*.png", exclude=["a/*", "in/a/*"]) == {"in/y.png": "out/in/y.png"}
    assert refused("in/*.tif") == {"in/*.tif": "this pattern names no file"}
    files("in/[1].png")
    assert made("in/[1].png") == {"in/[1].png": "out/[1].png"}


def test_include_and_exclude(here):
    """By name or by path below the folder; what is included need have no suffix of a picture."""
    files("in/a.png", "in/b.jpg", "in/2024/c.jpg", "in/2024/d.dat")
    assert set(made("in", include=["*.jpg"])) == {"in/b.jpg", "in/2024/c.jpg"}
    assert set(made("in", include=["*.jpg", "*.dat"], exclude=["2024/c*"])) == {"in/b.jpg", "in/2024/d.dat"}
    assert set(made("in", exclude=["2024/*"])) == {"in/a.png", "in/b.jpg"}


def test_links_that_leave_the_folder_are_named(here):
    """What lies outside was not asked for, and links in a circle would never end."""
    files("in/a.png", "in/sub/b.png", "else/c.png")
    for name, target in (
        ("in/stray.png", "../else/c.png"), ("in/gone.png", "nowhere.png"), ("in/far", "../else"),
        ("in/near.png", "a.png"), ("in/sub/loop", ".."), ("in/self.png", "self.png"),
    ):  # fmt: skip
        Path(name).symlink_to(target)
    assert set(made("in")) == {"in/a.png", "in/near.png", "in/sub/b.png"}
    why = refused("in")
    assert set(why) == {"in/stray.png", "in/gone.png", "in/far", "in/self.png"}
    assert str(here / "else" / "c.png") in why["in/stray.png"]
    assert "outside" in why["in/stray.png"]
    assert "outside" in why["in/far"]
    assert "not there" in why["in/gone.png"]
    # Named itself it was asked for.
    assert set(made("in/stray.png")) == {"in/stray.png"}


def test_two_inputs_with_one_output_are_one(here):
    """The second would replace the first; the same file twice is no matter."""
    files("a/x.png", "b/x.png")
    assert made("a/x.png", "b/x.png", "a/x.png") == {"a/x.png": "out/x.png"}
    assert refused("a/x.png", "b/x.png") == {
        "b/x.png": "its output out/x.png is that of a/x.png; give it an -o of its own"
    }


def test_an_input_is_never_an_output(here):
    """Neither its own nor another's, and also with force."""
    files("a.png", "sub/a.png", "sub/b.png")
    found = {str(i.source): why for i, _, why in Job(["a.png", "sub/b.png"], ".", force=True).look()}
    assert "never written over" in found["a.png"]
    assert found["sub/b.png"] == ""
    found = {str(i.source): why for i, _, why in Job(["sub/a.png", "./a.png"], ".", force=True).look()}
    assert "never written over" in found["sub/a.png"]
    with pytest.raises(MediaError, match="sub is the input"):
        Job(["sub"], "sub").look()


def test_what_is_not_there_is_named(here):
    """And what is there goes on; nothing at all is an error."""
    files("a.png")
    assert refused("a.png", "b.png") == {"b.png": "there is no such file"}
    Path("empty").mkdir()
    with pytest.raises(MediaError, match=r"no picture in empty; .*\.png .*--include"):
        Job(["empty"], "out").look()


def test_names_that_are_no_utf8_are_names(here):
    """They come from old cameras and archives."""
    name = os.fsdecode(b"in/caf\xe9.png")
    Path("in").mkdir()
    Path(name).write_bytes(b"")
    assert made("in") == {name: os.fsdecode(b"out/caf\xe9.png")}
