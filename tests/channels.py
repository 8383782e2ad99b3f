"""Channel managers with every kind of channel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, Group
from django.http import HttpRequest

from eventstream.channelmanager import (
    ChannelManagerBase,
    DefaultChannelManager,
    InitialState,
)


class ChannelManager(DefaultChannelManager):
    """`private-<pk>` is that user's; `members` takes any active user in the group of that
    name; `live-…` is best-effort."""

    def can_read_channel(self, user: AbstractBaseUser | None, channel: str) -> bool:
        if channel.startswith("private-"):
            return user is not None and channel == f"private-{user.pk}"
        if channel == "members":
            groups = getattr(user, "groups", None)
            return groups is not None and groups.filter(name="members").exists()
        return True

    def is_channel_reliable(self, channel: str) -> bool:
        return not channel.startswith("live-")


class StatefulChannelManager(ChannelManager):
    """`groups…` begins with the names of all groups."""

    def get_initial_state(
        self, user: AbstractBaseUser | None, channel: str
    ) -> InitialState | None:
        if not channel.startswith("groups"):
            return None
        return InitialState(
            list(Group.objects.order_by("pk").values_list("name", flat=True))
        )


class SlowChannelManager(ChannelManager):
    """A state takes its time, and so does the permission to read `slow…`."""

    def can_read_channel(self, user: AbstractBaseUser | None, channel: str) -> bool:
        if channel.startswith("slow"):
            time.sleep(2)
        return super().can_read_channel(user, channel)

    def get_initial_state(
        self, user: AbstractBaseUser | None, channel: str
    ) -> InitialState:
        time.sleep(2)
        return InitialState("old")


class AsyncChannelManager(ChannelManagerBase):
    """The same with nothing but async methods, and `mine-<pk>` as another `private-<pk>`."""

    async def get_channels_for_request(
        self, request: HttpRequest, view_kwargs: Mapping[str, Any]
    ) -> list[str]:
        await asyncio.sleep(0)
        return request.GET.getlist("channel")

    async def can_read_channel(
        self, user: AbstractBaseUser | None, channel: str
    ) -> bool:
        if channel.startswith(("private-", "mine-")):
            return user is not None and channel.partition("-")[2] == str(user.pk)
        if channel == "members":
            groups = getattr(user, "groups", None)
            return groups is not None and await groups.filter(name="members").aexists()
        return True

    async def is_channel_reliable(self, channel: str) -> bool:
        await asyncio.sleep(0)
        return not channel.startswith("live-")
