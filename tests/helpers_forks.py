"""Starts commands in processes that have torch already: seconds each, where they import it themselves.

``python helpers_forks.py MODULE…`` imports the modules, then reads one request a line as JSON and answers likewise:
``{"module", "argv", "cwd", "env", "stdout", "stderr", "limit"}`` forks and runs that module's ``main``, and gives its
``{"pid"}``; ``{"wait": pid, "options"}`` gives its ``{"status"}``, None while it runs. See the fixture ``fork``.
"""

import importlib
import json
import os
import resource
import sys
import traceback
from typing import Any


def run(request: dict[str, Any]) -> None:
    """Be the command that was asked for; does not return."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
    if request["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    status: Any = 1
    try:
        sys.argv = [request["module"], *request["argv"]]
        status = importlib.import_module(request["module"]).main(request["argv"])
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def main() -> None:
    """Serve until there is no one who asks."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, ended = os.waitpid(request["wait"], request["options"])
            answer = {"status": os.waitstatus_to_exitcode(ended) if pid else None}
        else:
            answer = {"pid": os.fork()}
            if answer["pid"] == 0:
                run(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
