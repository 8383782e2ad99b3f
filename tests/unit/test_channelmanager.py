"""Which channels a request asks for, may read, and are reliable."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import RequestFactory
from pytest_django import Settings

from eventstream.channelmanager import (
    DefaultChannelManager,
    asks_permissions,
    is_reliable,
    refused_channels,
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

    found = DefaultChannelManager().get_channels_for_request(request, view_kwargs)

    assert set(found) == expected


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
