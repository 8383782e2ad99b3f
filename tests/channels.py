"""A channel manager with every kind of channel."""

from __future__ import annotations

from django.contrib.auth.models import AbstractBaseUser

from eventstream.channelmanager import DefaultChannelManager


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
