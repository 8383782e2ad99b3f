"""`python -m deploy.demo.leash --lock FILE --scratch FOLDER … -- COMMAND`: run it while the demo lives.

The demo's processes must not outlive it, not even a `kill -9` of it. The demo holds a lock
on a file; the kernel frees it when the demo is gone, and the leash then kills the command
and whatever that has started, and removes the demo's temporary folder. A command that ends
while the demo lives is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from deploy.demo.switch import is_on

_INTERVAL = 0.1
_STOP_SECONDS = 8.0
_EARLY_SECONDS = 5.0
_MAX_EARLY_ENDS = 3
_MARK = "EVENTSTREAM_DEMO_LEASH"


def acquire(path: Path) -> IO[str]:
    """Take the demo's lock. Forked processes do not inherit it; keep the file open.

    Raises:
        OSError: Another demo has it.
    """
    file = path.open("w")
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _is_free(path: Path) -> bool:
    try:
        acquire(path).close()
    except BlockingIOError:
        return False
    except OSError:
        return True  # the folder is gone, so the demo is
    return True


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Leash:
    """One command, run while the lock is held and the switch is on.

    Args:
        argv: The command.
        lock: The demo's file.
        scratch: The demo's folder, which it removes itself unless it is killed.
        switch: File that says whether it is to run; None for always.
        restarts: Whether it is started again when it ends by itself; not after three ends
            in a row within five seconds of the start.
    """

    def __init__(
        self,
        argv: list[str],
        lock: Path,
        scratch: Path,
        switch: Path | None,
        *,
        restarts: bool,
    ) -> None:
        self._argv = argv
        self._lock = lock
        self._scratch = scratch
        self._switch = switch
        self._restarts = restarts
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._early_ends = 0
        self._is_ending = False

    def run(self, after_port: int | None) -> int:
        """Return the command's exit code."""
        # The whole group is signalled: the command has had it, too.
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        while after_port and not _is_listening(after_port) and not self._is_ending:
            self._check_lock()
            time.sleep(_INTERVAL)
        while not self._is_ending:
            self._check_lock()
            wants = self._switch is None or is_on(self._switch)
            if self._child is None and wants:
                self._start()
            elif self._child is not None and not wants:
                self._stop(self._child)
                self._child = None
                print("stopped from the page; the events wait", flush=True)
            elif self._child is not None and self._child.poll() is not None:
                if not self._may_start_again(self._child.returncode):
                    break
                self._child = None
            time.sleep(_INTERVAL)
        if self._child is None:
            return 0
        while self._child.poll() is None:
            self._check_lock()
            time.sleep(_INTERVAL)
        code = self._child.returncode
        return code if code >= 0 else 128 - code

    def _start(self) -> None:
        env = {**os.environ, _MARK: str(os.getpid())}
        self._child = subprocess.Popen(self._argv, env=env)  # noqa: S603  from the demo
        self._started_at = time.monotonic()

    def _may_start_again(self, code: int) -> bool:
        """Say what has happened; clear away what the command has left behind."""
        if not self._restarts or self._is_ending:
            return False
        is_early = time.monotonic() - self._started_at < _EARLY_SECONDS
        self._early_ends = self._early_ends + 1 if is_early else 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        self._kill_all()
        if self._early_ends == _MAX_EARLY_ENDS:
            print(f"ended {how}, again soon after its start: giving up", flush=True)
            return False
        print(f"ended {how}; starting it again", flush=True)
        return True

    def _kill_all(self) -> None:
        """Kill the command and what it has started.

        Not by process group: Pushpin's services are in groups of their own. By parent, as
        Valkey writes its title over its environment; and by environment, as the services'
        parent may be dead.
        """
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == str(os.getpid()):
                    process.kill()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._is_ending = True

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        child.terminate()
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _check_lock(self) -> None:
        if _is_free(self._lock):
            self._kill_all()
            # The last leash to do so comes when nobody writes there any more.
            shutil.rmtree(self._scratch, ignore_errors=True)
            sys.exit(1)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--after-port", type=int)
    parser.add_argument("--switch", type=Path)
    parser.add_argument("--restart", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    leash = Leash(
        options.command,
        options.lock,
        options.scratch,
        options.switch,
        restarts=options.restart,
    )
    sys.exit(leash.run(options.after_port))


if __name__ == "__main__":
    main()
