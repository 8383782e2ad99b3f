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
  PUSHPIN_MAX_CONNECTIONS  most clients, 10000; have it twice as many as will come
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

from django.core.exceptions import ImproperlyConfigured

from deploy.environment import SHORTEST_GRIP_KEY, get_int
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
        backend=os.environ.get("BACKEND") or "127.0.0.1:8001",
        key=key,
        port=get_int("PUSHPIN_PORT", default=7999),
        publish_port=port,
        standby_port=get_int("PUSHPIN_STANDBY_PORT", default=7997),
        host=os.environ.get("PUSHPIN_HOST") or "127.0.0.1",
        publish_host=os.environ.get("PUSHPIN_PUBLISH_HOST") or "127.0.0.1",
        metrics_port=get_int("PUSHPIN_METRICS_PORT") or None,
        max_connections=get_int("PUSHPIN_MAX_CONNECTIONS", default=10000),
        # The last: nothing is left behind of what is refused.
        directory=Path(directory or tempfile.mkdtemp(prefix="pp-")),
        is_temporary=not directory,
    )


def main() -> None:
    """Write the configuration, and replace this process."""
    argparse.ArgumentParser(
        prog="python -m deploy.pushpin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        config = configure()
    except ImproperlyConfigured as error:
        sys.exit(str(error))
    except ValueError as error:  # of urlsplit
        sys.exit(f"GRIP_URL: {error}")
    argv = config.command()
    print(f"{config.host}:{config.port} → {config.backend}", flush=True)
    os.execvp(argv[0], argv)  # noqa: S606  a fixed command, without a shell


if __name__ == "__main__":
    main()
