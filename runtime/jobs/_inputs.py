"""What a job is made of: files, folders and patterns in, one item for each picture out."""

import dataclasses
import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from esrgan_deploy._errors import MediaError
from esrgan_deploy._files import PICTURES
from esrgan_deploy.runtime.pictures import OUTPUT_FORMATS

__all__ = ["JobItem", "is_folder", "items_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobItem:
    """One input and where its result goes.

    Attributes:
        source: The file, as it was given or found.
        output: What is written for it.
        refusal: Why it cannot be done, in one line; empty where it can.
        kind: What it is; ``"picture"``.
    """

    source: Path
    output: Path
    refusal: str = ""
    kind: str = "picture"


def items_of(
    inputs: Sequence[Path], output: Path, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[JobItem]:
    """Return the items of a job, in the order of the inputs and, in a folder, of their paths.

    A folder is walked and its structure mirrored: the one folder's below ``output``, those of several below
    ``output`` and their own names. In it are taken the files with a picture's suffix, or where ``include`` is given
    those that it names; what begins with a dot is passed over, and so is ``output`` itself.

    Args:
        inputs: Files, folders, and patterns such as ``photographs/**/*.jpg``, whose results lie below ``output`` as
            their files do below the part in front of the first wildcard.
        output: A folder.
        include: Patterns, of which a file's name or its path below the folder must match one.
        exclude: Patterns of which neither may match one.

    Raises:
        MediaError: ``output`` is one of the folders, or there is nothing at all to do.
    """
    walk = _Walk(output, include, exclude)
    folders = sum(is_folder(path) for path in inputs)
    for path in inputs:
        if is_folder(path):
            if os.path.realpath(path) == walk.home:
                raise MediaError(
                    f"{output} is the input, whose pictures would be written over; give another folder with -o"
                )
            below = Path(_real(path).name) if folders > 1 else Path()
            walk.folder(path, below)
        elif os.path.lexists(path) or not glob.has_magic(str(path)):
            walk.file(path, Path(path.name))
        else:
            walk.pattern(path)
    if not walk.found:
        given = ", ".join(map(str, inputs))
        wanted = ", ".join(include) if include else " ".join(PICTURES)
        raise MediaError(f"there is no picture in {given}; what is looked for is {wanted} (--include)")
    return _checked(walk.found, output)


class _Walk:
    """Collects sources, each with its path below the output."""

    def __init__(self, output: Path, include: Sequence[str], exclude: Sequence[str]) -> None:
        self.found: list[JobItem] = []
        self.home = os.path.realpath(output)
        self._output = output
        self._include = include
        self._exclude = exclude

    def file(self, path: Path, below: Path) -> None:
        """Add a file that was named."""
        if not self._wanted(below):
            return
        if not _is_there(path):
            self._add(path, below, "there is no such file")
        else:
            self._add(path, below)

    def folder(self, root: Path, below: Path) -> None:
        """Add the pictures in a folder and those in it."""
        for path in self._pictures(root, _real(root), below):
            inside = path.relative_to(root)
            if self._wanted(inside) and (self._include or path.suffix.lower() in PICTURES):
                self._add(path, below / inside, _stray(path, root))

    def pattern(self, pattern: Path) -> None:
        """Add the files that a pattern names."""
        parts = pattern.parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:fixed])
        matches = sorted(map(Path, glob.iglob(str(pattern), recursive=True)))  # noqa: PTH207 - absolute patterns as well
        files = [path for path in matches if path.is_file() and not self._own(path)]
        for path in files:
            self.file(path, path.relative_to(root))
        if not files:
            self._add(pattern, Path(pattern.name), "this pattern names no file")

    def _own(self, path: Path) -> bool:
        return _real(path).is_relative_to(self.home)

    def _wanted(self, inside: Path) -> bool:
        names = (inside.name, inside.as_posix())
        chosen = not self._include or _matches(names, self._include)
        return chosen and not _matches(names, self._exclude)

    def _add(self, path: Path, below: Path, refusal: str = "") -> None:
        # What cannot be written in its own format becomes a PNG. Only what is a suffix goes: "scan v1.5" has none.
        suffix = below.suffix.lower()
        if suffix not in OUTPUT_FORMATS:
            below = below.with_name((below.stem if suffix in PICTURES else below.name) + ".png")
        self.found.append(JobItem(source=path, output=self._output / below, refusal=refusal))

    def _pictures(self, folder: Path, tree: Path, below: Path) -> Iterator[Path]:
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            self._add(folder, below, f"this folder cannot be read ({error.strerror})")
            return
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if os.path.realpath(path) != self.home:
                    yield from self._pictures(path, tree, below / entry.name)
            elif not is_folder(path):
                yield path
            elif not _real(path).is_relative_to(tree):
                # One into the tree leads to what is found anyway.
                why = (
                    f"a symbolic link to the folder {_real(path)}, which lies outside; give that one as well"
                )
                self._add(path, below / entry.name, why)


def is_folder(path: Path) -> bool:
    """Return whether a path leads to a folder; one that cannot be the name of anything does not."""
    # Path.is_dir() raises where a name is too long.
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _real(path: Path) -> Path:
    # Path.resolve() raises where links lead in a circle.
    return Path(os.path.realpath(path))


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _stray(path: Path, root: Path) -> str:
    if not path.is_symlink():
        return ""
    if not _is_there(path):
        return f"a symbolic link to {path.readlink()}, which is not there"
    target = _real(path)
    if not target.is_relative_to(_real(root)):
        return f"a symbolic link to {target}, which lies outside {root}; give that file itself"
    return ""


def _checked(found: Sequence[JobItem], output: Path) -> list[JobItem]:
    """Return the items, those refused whose output is another's, or an input."""
    sources = {os.path.realpath(item.source) for item in found if not item.refusal}
    home = _real(output)
    taken: dict[Path, Path] = {}
    checked = []
    for item in found:
        first = taken.setdefault(item.output, item.source)
        # The same file, named twice or found by two patterns.
        if first is not item.source and os.path.realpath(first) == os.path.realpath(item.source):
            continue
        why = item.refusal
        if not why and first is not item.source:
            why = f"its output {item.output} is that of {first}; give it an -o of its own"
        elif not why and str(home / item.output.relative_to(output)) in sources:
            why = f"its output {item.output} is an input, which is never written over; give another -o"
        checked.append(dataclasses.replace(item, refusal=why))
    return checked
