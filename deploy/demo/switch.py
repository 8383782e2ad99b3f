"""What page and supervisor share, in the demo's folder: a switch, and a manage.py.

The switch, by which the page stops and starts the worker, is a file that its leash reads.
"""

from __future__ import annotations

from pathlib import Path

STOPPED = "stopped"
RUNNING = "running"


def switch_path(directory: str | Path) -> Path:
    """Return where the switch is, in the demo's folder."""
    return Path(directory) / "worker"


def manage_path(directory: str | Path) -> Path:
    """Return where the manage.py is that knows the demo's servers."""
    return Path(directory) / "manage"


def is_on(path: Path) -> bool:
    """Say whether the worker is to run; it is unless somebody said otherwise."""
    try:
        return path.read_text() != STOPPED
    except OSError:
        return True


def turn(path: Path, *, on: bool) -> None:
    """Say whether the worker is to run."""
    path.write_text(RUNNING if on else STOPPED)
