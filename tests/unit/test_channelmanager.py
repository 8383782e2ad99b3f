"""Which channels a request asks for, may read, and are reliable."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import RequestFactory
from pytest_django import Settings

from eventstream.channelmanager import (
    ChannelManagerBase,
    DefaultChannelManager,
    asks_permissions,
    initial_states,
    is_reliable,
    refused_channels,
    requested_channels,
)

DEFAULT = "eventstream.channelmanager.DefaultChannelManager"


class Authorizer:
    """As release 1.1 documents it."""

    def can_read_channel(self, user: Any, channel: str) -> bool:
        return user is not None or not channel.startswith("_")


@pytest.mark.parametrize(
    ("view_kwargs", "expected"),
    [
        ({}, {"q1", "q2"}),
        ({"channel": "one"}, {"one"}),
        ({"channels": ["a", "b"]}, {"a", "b"}),
        ({"format-channels": ["room-{room}", "all"], "room": 7}, {"room-7", "all"}),
    ],
)
def test_channels_come_from_the_view_else_from_the_query(
    view_kwargs: dict[str, Any], expected: set[str]
) -> None:
    request = RequestFactory().get("/?channel=q1&channel=q2")

    assert requested_channels(request, view_kwargs) == expected


class TextManager(DefaultChannelManager):
    def get_channels_for_request(self, request: HttpRequest, view_kwargs: Any) -> str:
        return "orders"


@pytest.mark.parametrize(
    ("manager", "view_kwargs"),
    [
        (DEFAULT, {"channels": "test"}),
        (DEFAULT, {"format-channels": "room-{room}", "room": 7}),
        (f"{__name__}.TextManager", {}),
    ],
)
def test_text_is_no_list_of_channels(
    settings: Settings, manager: str, view_kwargs: dict[str, Any]
) -> None:
    """Each of its letters would be one, and the stream silent for ever."""
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = manager

    with pytest.raises(ImproperlyConfigured, match="must be a list of names: "):
        requested_channels(RequestFactory().get("/"), view_kwargs)


class ForgetfulManager(DefaultChannelManager):
    """Whose author forgot a return, and an InitialState."""

    def get_channels_for_request(self, request: HttpRequest, view_kwargs: Any) -> Any:
        return None

    def get_initial_state(self, user: User | None, channel: str) -> Any:
        return [{"item": "private"}]


def test_manager_that_gives_something_else_is_told_what_it_should_give(
    settings: Settings,
) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.ForgetfulManager"

    with pytest.raises(ImproperlyConfigured, match="a list of names, not None"):
        requested_channels(RequestFactory().get("/"), {})
    text = r"return InitialState\(data\) or None, not list$"
    with pytest.raises(ImproperlyConfigured, match=text):
        initial_states(None, ["orders"])


def test_default_manager_allows_everything_and_need_not_be_asked_again(
    settings: Settings,
) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = DEFAULT

    assert refused_channels(None, ["a", "_b"]) == []
    assert not asks_permissions()
    assert is_reliable("live-x")


def test_authorizer_of_release_1_1_is_asked(settings: Settings) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = DEFAULT
    settings.EVENTSTREAM_AUTHORIZER_CLASS = f"{__name__}.Authorizer"

    assert refused_channels(None, ["b", "_z", "_a"]) == ["_a", "_z"]
    assert refused_channels(User(pk=1), ["_a"]) == []
    assert asks_permissions()


def test_without_storage_nothing_is_reliable(settings: Settings) -> None:
    assert is_reliable("orders")
    assert not is_reliable("live-x")

    settings.EVENTSTREAM_STORAGE_CLASS = None
    assert not is_reliable("orders")


class AsyncAuthorizer:
    async def can_read_channel(self, user: Any, channel: str) -> bool:
        return not channel.startswith("_")


class AsyncManager(ChannelManagerBase):
    """Every method async; the answers are waited for together."""

    def __init__(self) -> None:
        self.barrier: asyncio.Barrier | None = None

    async def get_channels_for_request(
        self, request: HttpRequest, view_kwargs: Mapping[str, Any]
    ) -> Collection[str]:
        return request.GET.getlist("room")

    async def can_read_channel(self, user: Any, channel: str) -> bool:
        if channel.startswith("slow-"):
            self.barrier = self.barrier or asyncio.Barrier(2)
            await asyncio.wait_for(self.barrier.wait(), 5)
        return not channel.endswith("-private")

    async def is_channel_reliable(self, channel: str) -> bool:
        return channel != "cursor"


class HalfAsyncManager(DefaultChannelManager):
    async def can_read_channel(self, user: Any, channel: str) -> bool:
        return channel == "orders"


def test_manager_may_be_async(settings: Settings) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.AsyncManager"
    request = RequestFactory().get("/?room=a&room=b")

    assert requested_channels(request, {}) == {"a", "b"}
    assert refused_channels(None, ["b-private", "a", "a-private"]) == [
        "a-private",
        "b-private",
    ]
    assert (is_reliable("orders"), is_reliable("cursor")) == (True, False)
    assert asks_permissions()


def test_async_answers_are_waited_for_together(settings: Settings) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.AsyncManager"

    assert refused_channels(None, ["slow-1", "slow-2-private"]) == ["slow-2-private"]


def test_some_methods_may_be_async(settings: Settings) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.HalfAsyncManager"

    assert refused_channels(None, ["orders", "other"]) == ["other"]
    assert is_reliable("orders")


def test_authorizer_may_be_async(settings: Settings) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = DEFAULT
    settings.EVENTSTREAM_AUTHORIZER_CLASS = f"{__name__}.AsyncAuthorizer"

    assert refused_channels(None, ["b", "_z", "_a"]) == ["_a", "_z"]
