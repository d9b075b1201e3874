"""One way of making a command line: from the frozen dataclass of its options, whose fields carry their flags."""

import argparse
import dataclasses
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from esrgan_deploy._console import one_line, show
from esrgan_deploy._errors import EngineBuildError, EsrganDeployError, ExportError

__all__ = [
    "LAYOUT",
    "OUTPUT_NAME",
    "RANGE",
    "STYLE",
    "Parser",
    "Version",
    "add_options",
    "at_least",
    "between",
    "breaches",
    "filled",
    "option",
    "output_file",
    "peaks",
    "read_options",
]

Options = TypeVar("Options")

STYLE: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
"""How every command's parser is made: examples keep their lines, and a flag is written out."""

_MOST = 2**31 - 1
_METAVARS = {int: "N", float: "X", Path: "PATH"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        self.exit(2, f"{self.prog}: {one_line(message)}. Run: {self.prog} --help\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse, after refusing what no path can hold: a shell cannot type it, a program that calls can."""
        given = sys.argv[1:] if args is None else list(args)
        if any("\0" in text for text in given):
            self.error("an argument holds a NUL character")
        for text in given:
            # argparse would hand on an empty list as the value.
            if text.startswith("-") and text.endswith("=--"):
                self.error(f"{text}: '--' ends the options and is no value")
        return super().parse_known_args(given, namespace)


def option(
    default: Any = dataclasses.MISSING,
    *,
    factory: Any = dataclasses.MISSING,
    help: str,  # noqa: A002 - argparse's name for it
    group: str | None = None,
    flags: str = "",
    positional: bool = False,
    type: Callable[[str], Any] | None = None,  # noqa: A002 - likewise
    choices: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    **how: Any,
) -> Any:
    """Return a dataclass field that is a flag: ``--its-name VALUE``, read as its annotation says.

    A tuple is a list by comma; ``False`` makes ``--name``, ``True`` ``--no-name``, and None of a bool both.

    Args:
        default: Of the field; without one the flag is required.
        factory: Makes the default, as in `dataclasses.field`.
        help: What it does. The default is told behind it, unless the text does.
        group: Heading in the help; the fields that follow stay under it.
        flags: Other flags than the field's name, separated by spaces.
        positional: Whether it is no flag but an argument by its place.
        type: Reads the text, of a list by comma each part; None goes by the annotation.
        choices: The texts that are allowed; those of a Literal need not be given.
        least: Smallest number, of a tuple of each.
        most: Largest number; of whole ones 2^31 - 1 where it is not given.
        above: Number that it is above.
        below: Number that it is below.
        how: Other keywords of `argparse.ArgumentParser.add_argument`.
    """
    limits = {"choices": choices, "least": least, "most": most, "above": above, "below": below}
    told = {"help": help, "group": group, "flags": flags.split(), "positional": positional, "type": type}
    return dataclasses.field(default=default, default_factory=factory, metadata=told | limits | {"how": how})


def read_options(
    options: type[Options], arguments: Sequence[str] | None, *, prog: str, epilog: str
) -> Options:
    """Read a command line into its options; what is wrong with it is one line on stderr and exit status 2.

    Args:
        options: A dataclass whose fields are made by `option`, or are such dataclasses themselves. Its docstring
            describes the command.
        arguments: What was typed; None takes the process' own.
        prog: The command.
        epilog: An example, and what else the help ends with.
    """
    parser = Parser(prog=prog, description=options.__doc__, epilog=epilog, **STYLE)
    add_options(parser, options)
    given = vars(parser.parse_args(arguments))
    try:
        return filled(options, given)
    except (ValueError, ExportError, EngineBuildError) as error:
        parser.error(str(error))


def filled(options: type[Options], given: Mapping[str, Any]) -> Options:
    """Return the options with what was given; the rest keeps its default."""
    values = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        if not _is_option(field):
            values[field.name] = filled(field.type, given)  # type: ignore[arg-type]
        elif field.name in given:
            values[field.name] = given[field.name]
    return options(**values)


def add_options(parser: argparse.ArgumentParser, options: type, *, required: bool = True) -> None:
    """Give a parser a flag for each field of the options; what is not given is absent from what it reads.

    Args:
        parser: Where they go.
        options: As for `read_options`.
        required: Whether a flag without a default has to be given.
    """
    parser.add_argument("--version", action=Version)
    groups: dict[str, Any] = {}
    heading, places = "", []
    for field in _flat(options):
        told = field.metadata
        heading = told["group"] or heading
        if heading and heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        keywords = {"help": _help(field), "default": argparse.SUPPRESS, **_reading(field), **told["how"]}
        if told["positional"]:
            optional = field.default is not dataclasses.MISSING
            # What is suppressed argparse would read as the text of a positional.
            keywords |= {"nargs": "?", "default": field.default} if optional else {}
            parser.add_argument(field.name, **keywords)
            place = keywords["metavar"]
            places.append(f"[{place}]" if optional else place)
            continue
        names = told["flags"] or [f"--{field.name.replace('_', '-')}"]
        if keywords["action"] == "store_false":
            names = [f"--no-{name.removeprefix('--')}" for name in names]
        if required and field.default is field.default_factory is dataclasses.MISSING:
            keywords["required"] = True
        groups.get(heading, parser).add_argument(*names, dest=field.name, **keywords)
    parser.usage = " ".join(["%(prog)s", *places, "[options]"])


def breaches(options: Any) -> Iterator[str]:
    """Look for fields that are beyond their choices or limits.

    Yields:
        Of each its name, its value, and what is allowed.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if _is_option(field):
            shown = value if isinstance(value, str | int | float | Path) else repr(value)
            yield from (f"{field.name} is {shown}; {problem}" for problem in _problems(field, value))


def peaks(text: str) -> int | tuple[int, int]:
    """Read ``1`` or ``255``, or ``1:255`` of an input and an output, as the `type` of an option.

    Raises:
        argparse.ArgumentTypeError: It is none of these.
    """
    known = {"1": 1, "255": 255}
    parts = text.split(":")
    if len(parts) > 2 or not known.keys() >= set(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 255 or a pair such as 1:255")
    return (known[parts[0]], known[parts[1]]) if len(parts) == 2 else known[text]


RANGE: dict[str, Any] = {
    "type": peaks,
    "metavar": "1|255|IN:OUT",
    "help": "what white is in an .onnx that others made, at its ends or at its input and its output, such as 1:255 "
    "(default: measured on a few greys)",
}
LAYOUT = "layout of an .onnx that others made (default: read from its shape, or tried)"
OUTPUT_NAME: dict[str, Any] = {
    "metavar": "NAME",
    "help": "which output of an .onnx that others made is the picture (default: the one that is enlarged)",
}
"""Options of such a graph, of every command that opens one."""


def at_least(least: int, *, most: int = _MOST) -> Callable[[str], int]:
    """Return a `type` for an option that takes whole numbers from `least` to `most`."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{value} is under {least}" if value < least else f"{value} is over {most}"
            )
        return value

    return number


def between(least: float, most: float) -> Callable[[str], float]:
    """Return a `type` for an option that takes a number from `least` to `most`."""

    def number(text: str) -> float:
        value = float(text)
        # A NaN is within nothing.
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least:g} to {most:g}")
        return value

    return number


def output_file(text: str) -> Path:
    """Be the `type` of an option that names a file to write: what cannot be one is refused before the work.

    Raises:
        argparse.ArgumentTypeError: Its folder is missing or cannot be written, or something else is there.
    """
    path, why = Path(text), ""
    parent = path.absolute().parent
    try:
        if not parent.is_dir():
            why = f"there is no folder {parent}"
        else:
            path.lstat()
            why = "" if path.is_file() else "that is there and is no file that can be replaced"
    except FileNotFoundError:
        why = "" if os.access(parent, os.W_OK) else f"the folder {parent} cannot be written"
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise argparse.ArgumentTypeError(f"{text}: {why}; give another name")
    return path


class Version(argparse.Action):
    """The action of ``--version``, which is looked up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show the version and stop")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Show it."""
        from esrgan_deploy import __version__

        show(f"{parser.prog} {__version__}")
        parser.exit()


class _List(argparse.Action):
    """Collects the values of a flag, which may be given more than once."""

    def __call__(self, _: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *values))


def _is_option(field: "dataclasses.Field[Any]") -> bool:
    return "positional" in field.metadata


def _flat(options: Any) -> "Iterator[dataclasses.Field[Any]]":
    for field in dataclasses.fields(options):
        yield from (field,) if _is_option(field) else _flat(field.type)


def _kind(field: "dataclasses.Field[Any]") -> Any:
    if typing.get_origin(field.type) in (types.UnionType, typing.Union):
        return typing.get_args(field.type)[0]
    return field.type


def _choices(field: "dataclasses.Field[Any]") -> tuple[Any, ...]:
    kind = _kind(field)
    own = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    return field.metadata["choices"] or own


def _help(field: "dataclasses.Field[Any]") -> str:
    text: str = field.metadata["help"].replace("%", "%%")
    if field.default is field.default_factory is dataclasses.MISSING:
        return text if field.metadata["positional"] else f"{text} (required)"
    # Of a number or a word; what nothing or a yes means says the text itself.
    told = isinstance(field.default, str | float | int) and not isinstance(field.default, bool)
    return f"{text} (default: {field.default})" if told and "(default" not in text else text


def _reading(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    """Return how argparse reads a field: its action, its type and what stands for its value in the help."""
    kind = _kind(field)
    if kind is bool and field.metadata["type"] is None:
        ways: dict[Any, Any] = {True: "store_false", False: "store_true"}
        return {"action": ways.get(field.default, argparse.BooleanOptionalAction)}
    many = typing.get_args(kind)[-1:] == (...,)
    listed = many and "nargs" not in field.metadata["how"]
    one = typing.get_args(kind)[0] if many else kind
    metavar = "|".join(_choices(field)) or _METAVARS.get(one, "TEXT")
    if listed:
        metavar += "[,...]"
    elif field.metadata["positional"] and not _choices(field):
        metavar = field.name
    reader = _reader(field, one, listed=listed)
    return {"action": _List if many else "store", "type": reader, "metavar": metavar}


def _reader(field: "dataclasses.Field[Any]", kind: Any, *, listed: bool) -> Callable[[str], Any]:
    """Return the `type` of a flag: its text as the kind, within the field's choices and limits."""
    convert = field.metadata["type"] or (str if typing.get_origin(kind) is typing.Literal else kind)
    words = {int: "a whole number", float: "a number"}

    def one(text: str) -> Any:
        try:
            value = convert(text)
        except (ValueError, EsrganDeployError) as error:
            own = f"{text!r} is not {words.get(convert)}"
            why = own if convert in words else str(error).removeprefix(f"--{field.name}: ")
            raise argparse.ArgumentTypeError(why) from None
        for problem in _problems(field, value):
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; {problem}")
        return value

    def several(text: str) -> tuple[Any, ...]:
        parts = [part.strip() for part in text.split(",")]
        if "" in parts:
            raise argparse.ArgumentTypeError(f"{text!r} is no list by comma")
        return tuple(one(part) for part in parts)

    return several if listed else one


def _problems(field: "dataclasses.Field[Any]", value: Any) -> Iterator[str]:
    """Compare a value with the limits of its field.

    Yields:
        What is allowed, once for each limit that the value breaks.
    """
    choices = _choices(field)
    for one in value if isinstance(value, tuple) else (value,):
        if choices and one not in choices and one != field.default:
            yield f"allowed are {', '.join(choices)}"
        if isinstance(one, int | float) and not isinstance(one, bool):
            yield from _out_of_limits(field.metadata, one)


def _out_of_limits(limits: Mapping[str, Any], number: float) -> Iterator[str]:
    least, most, above, below = (limits[name] for name in ("least", "most", "above", "below"))
    if isinstance(number, float) and not math.isfinite(number):
        yield "it is a finite number"
    if isinstance(number, int) and most is below is limits["type"] is None:
        most = _MOST
    if least is not None and number < least:
        yield f"it is at least {least}"
    if most is not None and number > most:
        yield f"it is at most {most}"
    if above is not None and number <= above:
        yield f"it is above {above}"
    if below is not None and number >= below:
        yield f"it is below {below}"
