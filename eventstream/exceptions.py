"""The error tree.

EventStreamError
├── InvalidEventError (ValueError)      bad argument of send_event; nothing written
│   ├── InvalidChannelError
│   ├── InvalidEventTypeError
│   └── InvalidDataError
├── UnknownDatabaseError (ValueError)   the alias has no outbox
├── UnknownTargetError (ValueError)     no target of that name is in the settings
├── BadRequestError (ValueError)        a reader's request cannot be understood
│   ├── InvalidPositionError            Last-Event-ID does not parse
│   ├── ResumeNotAllowedError           Last-Event-ID is that of a stream-error
│   └── ExpiredLinkError                a next link is too old or not ours
├── ChannelPermissionError              a reader may not read some channel
├── CannotGiveUpError                   an event does not wait for that target
├── TokenError                          a subscribe token does not open a stream
│   ├── ExpiredTokenError               it did, or its user has a new password
│   └── InvalidTokenError               it is not ours, or its account is not active
├── TooManyStreamsError                 a user or an address has, or opens, too many
├── AdoptionError                       there is no log of django-eventstream to take over
├── InitialStateError                   the channel manager failed to give one
└── PublishError                        a target did not accept a batch
    ├── PublishUnavailableError         refused, timed out, 5xx: retry later
    └── PublishRejectedError            an item can never be accepted
"""

from __future__ import annotations

from collections.abc import Sequence


class EventStreamError(Exception):
    """Base of every error that this package raises."""


class InvalidEventError(EventStreamError, ValueError):
    """An argument of send_event is wrong; nothing was written."""


class InvalidChannelError(InvalidEventError):
    """The channel name is empty, too long, has control characters, or is another outbox's."""


class InvalidEventTypeError(InvalidEventError):
    """The event type is empty, too long, has control characters, or is the protocol's own."""


class InvalidDataError(InvalidEventError):
    """The data cannot be encoded, or is larger than EVENTSTREAM_MAX_EVENT_BYTES."""


class UnknownDatabaseError(EventStreamError, ValueError):
    """The database alias is not one of EVENTSTREAM_DATABASES."""


class UnknownTargetError(EventStreamError, ValueError):
    """No target of that name is in the settings."""


class BadRequestError(EventStreamError, ValueError):
    """The request for a stream cannot be understood."""


class InvalidPositionError(BadRequestError):
    """Last-Event-ID or lastEventId does not parse."""


class ResumeNotAllowedError(BadRequestError):
    """The client tries to resume a stream that ended with stream-error."""


class ExpiredLinkError(BadRequestError):
    """A next link is too old, or was not signed by this site."""


class ChannelPermissionError(EventStreamError):
    """The reader may not read some of the channels.

    Attributes:
        channels: The channels that were refused.
    """

    def __init__(self, channels: Sequence[str]) -> None:
        self.channels = list(channels)
        super().__init__("Permission denied to channels: " + ", ".join(channels))


class CannotGiveUpError(EventStreamError):
    """The event is not one that waits for the target, or must not be given up."""


class TokenError(EventStreamError):
    """A subscribe token does not open a stream.

    Attributes:
        is_in_header: Whether it came as `Authorization: Bearer …`.
    """

    is_in_header = False


class ExpiredTokenError(TokenError):
    """It is too old, or its user has a new password. Another one will do."""


class InvalidTokenError(TokenError):
    """It is not signed by this site, or its account is not active."""


class TooManyStreamsError(EventStreamError):
    """A user or an address has, or opens, too many streams.

    Attributes:
        retry_after: Seconds after which it is worth trying again.
    """

    def __init__(self, message: str, *, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class AdoptionError(EventStreamError):
    """There is no log of django-eventstream that could be taken over."""


class InitialStateError(EventStreamError):
    """get_initial_state raised, or returned what cannot be sent."""


class PublishError(EventStreamError):
    """A target did not accept a batch."""


class PublishUnavailableError(PublishError):
    """The target may accept the same batch later; it may even have accepted it."""


class PublishRejectedError(PublishError):
    """The target will never accept this batch as it is.

    Attributes:
        status: The HTTP status of the answer.
    """

    def __init__(self, message: str, *, status: int) -> None:
        self.status = status
        super().__init__(message)
