"""A real PgBouncer in transaction mode, in front of one PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.processes import Process, free_port, is_listening

_CONFIG = """
[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 20
max_client_conn = 500
ignore_startup_parameters = extra_float_digits
"""


class PgBouncer:
    """One pooler; `url_of` turns a server's URL into the pooler's."""

    def __init__(self, server_port: int) -> None:
        binary = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
        if binary is None:
            raise AssertionError("PgBouncer is missing: apt-get install pgbouncer")
        self._binary = binary
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="es-pgb-"))
        path = self._directory / "pgbouncer.ini"
        path.write_text(_CONFIG.format(server=server_port, port=self.port))
        self._user: tuple[int, int] | None = None
        if os.geteuid() == 0:  # it refuses to run as root
            entry = pwd.getpwnam("nobody")
            self._user = (entry.pw_uid, entry.pw_gid)
            os.chown(self._directory, *self._user)
        self._config = path
        self.process = self.start()

    def start(self) -> Process:
        """Start it, again if it was stopped, on the same port."""
        self.process = Process(
            [self._binary, str(self._config)], cwd=self._directory, user=self._user
        )
        self.process.wait_until(lambda: is_listening(self.port), "PgBouncer listens")
        return self.process

    def url_of(self, url: str) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}{urlsplit(url).path}"

    def close(self) -> None:
        self.process.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
