"""The switch by which the page stops and starts the worker: a file, read by its leash."""

from __future__ import annotations

from pathlib import Path

STOPPED = "stopped"
RUNNING = "running"


def switch_path(directory: str | Path) -> Path:
    """Return where the switch is, in the demo's folder."""
    return Path(directory) / "worker"


def is_on(path: Path) -> bool:
    """Say whether the worker is to run; it is unless somebody said otherwise."""
    try:
        return path.read_text() != STOPPED
    except OSError:
        return True


def turn(path: Path, *, on: bool) -> None:
    """Say whether the worker is to run."""
    path.write_text(RUNNING if on else STOPPED)
