"""Node.js and npm, which come with a Python package, and the browser client's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT

JS = ROOT / "js"
BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    """Return an environment in which that Node.js is the first to be found."""
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def _run(program: str, arguments: tuple[str, ...], cwd: Path) -> str:
    message = "no Node.js packages: run `make js`"
    assert (JS / "node_modules").is_dir(), message
    done = subprocess.run(
        [str(BIN / program), *arguments], cwd=cwd, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def node(*arguments: str, cwd: Path = JS) -> str:
    """Run Node.js and return what it printed."""
    return _run("node", arguments, cwd)


def npm(*arguments: str, cwd: Path) -> str:
    """Run npm and return what it printed."""
    return _run("npm", arguments, cwd)
