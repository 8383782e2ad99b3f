"""The initial states with which streams begin in the hub."""

from __future__ import annotations

import asyncio
import functools

from eventstream.channelmanager import asks_permissions, check_reader, is_operator
from eventstream.exceptions import ChannelPermissionError
from eventstream.hub.permissions import encode_refusal
from eventstream.hub.pool import ReaderPool
from eventstream.hub.subscribers import Subscriber
from eventstream.hub.tails import ChannelState, retrieve
from eventstream.initial import (
    encode_initial_state,
    has_initial_states,
    read_initial_states,
)


class Beginnings:
    """Reads initial states in the pool's threads."""

    def __init__(self, pool: ReaderPool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()

    async def read(
        self, subscriber: Subscriber, states: list[ChannelState]
    ) -> dict[str, str]:
        """Read initial states, and put the reader where each of them leads to.

        The places are known before the states are read: no event is between the two.
        """
        if not states or not has_initial_states():
            return {}
        user_id = subscriber.reader.user_id
        while True:
            loss_count = subscriber.loss_count
            try:
                found = await asyncio.gather(
                    *[self._read_state(s, user_id) for s in states]
                )
            except ChannelPermissionError as error:
                subscriber.error = encode_refusal(error)
                return {}
            if subscriber.loss_count == loss_count:
                break  # else the places may be of a log that has lost its end since
        beginnings = {}
        for state, (place, body) in zip(states, found, strict=True):
            if body:
                subscriber.places[state.name] = place
                subscriber.unbegun |= {state.name}
                beginnings[state.name] = body
        return beginnings

    async def _read_state(self, state: ChannelState, user_id: str) -> tuple[int, str]:
        """Return a place and the channel's state as of then or later, "" if it has none.

        All of a user's streams that ask at a time share one read, hence its place.
        """
        task = state.beginnings.get(user_id)
        if task is None:
            task = self._loop.create_task(self._ask(state, user_id))
            state.beginnings[user_id] = task
            task.add_done_callback(retrieve)
            task.add_done_callback(lambda _: state.beginnings.pop(user_id, None))
        return await asyncio.shield(task)

    async def _ask(self, state: ChannelState, user_id: str) -> tuple[int, str]:
        async with self._pool.slots:
            place = state.head
            read = functools.partial(_read_initial_state, user_id, state.name)
            return place, await self._pool.run(read)


def encode_beginnings(subscriber: Subscriber, beginnings: dict[str, str]) -> str:
    """Return the states as the reader receives them, and note that it has them."""
    parts = []
    for state in subscriber.states:
        body = beginnings.get(state.name)
        if body is None:
            continue
        subscriber.unbegun -= {state.name}
        # Where there is no log the position does not move: with its id again, a
        # client would take the state for an event that it has had.
        event_id = subscriber.event_id() if state.is_reliable else ""
        parts.append(encode_initial_state(body, event_id))
    return "".join(parts)


def _read_initial_state(user_id: str, channel: str) -> str:
    """Return a channel's initial state, "" if it has none. Permission is asked after it."""
    body = read_initial_states(user_id, [channel]).get(channel, "")
    if body and (asks_permissions() or is_operator(user_id)):
        check_reader(user_id, [channel])
    return body
