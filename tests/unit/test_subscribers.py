"""How a stream waits to be woken."""

from __future__ import annotations

import asyncio

import pytest

from eventstream.hub.subscribers import Subscriber
from eventstream.reading import Reader


@pytest.fixture
def subscriber() -> Subscriber:
    return Subscriber(Reader(("orders",), ""), [])


async def test_stream_that_waits_is_woken(subscriber: Subscriber) -> None:
    waiting = asyncio.create_task(subscriber.wait())
    await asyncio.sleep(0)

    subscriber.wake()

    await asyncio.wait_for(waiting, 5)


async def test_wake_before_the_wait_is_not_lost(subscriber: Subscriber) -> None:
    subscriber.wake()
    subscriber.wake()

    await asyncio.wait_for(subscriber.wait(), 5)

    with pytest.raises(TimeoutError):  # once: nothing came since
        await asyncio.wait_for(subscriber.wait(), 0.01)


async def test_cancelled_wait_leaves_nothing_to_wake(subscriber: Subscriber) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscriber.wait(), 0.01)

    subscriber.wake()

    await asyncio.wait_for(subscriber.wait(), 5)
