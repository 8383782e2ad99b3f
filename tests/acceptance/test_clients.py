"""Clients that others have written: each receives and is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.node import BIN, JS, environment
from tests.support.processes import Process, wait_for
from tests.support.stack import Stack

CLIENTS = [
    "eventstream",
    "eventsource",
    "eventsource-client",
    "fetch-event-source",
    "reconnecting-eventsource",
]

pytestmark = pytest.mark.timeout(180)


class Client:
    """One client in a Node.js process of its own."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.process = Process(
            [str(BIN / "node"), "clients.ts", name, url], cwd=JS, env=environment()
        )

    def lines(self) -> list[dict[str, str]]:
        output = self.process.output()
        return [
            json.loads(line) for line in output.splitlines() if line.startswith("{")
        ]

    def ids(self) -> list[str]:
        return [line["id"] for line in self.lines() if line["type"] == "message"]

    def until(self, count: int) -> None:
        try:
            wait_for(
                lambda: len(self.lines()) >= count, f"{count} of {self.name}'s",
                timeout=60,
            )  # fmt: skip
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
        assert received == dict.fromkeys(CLIENTS, expected)


def test_each_is_told_that_it_is_refused(stack: Stack) -> None:
    urls = dict.fromkeys(CLIENTS, f"{stack.url}/events/?channel=private-1")
    with clients(urls) as started:
        for client in started:
            client.until(1)
            (line,) = client.lines()
            assert line["type"] == "stream-error"
            assert json.loads(line["data"])["condition"] == "forbidden"


def test_curl_resumes_by_the_id_that_it_has_printed(
    stack: Stack, tmp_path: Path
) -> None:
    stack.send("curl", 3)
    stack.wait_until_numbered("curl", 3)
    url = f"{stack.url}/events/?channel=curl"
    header = "Last-Event-ID: curl:1"

    with Process(["curl", "-sN", "-H", header, url], cwd=tmp_path) as curl:
        wait_for(lambda: "id: curl:3\n" in curl.output(), "the third event")
        events = curl.output().split("event: stream-open")[1]

    assert [x for x in events.splitlines() if x.startswith("id: ")] == [
        "id: curl:2",
        "id: curl:3",
    ]
