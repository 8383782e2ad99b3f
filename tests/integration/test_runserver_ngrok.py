"""runserver_ngrok, against local stand-ins for ngrok's API and the proxy's origin call."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest
from django.core.management.base import CommandError
from pytest_django import Settings

from eventstream.management.commands.runserver_ngrok import find_tunnel, set_origin
from tests.support.processes import free_port, is_listening, python, wait_for


class StandIn:
    """ngrok's list of tunnels, and a proxy's service call, on one port."""

    def __init__(self) -> None:
        self.tunnels: object = []
        self.status = 200
        self.calls: list[tuple[str, dict[str, list[str]]]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, json.dumps(stand_in.tunnels))

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = parse_qs(self.rfile.read(length).decode())
                stand_in.calls.append((self.path, body))
                self._answer(stand_in.status, "{}")

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def lead_to(self, port: int) -> None:
        """Have a tunnel to the port, by both schemes, and one to another port."""
        pairs = [("http", port), ("https", port), ("https", port + 1)]
        self.tunnels = {
            "tunnels": [
                {
                    "public_url": f"{scheme}://{to - port}.example.net",
                    "proto": scheme,
                    "config": {"addr": f"http://localhost:{to}"},
                }
                for scheme, to in pairs
            ]
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    stand_in = StandIn()
    yield stand_in
    stand_in.close()


def test_secure_tunnel_to_our_port_is_found(stand_in: StandIn) -> None:
    stand_in.lead_to(8000)

    assert find_tunnel(stand_in.url, 8000) == "https://0.example.net"
    assert find_tunnel(stand_in.url, 8001) == "https://1.example.net"


def test_missing_tunnel_is_told_with_what_there_is(stand_in: StandIn) -> None:
    stand_in.lead_to(8000)

    with pytest.raises(CommandError) as caught:
        find_tunnel(stand_in.url, 9000)

    text = str(caught.value)
    assert text.startswith("ngrok has no tunnel to port 9000.")
    assert "https://0.example.net leads to http://localhost:8000." in text
    assert text.endswith("Start it with: ngrok http 9000")


def test_ngrok_that_is_not_running_is_told() -> None:
    with pytest.raises(CommandError, match="ngrok does not answer at http"):
        find_tunnel(f"http://127.0.0.1:{free_port()}/api/tunnels", 8000)


@pytest.mark.parametrize("answer", [[], {}, {"tunnels": [{}]}, {"tunnels": None}, "x"])
def test_answer_of_something_else_is_told(stand_in: StandIn, answer: object) -> None:
    stand_in.tunnels = answer

    with pytest.raises(CommandError, match="does not answer as ngrok does"):
        find_tunnel(stand_in.url, 8000)


def test_project_without_a_proxy_is_told(settings: Settings) -> None:
    settings.GRIP_URL = None

    with pytest.raises(CommandError, match="Set GRIP_URL"):
        set_origin("https://x.example.net")


def test_proxy_that_refuses_is_told(stand_in: StandIn, settings: Settings) -> None:
    settings.GRIP_URL = f"{stand_in.url}/realm/x"
    stand_in.status = 404

    with pytest.raises(CommandError, match=r"does not take https://x.example.net.*404"):
        set_origin("https://x.example.net")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://x.example.net", {"ssl_host": ["x.example.net"], "ssl_port": ["443"]}),
        ("http://x.example.net:81", {"host": ["x.example.net"], "port": ["81"]}),
    ],
)
def test_proxy_is_given_host_and_port(
    stand_in: StandIn, settings: Settings, url: str, expected: dict[str, list[str]]
) -> None:
    settings.GRIP_URL = f"{stand_in.url}/realm/x"

    assert set_origin(url) == [f"grip:{stand_in.url}/realm/x"]

    rest = {"rewrite_host": ["true"], "over_http": ["true"]}
    assert stand_in.calls == [("/realm/x/http/default/", {**expected, **rest})]


@pytest.mark.parametrize("options", [[], ["--noreload"]], ids=["reloader", "noreload"])
def test_server_runs_and_tells_the_proxy_once(
    stand_in: StandIn, options: list[str]
) -> None:
    port = free_port()
    stand_in.lead_to(port)
    env = {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "ES_GRIP": f"{stand_in.url}/realm/x?key={'k' * 32}",
    }
    arguments = ["runserver_ngrok", str(port), "--ngrok-api", stand_in.url, *options]
    arguments.append("--skip-checks")
    with python("manage.py", *arguments, env=env) as process:
        process.wait_until(lambda: is_listening(port), "the server runs")

        wait_for(
            lambda: "Starting development server" in process.output(), "it says so"
        )
        told = f"grip:{stand_in.url}/realm/x now asks https://0.example.net"
        assert process.output().count(told) == 1
        assert len(stand_in.calls) == 1


def test_server_does_not_start_without_ngrok() -> None:
    api = f"http://127.0.0.1:{free_port()}/api/tunnels"
    arguments = ["runserver_ngrok", str(free_port()), "--ngrok-api", api]
    env = {"DJANGO_SETTINGS_MODULE": "tests.settings", "ES_GRIP": ""}
    with python("manage.py", *arguments, env=env) as process:
        assert process.wait(20) == 1
        assert f"CommandError: ngrok does not answer at {api}." in process.output()
        assert "Traceback" not in process.output()
