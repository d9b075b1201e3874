"""Build the documentation, the API's from the docstrings: python3 scripts/docs.py [mkdocs arguments]"""

import os
import subprocess
import sys

from _environment import ROOT, ready


def main() -> int:
    """Build into build/site; with ``serve`` show it."""
    scripts = ready(".venv-test", "export,cpu,rtx,media,training,report,dev", editable=True)
    arguments = sys.argv[1:] or ["build", "--strict", "--quiet"]
    # What mkdocs says of its own successors is no news of these documents.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [str(scripts / "python"), "-m", "mkdocs", *arguments], cwd=ROOT, env=environment
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
