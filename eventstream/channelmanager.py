"""Which channels a request asks for, may read, and are reliable."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import router
from django.http import HttpRequest

from eventstream import conf
from eventstream.exceptions import ChannelPermissionError

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser

    # With django-stubs the project's own user model: an override may name that.
    from django.contrib.auth.models import _User as User

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class InitialState:
    """The state of a channel, sent as an event to a stream that has no position in it.

    Attributes:
        data: Anything that Django's JSON encoder takes; with json_encode=False a string.
            At most EVENTSTREAM_MAX_EVENT_BYTES when encoded.
        event_type: The `event:` field.
        json_encode: Whether to encode the data as JSON.
    """

    data: Any = field(repr=False)  # logs and error pages must not show it
    event_type: str = "initial-state"
    json_encode: bool = True


@runtime_checkable
class Authorizer(Protocol):
    """An authorizer of release 1.1."""

    def can_read_channel(
        self, user: User | None, channel: str
    ) -> bool | Awaitable[bool]: ...


class ChannelManagerBase:
    """The extension point. Subclass DefaultChannelManager and override what differs.

    Any method may be `async def`. It then runs in the event loop that serves the request,
    or, in a worker, a shell or the hub's threads, in a loop made for the call: what belongs
    to one loop, such as an HTTP client, must be opened within the call.
    """

    def get_channels_for_request(
        self, request: HttpRequest, view_kwargs: Mapping[str, Any]
    ) -> Collection[str] | Awaitable[Collection[str]]:
        """Return the channels that the request asks for."""
        raise NotImplementedError

    def can_read_channel(
        self, user: User | None, channel: str
    ) -> bool | Awaitable[bool]:
        """Say whether the user (None: anonymous) may read the channel."""
        raise NotImplementedError

    def is_channel_reliable(self, channel: str) -> bool | Awaitable[bool]:
        """Say whether events of the channel are stored, numbered and replayable.

        Asked at every send, so it should not wait for anything.
        """
        raise NotImplementedError

    def get_initial_state(
        self, user: User | None, channel: str
    ) -> InitialState | Awaitable[InitialState | None] | None:
        """Return the channel's state as of now, or None for none.

        Asked for a stream that has no position in the channel: a new one, one that was
        reset, and, as a best-effort channel has no positions, every one of those. Read it
        from the database that events are sent in, not from a replica: it must hold what
        is committed. It may already hold an event that then comes by the stream.
        """
        return None


class DefaultChannelManager(ChannelManagerBase):
    """Channels from the view's keywords, else from the query; all readable and reliable."""

    def get_channels_for_request(
        self, request: HttpRequest, view_kwargs: Mapping[str, Any]
    ) -> Collection[str] | Awaitable[Collection[str]]:
        if "format-channels" in view_kwargs:
            formats = _check_list(view_kwargs["format-channels"], "format-channels")
            return {template.format(**view_kwargs) for template in formats}
        if "channels" in view_kwargs:
            return set(_check_list(view_kwargs["channels"], "channels"))
        if "channel" in view_kwargs:
            return {view_kwargs["channel"]}
        return set(request.GET.getlist("channel"))

    def can_read_channel(
        self, user: User | None, channel: str
    ) -> bool | Awaitable[bool]:
        path = conf.get_options().authorizer_class
        if path is None:
            return True
        authorizer: Authorizer = conf.load(path)
        return authorizer.can_read_channel(user, channel)

    def is_channel_reliable(self, channel: str) -> bool | Awaitable[bool]:
        return True


def _check_list(names: Collection[str], what: str) -> Collection[str]:
    """Return what is a list of names: of a text alone, each letter would be a channel.

    Raises:
        ImproperlyConfigured: It is a text, or none at all.
    """
    if isinstance(names, str):
        raise ImproperlyConfigured(f"{what} must be a list of names: [{names!r}]")
    if not isinstance(names, Iterable):  # a method without a return, for instance
        raise ImproperlyConfigured(f"{what} must be a list of names, not {names!r}")
    return names


def get_channelmanager() -> ChannelManagerBase:
    """Return the channel manager that the settings name."""
    manager: ChannelManagerBase = conf.load(conf.get_options().channelmanager_class)
    return manager


def _resolve(answers: Sequence[T | Awaitable[T]]) -> list[T]:
    """Return the manager's answers, waited for together where its methods are async.

    A coroutine is truthy: an answer that nobody waits for would permit everything. Not to
    be called in the thread of a running event loop.
    """
    if not any(inspect.isawaitable(answer) for answer in answers):
        return cast("list[T]", list(answers))

    async def wait(answer: T | Awaitable[T]) -> T:
        return await answer if inspect.isawaitable(answer) else answer

    async def wait_for_all() -> list[T]:
        return list(await asyncio.gather(*[wait(answer) for answer in answers]))

    return async_to_sync(wait_for_all)()


def requested_channels(
    request: HttpRequest, view_kwargs: Mapping[str, Any]
) -> set[str]:
    """Return the channels that a request asks for.

    Raises:
        ImproperlyConfigured: The route, or the channel manager, gives no list.
    """
    manager = get_channelmanager()
    [names] = _resolve([manager.get_channels_for_request(request, view_kwargs)])
    return set(_check_list(names, "what get_channels_for_request returns"))


def is_reliable(channel: str) -> bool:
    """Say whether the channel is stored: by its manager, and by the settings."""
    if conf.get_options().storage_class is None:
        return False
    return _resolve([get_channelmanager().is_channel_reliable(channel)])[0]


def refused_channels(
    user: AbstractBaseUser | None, channels: Collection[str]
) -> list[str]:
    """Return those of the channels that the user may not read, sorted."""
    can_read = get_channelmanager().can_read_channel
    names = sorted(channels)
    answers = _resolve([can_read(cast("User | None", user), name) for name in names])
    return [name for name, may in zip(names, answers, strict=True) if not may]


OPERATOR_PERMISSION = "eventstream.view_event"
_OPERATOR = "operator:"


def operator_id(user: AbstractBaseUser) -> str:
    """Return the user id of an operator's own streams, which the admin opens.

    They show every channel and every event, also those that are not for the user: what
    may be read so is a permission of the admin, and not the channel manager's to say.
    """
    return f"{_OPERATOR}{user.pk}"


def is_operator(user_id: str) -> bool:
    """Say whether a stream is an operator's."""
    return user_id.startswith(_OPERATOR)


def check_reader(user_id: str, channels: Collection[str]) -> None:
    """Ask whether a stream may go on: the account, and the channel manager.

    Of an operator's, the account and its permission in the admin.

    Raises:
        ChannelPermissionError: The account is gone, or some channel may not be read.
    """
    user = find_user(user_id)
    if is_operator(user_id):
        check_operator(user, channels)
    else:
        check_permission(user, channels)


def check_operator(user: AbstractBaseUser | None, channels: Collection[str]) -> None:
    """Ask whether the user may look at any event in the admin.

    Raises:
        ChannelPermissionError: Not.
    """
    found = cast("Any", user)
    if found is None or not (
        found.is_active and found.is_staff and found.has_perm(OPERATOR_PERMISSION)
    ):
        raise ChannelPermissionError(sorted(channels))


def check_permission(user: AbstractBaseUser | None, channels: Collection[str]) -> None:
    """Ask the channel manager.

    Raises:
        ChannelPermissionError: Some channel may not be read.
    """
    refused = refused_channels(user, channels)
    if refused:
        raise ChannelPermissionError(refused)


def read_user(user_id: str) -> AbstractBaseUser | None:
    """Return an account as of now, None if there is none.

    From where accounts are written: a replica may not know yet that this one was
    deactivated, and it would read on.
    """
    model = get_user_model()
    accounts = model._default_manager.using(router.db_for_write(model))
    return accounts.filter(pk=user_id).first()


def find_user(user_id: str) -> AbstractBaseUser | None:
    """Return the user of a stream as of now, None for the anonymous one.

    Raises:
        ChannelPermissionError: The account is gone, or no longer active.
    """
    if not user_id:
        return None
    user_id = user_id.removeprefix(_OPERATOR)
    user = read_user(user_id)
    if user is None or not user.is_active:
        raise ChannelPermissionError(["(the account is not active)"])
    return user


def may_read(user_id: str, channel: str) -> bool:
    """Say whether the user may read the channel now; not, if that cannot be found out."""
    try:
        check_permission(find_user(user_id), [channel])
    except ChannelPermissionError:
        return False
    except Exception:
        logger.exception("The channel manager failed for channel %s", channel)
        return False
    return True


def initial_states(
    user: AbstractBaseUser | None, channels: Collection[str]
) -> dict[str, InitialState]:
    """Return the initial state of those of the channels that have one.

    Raises:
        ImproperlyConfigured: The channel manager returned something else.
    """
    ask = get_channelmanager().get_initial_state
    names = sorted(channels)
    states = _resolve([ask(cast("User | None", user), name) for name in names])
    for state in states:
        if not isinstance(state, InitialState | None):
            raise ImproperlyConfigured(
                "get_initial_state must return InitialState(data) or None, not "
                f"{type(state).__name__}"
            )
    return {
        name: state
        for name, state in zip(names, states, strict=True)
        if state is not None
    }


def asks_permissions() -> bool:
    """Say whether anything here can refuse a channel: if not, nobody need ask again."""
    manager = get_channelmanager()
    is_default = (
        type(manager).can_read_channel is DefaultChannelManager.can_read_channel
    )
    return not is_default or conf.get_options().authorizer_class is not None
