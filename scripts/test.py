"""Make an environment and pass the tests in it: python3 scripts/test.py [pytest arguments]"""

import os
import subprocess
import sys

from _environment import ROOT, ready

WORKERS = 4
"""At most: the largest nets take 2 GiB each."""


def main() -> int:
    scripts = ready(".venv-test", "export,cpu,openvino,rtx,media,training,report,dev,real", editable=True)
    arguments, environment = sys.argv[1:], dict(os.environ)
    if not any(argument.startswith("tests") for argument in arguments):
        # All of it: up to four workers, and a file at a time, for what its tests share is made once. The order is
        # that of tests/conftest.py.
        cores = os.cpu_count() or 1
        workers = min(cores, WORKERS)
        arguments = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder", *arguments]
        environment.setdefault("OMP_NUM_THREADS", str(cores // workers))
    command = [str(scripts / "python"), "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
