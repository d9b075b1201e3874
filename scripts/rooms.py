"""What imports what, room by room: python3 scripts/rooms.py [--write]

Prints every circle and every reach into a private file, and exits with 1 if there is one. ``--write`` puts the arrows
into docs/architecture.md; a test compares them.
"""

import argparse
import ast
import collections
import dataclasses
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("docs/architecture.md")
MARKS = ("<!-- arrows: python3 scripts/rooms.py --write -->\n", "<!-- end of arrows -->\n")


@dataclasses.dataclass(frozen=True)
class House:
    """Every file of the packages, and which of them imports which.

    A name that a room's ``__init__`` hands on counts as an import of the file that it comes from.
    """

    files: dict[str, Path]
    imports: dict[str, set[str]]
    reaches: list[str]

    @property
    def rooms(self) -> set[str]:
        """The packages."""
        return {module for module, path in self.files.items() if path.name == "__init__.py"}

    def inside(self, room: str) -> dict[str, set[str]]:
        """Return which of a room's own files and folders imports which, a folder being one whatever it holds."""
        depth = room.count(".") + 1
        found: dict[str, set[str]] = {}
        for module, others in self.imports.items():
            if not module.startswith(f"{room}."):
                continue
            one = found.setdefault(module.split(".")[depth], set())
            one |= {other.split(".")[depth] for other in others if other.startswith(f"{room}.")}
        return {name: others - {name} for name, others in found.items()}

    def circles(self) -> Iterator[str]:
        """Yield what imports itself in the end, among the files and folders of each room."""
        for room in sorted(self.rooms):
            try:
                graphlib.TopologicalSorter(self.inside(room)).prepare()
            except graphlib.CycleError as error:
                yield f"{room}: {' imports '.join(reversed(error.args[1]))}"


def read(root: Path = ROOT) -> House:
    """Read the packages that pyproject.toml of a checkout names."""
    folders = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    files = {}
    for package, folder in folders.items():
        for path in sorted((root / folder).glob("*.py")):
            files[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    trees = {module: ast.parse(path.read_text()) for module, path in files.items()}
    shown = {
        (module, name): origin
        for module, tree in trees.items()
        if files[module].name == "__init__.py"
        for origin, name in _names(tree)
    }
    imports = collections.defaultdict[str, set[str]](set)
    reaches = []
    for module, tree in trees.items():
        hands_on = files[module].name == "__init__.py"
        for origin, name in _names(tree):
            if origin.split(".")[0] != "esrgan_deploy":
                continue
            named = f"{origin}.{name}" if f"{origin}.{name}" in files else origin
            room, _, last = named.rpartition(".")
            if last.startswith("_") and module != room and not module.startswith(f"{room}."):
                reaches.append(f"{files[module].relative_to(root)} reaches into {named}")
            while (origin, name) in shown:
                origin = shown[origin, name]
            home = f"{origin}.{name}" if f"{origin}.{name}" in files else origin
            if home in files and not hands_on:
                imports[module].add(home)
    return House(files, dict(imports), reaches)


def _names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.rpartition(".")[::2] for alias in node.names if "." in alias.name)


def arrows(house: House) -> str:
    """Draw the rooms of each package as Mermaid: an arrow from what is used to what uses it."""
    drawings = []
    for package in ["esrgan_deploy", *sorted(house.rooms - {"esrgan_deploy"})]:
        inside = house.inside(package)
        drawn = {name: of for name, of in inside.items() if f"{package}.{name}" in house.rooms}
        drawn = {name: {other for other in of if other in drawn} for name, of in drawn.items()}
        lines = [f"    {used} --> {user}" for user in drawn for used in _nearest(user, drawn)]
        alone = set(drawn) - set(" ".join(lines).split())
        lines += [f"    {name}" for name in alone]
        if lines:
            title = package.removeprefix("esrgan_deploy.").replace(".", "/")
            drawings.append(
                f"**{title}**\n\n```mermaid\nflowchart LR\n" + "\n".join(sorted(lines)) + "\n```\n"
            )
    return "\n".join(drawings)


def _nearest(user: str, drawn: dict[str, set[str]]) -> set[str]:
    # What is reached over another one needs no arrow of its own.
    farther = {far for near in drawn[user] for far in _all_of(near, drawn)}
    return drawn[user] - farther


def _all_of(name: str, drawn: dict[str, set[str]]) -> set[str]:
    return drawn[name] | {far for near in drawn[name] for far in _all_of(near, drawn)}


def main() -> int:
    """Check, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put the arrows into {PAGE}")
    asked = parser.parse_args()
    house = read()
    if asked.write:
        page = ROOT / PAGE
        pattern = re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1])
        drawing = f"{MARKS[0]}\n{arrows(house)}\n{MARKS[1]}"
        page.write_text(re.sub(pattern, lambda _: drawing, page.read_text(), flags=re.DOTALL))
    faults = [f"circle in {circle}" for circle in house.circles()] + house.reaches
    print(
        "\n".join(faults) or f"{len(house.files)} files in {len(house.rooms)} rooms, no circle and no reach"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
