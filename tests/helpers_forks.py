"""Starts commands in processes that have torch already: seconds each, where they import it themselves.

``python helpers_forks.py TRACES MODULE…`` imports the modules, then reads one request a line as JSON and answers
likewise: ``{"module", "argv", "cwd", "env", "stdout", "stderr", "limit"}`` forks and runs that module's ``main``, or
that program, and gives its ``{"pid"}``; ``{"wait": pid, "options"}`` gives its ``{"status", "memory"}``, None while
it runs. See the fixture ``fork``.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import helpers_traces
import torch


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
    sys.argv = [request["module"], *request["argv"]]
    if request["module"].endswith(".py"):
        warnings.simplefilter("error")
        runpy.run_path(request["module"], run_name="__main__")
        # As a program ends, with what is left for the interpreter's end.
        sys.exit()
    status: Any = 1
    try:
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
    torch.onnx.export = helpers_traces.kept_in(Path(sys.argv[1]))
    # The last two load with the first optimiser and the first log: five seconds, in every process that trains.
    for name in (*sys.argv[2:], "torch._dynamo", "torch.utils.tensorboard"):
        importlib.import_module(name)
    # What is there stays out of every collection of those that begin with it.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, ended, used = os.wait4(request["wait"], request["options"])
            status = os.waitstatus_to_exitcode(ended) if pid else None
            answer = {"status": status, "memory": used.ru_maxrss / 2**20 if pid else None}
        else:
            answer = {"pid": os.fork()}
            if answer["pid"] == 0:
                run(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
