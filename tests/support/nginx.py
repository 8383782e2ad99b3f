"""nginx, with the configuration that the project ships."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.processes import ROOT, Process, free_port, is_listening


def find(name: str, package: str) -> str:
    """Return the path of a program."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    assert path, f"{name} is missing: apt-get install {package}"
    return path


class Nginx:
    """A running nginx in front of a web process and of whoever holds the streams."""

    def __init__(self, *, web_port: int, streams_port: int) -> None:
        self.port, self.plain_port = free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._directory = Path(tempfile.mkdtemp(prefix="es-nginx-"))
        self._config = self._write(web_port, streams_port)
        self._nginx = find("nginx", "nginx-light")
        _run(self._nginx, "-t", "-q", "-c", str(self._config))
        self.start()

    def start(self) -> None:
        """Start it, also again after it was killed."""
        argv = [self._nginx, "-c", str(self._config), "-g", "daemon off;"]
        self.process = Process(argv)
        self.process.wait_until(lambda: is_listening(self.port), "nginx listens")

    def _write(self, web_port: int, streams_port: int) -> Path:
        """Write the shipped file with addresses of this machine."""
        directory = self._directory
        _run(
            find("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes",
            "-subj", "/CN=localhost", "-days", "1",
            "-keyout", f"{directory}/privkey.pem", "-out", f"{directory}/fullchain.pem",
        )  # fmt: skip
        text = (ROOT / "deploy/nginx/nginx.conf").read_text()
        # Else its worker, nobody, could not read the checkout's static files.
        user = "user root;" if os.geteuid() == 0 else ""
        for old, new in {
            "web:8000": f"127.0.0.1:{web_port}",
            "pushpin:7999": f"127.0.0.1:{streams_port}",
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "listen 80": f"listen 127.0.0.1:{self.plain_port}",
            "/etc/nginx/tls": str(directory),
            "/tmp/nginx.pid": f"{directory}/pid",
            "/srv/static/": f"{ROOT}/eventstream/static/",
            "worker_processes auto": f"{user} worker_processes 1",
            "worker_rlimit_nofile 120000": "worker_rlimit_nofile 4096",
            "worker_connections 50000": "worker_connections 1000",
        }.items():
            assert old in text, old
            text = text.replace(old, new)
        path = directory / "nginx.conf"
        path.write_text(text)
        return path

    def close(self) -> None:
        self.process.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OldHop:
    """An nginx that passes everything on as HTTP/1.0, as it does unless it is told.

    Args:
        port: Where it listens.
        web_port: The web process that it asks.
        other_port: The one that it asks when that is away.
    """

    def __init__(self, *, port: int, web_port: int, other_port: int) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="es-nginx-"))
        path = self._directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        path.write_text(
            f"{user} pid {self._directory}/pid; events {{}} http {{ access_log off;"
            f" upstream web {{ server 127.0.0.1:{web_port};"
            f" server 127.0.0.1:{other_port} backup; }} server {{ listen 127.0.0.1:{port};"
            " location / { proxy_http_version 1.0; proxy_pass http://web; } } }"
        )
        nginx = find("nginx", "nginx-light")
        # One process, so that it can be frozen.
        alone = "daemon off; master_process off;"
        self.process = Process([nginx, "-c", str(path), "-g", alone])
        self.process.wait_until(lambda: is_listening(port), "nginx listens")

    def close(self) -> None:
        self.process.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
