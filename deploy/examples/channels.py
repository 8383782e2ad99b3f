"""The state with which a stream of a room begins."""

from __future__ import annotations

from django.contrib.auth.models import AbstractBaseUser

from deploy.examples.models import last_messages
from eventstream.channelmanager import DefaultChannelManager, InitialState


class ChannelManager(DefaultChannelManager):
    def get_initial_state(
        self, user: AbstractBaseUser | None, channel: str
    ) -> InitialState | None:
        if channel.startswith("room-"):
            return InitialState(last_messages(channel.removeprefix("room-")))
        return None
