"""Make an environment and pass the tests in it: python3 scripts/test.py [pytest arguments]"""

import subprocess
import sys

from _environment import ROOT, ready


def main() -> int:
    scripts = ready(".venv-test", "export,cpu,rtx,media,training,dev", editable=True)
    return subprocess.run([str(scripts / "python"), "-m", "pytest", *sys.argv[1:]], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
