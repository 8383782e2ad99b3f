"""Clients that others have written: each receives, drops, resumes and is refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from tests.support.fault_proxy import FaultProxy, Mode
from tests.support.node import BIN, JS, environment
from tests.support.processes import Process, python, wait_for
from tests.support.sse import tidy
from tests.support.stack import Stack

IN_PYTHON = ["httpx-sse", "curl"]
CLIENTS = [
    "eventstream",
    "eventsource",
    "eventsource-client",
    "fetch-event-source",
    "reconnecting-eventsource",
    *IN_PYTHON,
]

pytestmark = pytest.mark.timeout(180)


class Client:
    """One client in a process of its own."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        if name in IN_PYTHON:
            self.process = python("-m", "tests.support.clients", name, url)
        else:
            argv = [str(BIN / "node"), "clients.ts", name, url]
            self.process = Process(argv, cwd=JS, env=environment())

    def lines(self) -> list[dict[str, str]]:
        output = self.process.output()
        return [
            json.loads(line) for line in output.splitlines() if line.startswith("{")
        ]

    def ids(self) -> list[str]:
        return [line["id"] for line in self.lines() if line["type"] == "message"]

    def data(self) -> list[str]:
        return [line["data"] for line in self.lines() if line["type"] == "message"]

    def until_said(self, text: str) -> None:
        self.process.wait_until(lambda: text in self.process.output(), text)

    def until(self, count: int) -> None:
        def is_there() -> bool:
            return len(self.lines()) >= count

        what = f"{count} of {self.name}'s"
        try:
            wait_for(
                lambda: is_there() or not self.process.is_running, what, timeout=60
            )
            assert is_there(), f"{self.name} ended before it had {count}"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.process.output()[-3000:]}") from None


@contextmanager
def clients(urls: dict[str, str]) -> Iterator[list[Client]]:
    with ExitStack() as exits:
        started = [Client(name, url) for name, url in urls.items()]
        for client in started:
            exits.enter_context(client.process)
        yield started


def test_each_receives_what_it_missed_and_what_comes(stack: Stack) -> None:
    url = f"{stack.url}/events/?channel=matrix&lastEventId=matrix:0"
    stack.send("matrix", 2)
    stack.wait_until_numbered("matrix", 2)
    with clients(dict.fromkeys(CLIENTS, url)) as started:
        for client in started:
            client.until(2)
        stack.send("matrix", 2)
        for client in started:
            client.until(4)

        expected = [f"matrix:{number}" for number in range(1, 5)]
        received = {client.name: client.ids() for client in started}
        # Others' show the id as it came: behind a proxy it names the channel twice.
        tidied = {name: [tidy(text) for text in ids] for name, ids in received.items()}
        assert tidied == dict.fromkeys(CLIENTS, expected)
        assert received["eventstream"] == expected


def test_each_is_told_that_it_is_refused(stack: Stack) -> None:
    urls = dict.fromkeys(CLIENTS, f"{stack.url}/events/?channel=private-1")
    with clients(urls) as started:
        for client in started:
            client.until(1)
            (line,) = client.lines()
            assert line["type"] == "stream-error"
            assert json.loads(line["data"])["condition"] == "forbidden"


def answers(url: str) -> bool:
    with suppress(OSError), urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False


class Refusing(BaseHTTPRequestHandler):
    """Refuses each client twice, and then serves it one event."""

    asked_at: dict[str, list[float]] = {}

    def do_GET(self) -> None:
        _, status, name = self.path.split("/")
        times = self.asked_at.setdefault(self.path, [])
        times.append(time.monotonic())
        if len(times) <= 2:
            self.send_response(int(status))
            self.send_header("Retry-After", "1")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(f"retry: 100\ndata: {name}\n\n".encode())
        self.is_over.wait(60)

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    is_over = threading.Event()


@pytest.fixture
def refusing() -> Iterator[str]:
    Refusing.asked_at.clear()
    Refusing.is_over.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Refusing.is_over.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.mark.parametrize("status", [429, 502, 503])
def test_each_but_an_event_source_comes_back_after_a_passing_refusal(
    refusing: str, status: int
) -> None:
    urls = {name: f"{refusing}/{status}/{name}" for name in CLIENTS}
    with clients(urls) as started:
        for client in started:
            if client.name == "eventsource":
                client.until_said(f"error: Non-200 status code ({status}) 2")
            else:
                client.until(1)
                assert client.data() == [client.name]
        asked_at = dict(Refusing.asked_at)

    assert len(asked_at[f"/{status}/eventsource"]) == 1
    first, second, third = asked_at[f"/{status}/eventstream"]
    waits = [second - first, third - second]
    assert all(wait >= 1 for wait in waits)  # as Retry-After has it


@pytest.fixture
def proxy(stack: Stack) -> Iterator[FaultProxy]:
    proxy = FaultProxy(int(stack.url.rpartition(":")[2]))
    yield proxy
    proxy.close()


def test_each_resumes_when_it_was_cut_off_and_when_the_server_was_away(
    stack: Stack, proxy: FaultProxy
) -> None:
    channel = "café"
    query = f"channel={quote(channel)}&lastEventId={quote(channel)}:0"
    url = f"http://127.0.0.1:{proxy.port}/events/?{query}"
    stack.send(channel, 2)
    stack.wait_until_numbered(channel, 2)
    with clients(dict.fromkeys(CLIENTS, url)) as started:
        for client in started:
            client.until(2)
        proxy.set_mode(Mode.BLACK_HOLE)
        stack.send(channel, 2)
        stack.wait_until_numbered(channel, 4)
        proxy.set_mode(Mode.PASS)  # resets the connections
        for client in started:
            client.until(4)

        # An end as the server makes it when it stops, and then nobody is there.
        assert stack.web
        stack.web.stop()
        if stack.pushpin:
            stack.pushpin.process.stop()
        time.sleep(3)  # all have tried in vain
        # Pushpin answers 502 while it starts, and on that an EventSource gives up for good.
        proxy.set_mode(Mode.BLACK_HOLE)
        stack.start_web()
        if stack.pushpin:
            stack.pushpin.start()
            wait_for(lambda: answers(f"{stack.url}/blank/"), "Pushpin passes on")
        proxy.set_mode(Mode.PASS)
        stack.send(channel, 2)
        for client in started:
            client.until(6)

        received = {client.name: client.data() for client in started}
        assert received == dict.fromkeys(CLIENTS, ["0", "1"] * 3)
        for client in started:
            numbers = [int(each.rpartition(":")[2]) for each in client.ids()]
            assert numbers == [1, 2, 3, 4, 5, 6]
