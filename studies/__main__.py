"""The one runner: ``python -m studies [NAME [options]]``, from the root of the repository."""

import argparse
import ast
import importlib
import json
import pkgutil
import shlex
import sys
from pathlib import Path

import studies
from esrgan_deploy._command_line import Parser, output_file
from esrgan_deploy._console import note, one_line_errors, say
from esrgan_deploy._files import replaced_atomically

__all__ = ["NAMES", "main"]

NAMES = tuple(one.name for one in pkgutil.iter_modules(studies.__path__) if not one.name.startswith("_"))


@one_line_errors("studies")
def main(argv: list[str] | None = None) -> int:
    """Run a study; returns 1 where what it measured is not within its bar."""
    name, *given = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        say("python -m studies NAME [options]\n")
        for known in NAMES:
            say(f"  {known:22}{_question(known)}")
        return 0
    if name not in NAMES:
        note(
            f"studies: there is no study {name!r}; the studies are {', '.join(NAMES)}. Run: python -m studies"
        )
        return 2
    study = importlib.import_module(f"studies.{name}")
    parser = Parser(
        prog=f"python -m studies {name}",
        description=study.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.options(parser)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure")
    args = parser.parse_args(given)
    from esrgan_deploy.benchmarks.measure import describe_machine

    figures = {
        "command": shlex.join(["python", "-m", "studies", name, *given]),
        "environment": describe_machine(),
        **study.run(args),
    }
    say(study.table(figures))
    if args.json is not None:
        with replaced_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if getattr(study, "within", lambda _: True)(figures) else 1


def _question(name: str) -> str:
    # Read and not imported: a list has to be there at once.
    folder = Path(studies.__path__[0])
    source = folder / f"{name}.py"
    text = (source if source.is_file() else folder / name / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
