"""What the commands of README and CONTRIBUTING share: an environment of their own, made with nothing but Python."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAST = (3, 11)


def ready(folder: str, extras: str, *, editable: bool = False) -> Path:
    """Return the ``bin`` of a virtual environment in the repository with these extras installed.

    A second call installs again only if the project's own files changed.
    """
    if sys.version_info < LEAST:
        sys.exit(f"Python {'.'.join(map(str, LEAST))} or later is needed, this is {sys.version.split()[0]}")
    environment = ROOT / folder
    scripts = environment / ("Scripts" if sys.platform == "win32" else "bin")
    if not (scripts / "python").exists() and not (scripts / "python.exe").exists():
        print(f"making {folder}", flush=True)
        venv.create(environment, with_pip=True)
    stamp, state = environment / ".installed", _state(extras, editable)
    if not stamp.exists() or stamp.read_text() != state:
        print(f"installing esrgan-deploy[{extras}] into {folder}; this takes a while", flush=True)
        command = [str(scripts / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--constraint", str(ROOT / "constraints.txt"), *(["--editable"] if editable else [])]
        command += [f"{ROOT}[{extras}]"]
        if subprocess.run(command, cwd=ROOT).returncode:
            sys.exit("pip could not install it; its own message is above")
        stamp.write_text(state)
    return scripts


def _state(extras: str, editable: bool) -> str:
    # A strict editable install holds a link for each file, so new and removed files count as well as the metadata.
    digest = hashlib.sha256(f"{extras} {editable}".encode())
    for name in ("pyproject.toml", "setup.cfg", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    for package in ("src", "export", "engines", "runtime", "benchmarks", "training"):
        for path in sorted((ROOT / package).rglob("*")):
            if "__pycache__" in path.parts or not path.is_file():
                continue
            digest.update(str(path.relative_to(ROOT)).encode())
            if not editable:
                digest.update(path.read_bytes())
    return digest.hexdigest()
