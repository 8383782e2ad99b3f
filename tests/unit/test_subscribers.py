"""How a stream waits to be woken, and takes what its channels' tails have."""

from __future__ import annotations

import asyncio

import pytest

from eventstream.hub.subscribers import Subscriber
from eventstream.hub.tails import CHUNK_BYTES, ChannelState
from eventstream.reading import Reader
from eventstream.rows import LogEvent


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


async def test_stream_goes_on_after_a_chunk_that_has_nothing_for_it() -> None:
    state = ChannelState("orders", is_reliable=True)
    state.extend(
        [
            LogEvent(1, "message", "x" * CHUNK_BYTES, ",7,"),
            LogEvent(2, "message", "y", ""),
        ]
    )
    subscriber = Subscriber(Reader(("orders",), "7"), [state])
    subscriber.places["orders"] = 0

    assert subscriber.collect() == (b"", [])
    await asyncio.wait_for(subscriber.wait(), 5)
    assert subscriber.collect() == (b"id: orders:2\nevent: message\ndata: y\n\n", [])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscriber.wait(), 0.01)


async def test_channels_take_turns_where_there_is_a_megabyte_of_each() -> None:
    states = [ChannelState(name, is_reliable=True) for name in "abc"]
    for state in states:
        large = "x" * CHUNK_BYTES
        state.extend([LogEvent(n, "message", large, "") for n in (1, 2)])
    subscriber = Subscriber(Reader(("a", "b", "c"), ""), states)
    subscriber.places = dict.fromkeys("abc", 0)
    found = []

    while subscriber.places["c"] < 2:
        chunk, behind = subscriber.collect()
        assert (behind, len(chunk) < 2 * CHUNK_BYTES) == ([], True)
        found.append("".join(str(subscriber.places[name]) for name in "abc"))
        await asyncio.wait_for(subscriber.wait(), 5)
        subscriber.wake()  # by what else there is

    assert found == ["100", "110", "111", "211", "221", "222"]


def test_channel_whose_log_has_grown_past_a_lost_place_comes_first_and_alone() -> None:
    """The id of any event before its reset would name that place, which is a log's again."""
    states = [ChannelState(name, is_reliable=True) for name in "ab"]
    for state in states:
        state.extend([LogEvent(n, "message", "x", "") for n in (1, 2, 3)])
    subscriber = Subscriber(Reader(("a", "b"), ""), states)
    subscriber.places = {"a": 0, "b": 2}
    subscriber.lost = frozenset("b")

    assert subscriber.collect() == (b"", [states[1]])
    assert subscriber.places == {"a": 0, "b": 2}
