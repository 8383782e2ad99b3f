"""What answers a proxy while no web process can be reached."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator

import psutil
import pytest

from tests.support.processes import (
    ROOT,
    Process,
    free_port,
    is_listening,
    python,
    wait_for,
)
from tests.support.pushpin import Pushpin

STANDBY = str(ROOT / "deploy/pushpin/standby.py")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def command(port: int) -> Iterator[Process]:
    """Give the process that has become what was to be started."""
    with python(STANDBY, str(port), "sleep", "60") as process:
        process.wait_until(lambda: is_listening(port), "the standby listens")
        yield process


@pytest.mark.parametrize(
    ("method", "body"), [("GET", b""), ("POST", b"x" * 3_000_000), ("OPTIONS", b"")]
)
def test_whatever_is_asked_is_answered_502(
    command: Process, port: int, method: str, body: bytes
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, "/events/?channel=orders", body=body)
        response = connection.getresponse()

        assert response.status == 502
        assert b"No web process" in response.read()


@pytest.mark.parametrize(
    ("method", "accept", "status"),
    [
        ("GET", "text/event-stream", 200),
        ("GET", "*/*", 502),
        ("GET", "text/html, */*;q=0.8", 502),
        ("POST", "text/event-stream", 502),  # it would be taken for done
    ],
)
def test_stream_that_opens_is_answered_by_an_empty_one(
    command: Process, port: int, method: str, accept: str, status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(
            method, "/events/?channel=orders", headers={"accept": accept}
        )
        response = connection.getresponse()

        assert response.status == status
        if status == 200:
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Access-Control-Allow-Origin"] is None
            assert response.read() == b""


def test_empty_stream_is_for_a_page_of_any_origin(command: Process, port: int) -> None:
    headers = {"accept": "text/event-stream", "origin": "https://shop.example.com"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/events/?channel=orders", headers=headers)
        response = connection.getresponse()

        assert response.status == 200
        allowed = response.headers["Access-Control-Allow-Origin"]
        assert allowed == "https://shop.example.com"
        assert response.headers["Access-Control-Allow-Credentials"] == "true"


def test_route_that_is_written_has_it_as_a_second_target() -> None:
    pushpin = Pushpin(free_port())  # of a web process that is not there
    answers: list[tuple[int, bytes]] = []

    def ask(accept: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", pushpin.port, timeout=3)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/events/", headers={"accept": accept})
                response = connection.getresponse()
            # It listens before all of its parts are there, and may forget who asks then.
            except (ConnectionError, TimeoutError):
                return False
            answers.append((response.status, response.read()))
            return True

    with contextlib.closing(pushpin):
        wait_for(lambda: ask("*/*"), "Pushpin answers")
        wait_for(lambda: ask("text/event-stream"), "it answers who opens a stream")

    assert answers == [(502, b"No web process can be reached.\n"), (200, b"")]


def test_it_ends_with_what_it_belongs_to(command: Process, port: int) -> None:
    runner = psutil.Process(command.pid)
    wait_for(lambda: runner.cmdline() == ["sleep", "60"], "it is replaced")
    (child,) = runner.children()

    runner.kill()

    child.wait(10)
    wait_for(lambda: not is_listening(port), "nobody listens")


def test_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with python(STANDBY, str(port), "sleep", "60") as process:
            assert process.wait(15) == 1
            assert f"cannot listen on 127.0.0.1:{port} (Address" in process.output()
            assert "PUSHPIN_STANDBY_PORT" in process.output()
