"""What a part that fails costs, in seconds: each figure of docs/guarantees.md."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.grip_endpoint import GripEndpoint
from tests.support.processes import wait_for
from tests.support.pushpin import KEY, Pushpin
from tests.support.sse import Crowd, Stream
from tests.support.stack import Stack, running

pytestmark = pytest.mark.timeout(180)

BROKER_BACK = 15.0
WORKER_KILLED = 30.0
WITHOUT_WEB = 30.0
"""Seconds: the proxy's pause before it asks again, 16 at most."""
WITHOUT_WORKER = 20.0
"""Seconds: the hub's poll, 10, or the links' timeout, 10 here and 60 by default; and slack."""


def channel_of_partition(number: int) -> str:
    """Return a channel of this partition, of sixteen."""
    import zlib

    names = (f"c{n}" for n in range(10_000))
    return next(name for name in names if zlib.crc32(name.encode()) % 16 == number)


@pytest.fixture
def endpoint() -> Iterator[GripEndpoint]:
    with GripEndpoint() as endpoint:
        yield endpoint


# --- the broker


@pytest.mark.parametrize("way", ["refuses", "hangs"])
def test_broker_that_is_away_slows_no_sender_and_delivery_resumes(way: str) -> None:
    with running(beat=True) as stack:
        valkey = stack.valkey
        assert valkey is not None
        with Stream(f"{stack.url}/events/?channel=orders").open() as stream:
            stack.send("orders")
            assert stream.next(timeout=20).id == "orders:1"
            if way == "hangs":
                valkey.process.send_signal(signal.SIGSTOP)
            else:
                valkey.process.kill()

            seconds = []
            for _ in range(30):
                began = time.monotonic()
                stack.send("orders")  # raises if the view failed
                seconds.append(time.monotonic() - began)
            if way == "hangs":
                valkey.process.send_signal(signal.SIGCONT)
            else:
                valkey.start()
            back_at = time.monotonic()

            ids = [message.id for message in stream.take(30, timeout=BROKER_BACK)]

            assert ids == [f"orders:{n}" for n in range(2, 32)]
            assert time.monotonic() - back_at < BROKER_BACK
            # Half a second for each step that hangs, and then none is tried for a while.
            assert max(seconds) < 2.0
            assert sorted(seconds)[15] < 0.2


# --- the worker


def test_worker_that_is_killed_while_publishing_holds_up_its_partition_only(
    endpoint: GripEndpoint,
) -> None:
    mine, other = channel_of_partition(3), channel_of_partition(4)
    env = {"ES_GRIP": f"{endpoint.url}?key={KEY}"}
    with running(beat=True, env=env) as stack:
        endpoint.hang_for = f"events-{mine}"
        endpoint.hang.set()
        stack.send(mine)
        wait_for(lambda: endpoint.hung_count, "it is being published", timeout=20)

        stack.send(other)
        wait_for(lambda: endpoint.items, "another partition is published", timeout=4)
        worker = stack.worker
        assert worker is not None
        worker.kill()
        killed_at = time.monotonic()
        endpoint.hang.clear()
        stack.start_worker()

        def channels() -> list[str]:
            return [item["channel"] for item in endpoint.items]

        wait_for(
            lambda: f"events-{mine}" in channels(), "it goes on", timeout=WORKER_KILLED
        )
        assert time.monotonic() - killed_at < WORKER_KILLED
        # The other's once more, if it was killed before it had confirmed that one.
        assert channels()[0] == f"events-{other}"
        assert channels().count(f"events-{mine}") == 1


async def test_both_holders_deliver_without_celery_and_redis() -> None:
    with running(with_pushpin=True, env={"ES_LINK_TIMEOUT": "10"}) as stack:
        direct = f"http://127.0.0.1:{stack.web_port}"
        crowds = [Crowd(direct, ["orders"] * 5), Crowd(stack.url, ["orders"] * 5)]
        for crowd in crowds:
            await crowd.start()
        assert stack.worker is not None
        assert stack.valkey is not None
        stack.worker.kill()
        stack.valkey.process.kill()

        await asyncio.to_thread(stack.send, "orders", 20)

        began = time.monotonic()
        for crowd in crowds:
            await crowd.until_received(20, within=WITHOUT_WORKER)
            assert crowd.faults(1, 20) == []
        assert time.monotonic() - began < WITHOUT_WORKER
        for crowd in crowds:
            await crowd.stop()


# --- a web process


async def test_no_stream_stays_behind_when_nobody_answers_its_proxy() -> None:
    """A hundred equal streams ask, by turns, a web process that is not there."""
    with running(with_pushpin=True, env={"ES_LINK_TIMEOUT": "3"}) as stack:
        crowd = Crowd(stack.url, ["orders"] * 100)
        await crowd.start(per_second=100)
        try:
            for count in (1, 2):
                assert stack.web is not None
                stack.web.kill()
                await asyncio.sleep(7)  # asked, refused, asked again
                await asyncio.to_thread(stack.start_web)
                await asyncio.to_thread(stack.send, "orders")
                await crowd.until_received(count, within=WITHOUT_WEB)
            assert crowd.faults(1, 2) == []
        finally:
            await crowd.stop()


# --- a proxy


async def test_dead_proxy_delays_no_other_and_comes_back_without_its_backlog(
    endpoint: GripEndpoint,
) -> None:
    """What is over BACKLOG_AFTER, a second here and thirty by default, is an hour as well."""
    stack = Stack(env={"ES_SET": '{"EVENTSTREAM_BACKLOG_AFTER": 1}'})
    first, second = Pushpin(stack.web_port), Pushpin(stack.web_port)
    # Of the second, only what it is given to publish is away: its clients stay connected.
    endpoint.forward = f"http://127.0.0.1:{second.config.publish_port}"
    proxies = [first.grip_url, f"{endpoint.url}/?key={KEY}"]
    stack.env["ES_GRIP"] = " ".join(proxies)
    names = [f"room-{n}" for n in range(8)]
    try:
        stack.start_web()
        stack.start_worker()
        stack.start_beat()
        healthy, deprived = Crowd(first.url, names), Crowd(second.url, names)
        await healthy.start()
        await deprived.start()
        # A held stream asks its next link once, about a second after it was held.
        await asyncio.sleep(4)
        endpoint.status = 503

        for _ in range(10):
            for name in names:
                await asyncio.to_thread(send_now, stack, name, 5)
                await asyncio.sleep(0.1)  # else it measures how fast the machine is
        await healthy.until_received(50, within=10)
        await asyncio.sleep(2)
        endpoint.status = 200
        await asyncio.to_thread(send_now, stack, "elsewhere", 1)
        await deprived.until_received(50, within=90)

        assert healthy.faults(1, 50) == deprived.faults(1, 50) == []
        delays = sorted(d for reader in healthy.readers for d in reader.latencies)
        assert delays[len(delays) // 2] < 0.5
        assert delays[-1] < 5
        published = [
            item for item in endpoint.items if "events-room" in item["channel"]
        ]
        assert 1 <= len(published) <= len(names)
    finally:
        await healthy.stop()
        await deprived.stop()
        stack.close()
        first.close()
        second.close()


def send_now(stack: Stack, channel: str, count: int) -> None:
    """Send events whose data is the time."""
    stack.send(channel, count, data=time.time())


def test_poison_event_is_buried_for_that_proxy_and_read_from_the_log(
    endpoint: GripEndpoint,
) -> None:
    stack = Stack(with_pushpin=True, env={"ES_LINK_TIMEOUT": "4"})
    assert stack.pushpin is not None
    endpoint.forward = f"http://127.0.0.1:{stack.pushpin.config.publish_port}"
    endpoint.poison = "poison"
    stack.env["ES_GRIP"] = f"{endpoint.url}/?key={KEY}"
    try:
        stack.start_web()
        stack.start_worker()
        with Stream(f"{stack.url}/events/?channel=orders").open() as stream:
            texts = ["a", "b", "poison", "c", "poison again"]
            for text in texts:
                stack.send("orders", data=text)

            received = stream.take(5, timeout=20)

            assert [json.loads(message.data) for message in received] == texts
            assert [m.id for m in received] == [f"orders:{n}" for n in range(1, 6)]
            assert stack.run(LETTERS).strip() == "[3, 5]"

            endpoint.poison = ""
            stack.run(RETRY)  # of use for the newest only, which nothing has overtaken
            assert stack.run(LETTERS).strip() == "[]"
            assert [eid for _, eid, _ in endpoint.events] == [1, 2, 4, 5]
            assert stream.is_silent(6)
    finally:
        stack.close()


LETTERS = """
from eventstream.models import DeadLetter
print(list(DeadLetter.objects.order_by("eid").values_list("eid", flat=True)))
"""

RETRY = """
from eventstream.models import DeadLetter
from eventstream.retrying import retry_dead_letters
for letter in DeadLetter.objects.order_by("position"):
    retry_dead_letters("default", letter.target, [letter.pk])
"""
