"""The public API as a project's type checker sees it. Never run: `make types` reads it.

What must be refused is marked: mypy reports a mark that is not needed.
"""

from __future__ import annotations

from typing import assert_type

from django.contrib.auth.models import AbstractBaseUser, User

import eventstream
from eventstream import (
    EventSpec,
    EventState,
    SentEvent,
    achannel_permission_changed,
    aget_current_event_id,
    asend_event,
    asend_events,
    channel_permission_changed,
    get_current_event_id,
    send_event,
    send_events,
)
from eventstream.channelmanager import DefaultChannelManager, InitialState
from eventstream.testing import EventStreamTestClient, ReceivedEvent


class Blocking(DefaultChannelManager):
    def can_read_channel(self, user: AbstractBaseUser | None, channel: str) -> bool:
        return user is not None

    def is_channel_reliable(self, channel: str) -> bool:
        return True

    def get_initial_state(
        self, user: AbstractBaseUser | None, channel: str
    ) -> InitialState | None:
        return InitialState({"a": 1})


class Async(DefaultChannelManager):
    async def can_read_channel(
        self, user: AbstractBaseUser | None, channel: str
    ) -> bool:
        return True

    async def get_initial_state(
        self, user: AbstractBaseUser | None, channel: str
    ) -> InitialState | None:
        return None


class OfOwnUsers(DefaultChannelManager):
    """With the project's user model."""

    def can_read_channel(self, user: User | None, channel: str) -> bool:
        return user is not None and user.groups.filter(name=channel).exists()

    async def get_initial_state(
        self, user: User | None, channel: str
    ) -> InitialState | None:
        return InitialState(user and user.username)


class Wrong(DefaultChannelManager):
    def can_read_channel(self, user: User | None, channel: str) -> str:  # type: ignore[override]
        return "yes"


def sends(user: User) -> None:
    sent = send_event("a", "message", {"b": 1}, skip_user_ids=[user.pk])
    assert_type(sent, SentEvent)
    assert_type(sent.event_id, int | None)
    assert_type(sent.state(), EventState)
    assert_type(send_events([EventSpec("a", "message", 1)]), list[SentEvent])
    assert_type(get_current_event_id(["a"]), str)
    channel_permission_changed(user, "a")
    channel_permission_changed(None, "a")
    send_event(1, "message", 2)  # type: ignore[arg-type]
    send_event("a", "message")  # type: ignore[call-arg]
    send_event("a", "message", 1, using=2)  # type: ignore[arg-type]
    EventSpec("a", "message", 1).channel = "b"  # type: ignore[misc]
    eventstream.send_evnt("a", "message", 1)  # type: ignore[attr-defined]


async def sends_async(user: User) -> None:
    assert_type(await asend_event("a", "message", 1), SentEvent)
    assert_type(await asend_events([]), list[SentEvent])
    assert_type(await aget_current_event_id(["a"]), str)
    await achannel_permission_changed(user, "a")


def tests(client: EventStreamTestClient) -> None:
    client.assert_sent("a", ("message", {"b": 1}))
    assert_type(client.events("a"), list[ReceivedEvent])
    client.assert_sent("a", "message")  # type: ignore[arg-type]
