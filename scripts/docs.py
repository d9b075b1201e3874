"""Build the documentation, the API's from the docstrings: python3 scripts/docs.py [mkdocs arguments]

Into build/site; with ``serve`` it is shown and follows what is written.
"""

import os
import subprocess
import sys

from _environment import ROOT, ready


def main() -> int:
    scripts = ready(".venv-docs", "docs", editable=True)
    environment = {
        **os.environ,
        # ruff, which breaks long signatures, is looked for there.
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        # What mkdocs-material says of mkdocs' successors is no news of these documents.
        "NO_MKDOCS_2_WARNING": "1",
    }
    command = [str(scripts / "python"), "-m", "mkdocs", *(sys.argv[1:] or ["build", "--strict", "--quiet"])]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
