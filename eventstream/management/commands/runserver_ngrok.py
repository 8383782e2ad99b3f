"""`manage.py runserver_ngrok`: runserver, as the origin of a GRIP proxy in the cloud."""

from __future__ import annotations

import argparse
import os
from typing import Any
from urllib.parse import urlsplit

import requests
from django.apps import apps
from django.core.management.base import CommandError, CommandParser

from eventstream import conf
from eventstream.exceptions import PublishUnavailableError
from eventstream.targets.grip import GripTarget

if apps.is_installed("django.contrib.staticfiles"):
    from django.contrib.staticfiles.management.commands import runserver
else:  # without static files, as runserver itself
    from django.core.management.commands import (  # type: ignore[no-redef]
        runserver,
    )

DEFAULT_API = "http://localhost:4040/api/tunnels"
_TIMEOUT = 5.0


def find_tunnel(api: str, port: int) -> str:
    """Return the public URL of the ngrok tunnel that leads to a local port.

    Raises:
        CommandError: ngrok does not answer, or has no such tunnel.
    """
    start = f"Start it with: ngrok http {port}"
    try:
        response = requests.get(api, timeout=_TIMEOUT)
        response.raise_for_status()
        tunnels = response.json()["tunnels"]
        found = {t["public_url"]: str(t["config"]["addr"]) for t in tunnels}
    except (requests.ConnectionError, requests.Timeout) as error:
        raise CommandError(f"ngrok does not answer at {api}. {start}") from error
    except (requests.RequestException, KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            f"{api} does not answer as ngrok does: {error!r}. Is it ngrok's API? Name "
            "another with --ngrok-api."
        ) from error
    ours = [
        url
        for url, address in found.items()
        if address.rpartition(":")[2].rstrip("/") == str(port)
        and url.startswith(("http://", "https://"))
    ]
    if not ours:
        others = "".join(
            f" {url} leads to {address}." for url, address in found.items()
        )
        raise CommandError(f"ngrok has no tunnel to port {port}.{others} {start}")
    url: str = max(ours, key=lambda url: url.startswith("https://"))
    return url


def set_origin(url: str) -> list[str]:
    """Make the site the origin of every configured proxy; return the proxies' names.

    Raises:
        CommandError: There is no proxy, or one does not take it.
    """
    proxies = conf.grip_proxies()
    if not proxies:
        raise CommandError(
            "No GRIP proxy is configured. Set GRIP_URL to what your service gives you, "
            "such as https://api.fanout.io/realm/…?iss=…&key=base64:…"
        )
    names = []
    for proxy in proxies:
        target = GripTarget(proxy)
        try:
            target.set_origin(url)
        except PublishUnavailableError as error:
            raise CommandError(
                f"{target.name} does not take {url} as its origin: {error}. Pushpin has "
                "no such call: put the address into its routes file."
            ) from error
        finally:
            target.close()
        names.append(target.name)
    return names


class Command(runserver.Command):
    help = "Make the ngrok tunnel the origin of the GRIP proxy, and run the server."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--ngrok-api",
            default=DEFAULT_API,
            type=_http_url,
            help=f"address of ngrok's list of tunnels, default {DEFAULT_API}",
        )

    def run(self, **options: Any) -> None:
        """Run the server; handle() has found the port by now."""
        # With the autoreloader this is called in both processes, and again after each
        # change: only the first tells the proxy.
        if not options["use_reloader"] or os.environ.get("RUN_MAIN") != "true":
            url = find_tunnel(options["ngrok_api"], int(self.port))  # type: ignore[attr-defined]
            for name in set_origin(url):
                self.stdout.write(f"{name} now asks {url}")
            host = urlsplit(url).hostname
            self.stdout.write(f"ALLOWED_HOSTS must have {host!r}.")
        super().run(**options)


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{value!r} is not an http:// URL")
    return value
