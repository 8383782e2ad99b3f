"""`python -m deploy.pushpin`: write the configuration and become Pushpin.

Environment: GRIP_URL (its port and key are used), BACKEND (host:port of the web process,
several with spaces between, default 127.0.0.1:8001), PUSHPIN_PORT (7999), PUSHPIN_DIR (a
short path; by default a new temporary folder), PUSHPIN_MAX_CONNECTIONS (5000),
PUSHPIN_METRICS_PORT (none), PUSHPIN_STANDBY_PORT (7997, of 127.0.0.1), PUSHPIN_HOST and
PUSHPIN_PUBLISH_HOST (addresses on which it serves browsers, and takes publishes and shows
metrics, 127.0.0.1).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from deploy.pushpin import PushpinConfig


def configure() -> PushpinConfig:
    """Return what the environment asks for."""
    url = urlsplit(os.environ.get("GRIP_URL", ""))
    key = parse_qs(url.query).get("key", [""])[0]
    if not key or not url.port:
        sys.exit(
            "Set GRIP_URL to http://127.0.0.1:5561/?key=… with 32 characters of key."
        )
    directory = os.environ.get("PUSHPIN_DIR") or tempfile.mkdtemp(prefix="pp-")
    return PushpinConfig(
        directory=Path(directory),
        backend=os.environ.get("BACKEND") or "127.0.0.1:8001",
        key=key,
        port=int(os.environ.get("PUSHPIN_PORT") or 7999),
        publish_port=url.port,
        standby_port=int(os.environ.get("PUSHPIN_STANDBY_PORT") or 7997),
        host=os.environ.get("PUSHPIN_HOST") or "127.0.0.1",
        publish_host=os.environ.get("PUSHPIN_PUBLISH_HOST") or "127.0.0.1",
        metrics_port=int(os.environ.get("PUSHPIN_METRICS_PORT") or 0) or None,
        max_connections=int(os.environ.get("PUSHPIN_MAX_CONNECTIONS") or 5000),
    )


def main() -> None:
    """Write the configuration, and replace this process."""
    argv = configure().command()
    os.execvp(argv[0], argv)  # noqa: S606  a fixed command, without a shell


if __name__ == "__main__":
    main()
