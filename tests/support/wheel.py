"""The built distributions, and an empty environment that they are installed into."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.processes import ROOT


def build(directory: Path, *, source: Path = ROOT, kind: str = "") -> Path:
    """Build wheel and sdist into a folder, or one of them; return what was built.

    Args:
        directory: Where it goes; it holds nothing else.
        source: Folder of pyproject.toml.
        kind: "wheel" or "sdist"; both if empty.
    """
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(directory)]
    if kind:
        command += ["-t", kind]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(directory.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


class Installation:
    """An empty virtual environment, to which commands of the documentation are given.

    pip finds this project's wheel where a user's would find it by name, and the tested
    version of everything else.

    Args:
        directory: Where the environment is made.
        wheel: What `pip install eventstream` shall install.
    """

    def __init__(self, directory: Path, wheel: Path) -> None:
        venv.create(directory, with_pip=True, symlinks=True)
        self.bin = directory / "bin"
        self.python = self.bin / "python"
        constraints = directory / "constraints.txt"
        pinned = (ROOT / "constraints.txt").read_text()
        # "eventstream==0.1.0": by this version and no other, whatever an index may have.
        name, version = wheel.name.split("-")[:2]
        constraints.write_text(f"{pinned}{name}=={version}\n")
        # Nothing of this repository but what is installed.
        outer = ("PYTHON", "VIRTUAL_ENV", "DJANGO")
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(outer)},
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PIP_CONSTRAINT": str(constraints),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_FIND_LINKS": wheel.parent.as_uri(),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, command: str, *, cwd: Path) -> str:
        """Run one line as a shell would, and return what it printed."""
        done = subprocess.run(
            shlex.split(command), cwd=cwd, env=self.env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr
