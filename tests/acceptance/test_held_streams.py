"""Streams that Pushpin holds, and when it asks for them."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.support.processes import free_port
from tests.support.pushpin import Pushpin
from tests.support.sse import Stream, numbers
from tests.support.stack import Stack, running

REMIND = """
from eventstream.targets import get_targets
for target in get_targets().values():
    target.remind()
"""


@contextmanager
def installed(**settings: Any) -> Iterator[Stack]:
    """Give a stack with Pushpin and these settings."""
    env = {"ES_SET": json.dumps(settings)}
    with running(with_pushpin=True, env=env) as stack:
        yield stack


def open_all(
    stack: Stack, exits: ExitStack, queries: list[str], cookies: list[str] | None = None
) -> list[Stream]:
    """Open a stream for each query, some at a time."""
    headers = [{"Cookie": cookie} for cookie in cookies or [""] * len(queries)]

    def open_one(query: str, header: dict[str, str]) -> Stream:
        return Stream(f"{stack.url}/events/?{query}", headers=header, timeout=30)

    with ThreadPoolExecutor(20) as pool:
        streams = list(pool.map(open_one, queries, headers))
    return [exits.enter_context(stream).open() for stream in streams]


def test_readers_who_all_differ_do_not_wait_while_each_is_asked_for() -> None:
    """It asks ten times a second at most, and passes on nothing to those who wait for it."""
    with installed() as stack, ExitStack() as exits:
        own = [f"channel=all&channel=own-{n}" for n in range(200)]
        streams = open_all(stack, exits, own)
        # All were asked for a second after they came, as the first of their channels.
        for _ in range(5):
            stack.send("all")
            for stream in streams:
                assert stream.next(timeout=8).type == "message"
            time.sleep(0.5)


SLOW = {
    "EVENTSTREAM_CHANNELMANAGER_CLASS": "tests.channels.SlowChannelManager",
    "EVENTSTREAM_NEXT_LINK_TIMEOUT": 3,
    "EVENTSTREAM_UNNUMBERED_AFTER": 0.1,
}
"""What the proxy asks takes two seconds, so that questions meet."""


def test_users_who_are_at_the_same_place_get_what_is_for_them() -> None:
    """Of what Pushpin looks at before it shares a question, the token alone differs."""
    with installed(**SLOW) as stack, ExitStack() as exits:
        assert stack.worker
        stack.run(
            "from django.contrib.auth.models import User\n"
            "for pk in range(1, 5): User.objects.create(pk=pk, username=pk)"
        )
        pks = [1, 2, 3, 4] * 5
        cookies = [stack.log_in(pk) for pk in pks]
        streams = open_all(stack, exits, ["channel=slow"] * len(pks), cookies)
        for stream in streams:
            assert stream.next().type == "initial-state"
        stack.worker.send_signal(signal.SIGSTOP)
        stack.run(
            "from eventstream import send_event\n"
            "send_event('slow', 'message', 'a', skip_user_ids=[1, 2])\n"
            "send_event('slow', 'message', 'b')"
        )
        for pk, stream in zip(pks, streams, strict=True):
            mine = [2] if pk < 3 else [1, 2]
            assert list(numbers(stream.take(len(mine)))) == mine


def test_readers_who_are_asked_for_together_get_what_is_their_own() -> None:
    """Pushpin shares questions in flight by their path and Grip-Last."""
    with installed(**SLOW) as stack, ExitStack() as exits:
        assert stack.worker
        names = [f"slow-{n}" for n in range(40)]
        streams = open_all(stack, exits, [f"channel={name}" for name in names])
        for stream in streams:
            assert stream.next().type == "initial-state"
        # Nothing is published: what they get is what they are answered, at the same time.
        stack.worker.send_signal(signal.SIGSTOP)
        for name in names:
            stack.send(name, data=f"of {name}")
        got = [stream.next() for stream in streams]
        assert [json.loads(message.data) for message in got] == [
            f"of {name}" for name in names
        ]


def test_event_published_with_one_that_a_proxy_is_being_told_of_is_there_soon() -> None:
    """It drops what comes meanwhile and does not follow what it is told, and asks no more."""
    with installed(**SLOW | {"EVENTSTREAM_NEXT_LINK_TIMEOUT": 60}) as stack:
        assert stack.worker
        stack.worker.send_signal(signal.SIGSTOP)
        with Stream(f"{stack.url}/events/?channel=slow").open() as stream:
            assert stream.next().type == "initial-state"
            stack.send("slow")
            # By what is asked a second after the channel's first stream, and answered in two.
            stack.wait_until_numbered("slow", 1)
            stack.send("slow")
            stack.worker.send_signal(signal.SIGCONT)
            assert list(numbers(stream.take(2, timeout=20))) == [1, 2]


def test_stream_whose_client_was_slow_is_asked_for_again() -> None:
    """Up to Pushpin 1.40 not by itself, if the stream has several channels."""
    with installed(EVENTSTREAM_NEXT_LINK_TIMEOUT=2) as stack:
        assert stack.worker
        with Stream(f"{stack.url}/events/?channel=a&channel=b").open() as stream:
            time.sleep(3)
            for _ in range(6):  # not each of them fills the client's buffer
                stack.send("a", 1000, data="x" * 1000)
                stream.take(1000, timeout=30)
            time.sleep(1)  # the worker is done
            stack.worker.send_signal(signal.SIGSTOP)
            stack.send("a")
            time.sleep(9)  # two periods, of twice the link's timeout each
            stack.run(REMIND)
            assert stream.next().id == "a:6001,b:0"


def test_as_many_are_asked_for_at_once_as_there_may_be() -> None:
    """Up to 1.39 zurl makes Pushpin's requests; by its own configuration 2,000 at once."""
    pushpin = Pushpin(free_port())
    try:
        written = pushpin.config.directory / "run" / "zurl.conf"
        assert written.exists() == ("zurl" in pushpin.config.services)
        if written.exists():
            assert "\nmax_open_requests=10000\n" in written.read_text()
    finally:
        pushpin.close()


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process, and what it starts, have some thousand open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No more: there are programs that go through all numbers below the limit.
    most = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def count_answers(
    pushpin_port: int, origin_port: int, count: int
) -> Counter[str]:
    """Return how many clients, who all come at once, are told what before the origin answers."""
    is_over = asyncio.Event()

    async def wait(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await is_over.wait()
        writer.close()

    async def ask() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", pushpin_port)
        writer.write(b"GET /events/?channel=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        clients.append(writer)
        try:
            line = await asyncio.wait_for(reader.readline(), 5)
        except TimeoutError:
            return "waits"
        return line.decode().strip()

    clients: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(
        wait, "127.0.0.1", origin_port, backlog=count
    ):
        answers = await asyncio.gather(*[ask() for _ in range(count)])
        is_over.set()
        for client in clients:
            client.close()
    return Counter(answers)


def test_crowd_that_comes_at_once_is_not_refused(many_files: None) -> None:
    """A plain EventSource gives up for good at a 502."""
    origin_port = free_port()
    pushpin = Pushpin(origin_port)
    try:
        found = asyncio.run(count_answers(pushpin.port, origin_port, 1000))
    finally:
        pushpin.close()

    assert found == {"waits": 1000}
