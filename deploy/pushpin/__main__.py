"""Write a configuration that does not drop events, and become Pushpin.

All is said by the environment:

  GRIP_URL                 as the application has it, http://127.0.0.1:5561/?key=…: its port
                           is where events are published, its key 32 characters or more; of
                           several, which must have one port, the first one's key
  BACKEND                  host:port of the web process, 127.0.0.1:8001; several with spaces
                           between are asked in this order
  PUSHPIN_PORT             where browsers connect, 7999
  PUSHPIN_DIR              a short path for configuration, sockets and logs; by default a new
                           temporary folder, which is removed at the end
  PUSHPIN_MAX_CONNECTIONS  most clients, 5000
  PUSHPIN_METRICS_PORT     of its Prometheus page; by default none
  PUSHPIN_STANDBY_PORT     of 127.0.0.1, for what answers while no web process does, 7997
  PUSHPIN_HOST             address on which browsers are served, 127.0.0.1
  PUSHPIN_PUBLISH_HOST     address on which events are taken and metrics shown, 127.0.0.1
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from deploy.environment import SHORTEST_GRIP_KEY
from deploy.pushpin import PushpinConfig


def configure() -> PushpinConfig:
    """Return what the environment asks for."""
    # The application names all its proxies, and takes what is signed with any one's key.
    urls = [urlsplit(url) for url in os.environ.get("GRIP_URL", "").split()]
    ports = {url.port for url in urls}
    port = ports.pop() if len(ports) == 1 else None
    key = parse_qs(urls[0].query).get("key", [""])[0] if urls else ""
    if len(key) < SHORTEST_GRIP_KEY or not port:
        sys.exit(
            "Set GRIP_URL to http://127.0.0.1:5561/?key=… with "
            f"{SHORTEST_GRIP_KEY} characters of key or more; if there are several, all "
            "with the same port."
        )
    directory = os.environ.get("PUSHPIN_DIR")
    return PushpinConfig(
        directory=Path(directory or tempfile.mkdtemp(prefix="pp-")),
        is_temporary=not directory,
        backend=os.environ.get("BACKEND") or "127.0.0.1:8001",
        key=key,
        port=int(os.environ.get("PUSHPIN_PORT") or 7999),
        publish_port=port,
        standby_port=int(os.environ.get("PUSHPIN_STANDBY_PORT") or 7997),
        host=os.environ.get("PUSHPIN_HOST") or "127.0.0.1",
        publish_host=os.environ.get("PUSHPIN_PUBLISH_HOST") or "127.0.0.1",
        metrics_port=int(os.environ.get("PUSHPIN_METRICS_PORT") or 0) or None,
        max_connections=int(os.environ.get("PUSHPIN_MAX_CONNECTIONS") or 5000),
    )


def main() -> None:
    """Write the configuration, and replace this process."""
    argparse.ArgumentParser(
        prog="python -m deploy.pushpin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    config = configure()
    argv = config.command()
    print(f"{config.host}:{config.port} → {config.backend}", flush=True)
    os.execvp(argv[0], argv)  # noqa: S606  a fixed command, without a shell


if __name__ == "__main__":
    main()
