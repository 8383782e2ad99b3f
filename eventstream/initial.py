"""The initial state: what a stream begins with in a channel where it has no position.

The position comes first, then the state, then whoever may not read it is turned away. So
the state holds at least everything up to the position, and no event is between the two.
It may hold some of what follows, too: an event that commits while the state is being read
is in it and comes by the stream. Clients must not mind an event twice in this one place.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from django.db import InterfaceError, OperationalError

from eventstream import sse
from eventstream.channelmanager import (
    ChannelManagerBase,
    find_user,
    get_channelmanager,
    initial_states,
)
from eventstream.exceptions import InitialStateError
from eventstream.specs import EventSpec, make_event

logger = logging.getLogger(__name__)


def has_initial_states() -> bool:
    """Say whether the channel manager gives any channel an initial state."""
    method = type(get_channelmanager()).get_initial_state
    return method is not ChannelManagerBase.get_initial_state


def read_initial_states(user_id: str, channels: Collection[str]) -> dict[str, str]:
    """Return the initial state of those of the channels that have one, encoded, without id.

    Call it after the positions in the channels are known, never before, and ask permission
    again afterwards: it may have been withdrawn in between. Blocks on whatever the channel
    manager does.

    Raises:
        InitialStateError: The channel manager failed, or gave what cannot be sent. Logged.
        ChannelPermissionError: The account is gone, or no longer active.
    """
    if not channels or not has_initial_states():
        return {}
    user = find_user(user_id)
    found = {}
    try:
        for channel, state in initial_states(user, channels).items():
            spec = EventSpec(
                channel, state.event_type, state.data, json_encode=state.json_encode
            )
            event = make_event(spec)
            found[channel] = sse.encode_data(event.type, event.data) + "\n"
    except (OperationalError, InterfaceError):
        raise  # the database, which the caller may try again
    except Exception as error:
        logger.exception("No initial state of %s", ", ".join(sorted(channels)))
        raise InitialStateError(str(error)) from error
    return found


def encode_initial_state(body: str, event_id: str) -> str:
    """Return the event as the client receives it, with the position that it leads to."""
    return f"id: {event_id}\n{body}" if event_id else body
