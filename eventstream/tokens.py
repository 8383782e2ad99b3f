"""Subscribe tokens: who may open a stream of which channels, signed, for a short time.

For clients without the site's cookies: other origins, native applications. A token says
who its bearer is and narrows what may be asked for. It grants nothing: the channel manager
is asked as ever, so that a permission is given and withdrawn in one place. It is needed to
open a stream, not to keep it: what is open is ended as any other, by
`channel_permission_changed` and by asking the channel manager again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

from django.conf import settings
from django.core import signing
from django.core.handlers.asgi import ASGIRequest
from django.utils.crypto import constant_time_compare, salted_hmac
from django.views.decorators.debug import sensitive_variables

from eventstream import conf
from eventstream.channelmanager import read_user
from eventstream.exceptions import (
    ExpiredTokenError,
    InvalidChannelError,
    InvalidTokenError,
    TokenError,
)
from eventstream.specs import check_channel, check_user

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
    from django.http import HttpRequest

MAX_LIFETIME = 24 * 3600
PREFIX = "es1."
"""Begins every token, so that another scheme's bearer token is not taken for one."""

OPERATOR_PREFIX = f"{PREFIX}operator."
OPERATOR_LIFETIME = 3600

_PARAMETER = "token"
_SALT = "eventstream.subscribe"
_OPERATOR_SALT = "eventstream.operator"  # a token of one kind is none of the other
_SCHEME = "bearer "
_KEPT = "_eventstream_token"


@dataclass(frozen=True)
class Grant:
    """What a token says.

    Attributes:
        user: Whose it is, as of now; None for an anonymous one.
        channels: All that may be asked for with it.
        is_operator: The admin made it: the channel manager is not asked, and the admin's
            own permission is.
    """

    user: AbstractBaseUser | None
    channels: frozenset[str]
    is_operator: bool = False


def make_subscribe_token(
    user: AbstractBaseUser | AnonymousUser | None,
    channels: Collection[str],
    *,
    lifetime: float = 300,
) -> str:
    """Return a token with which a client without cookies may open a stream.

    The client sends it as `Authorization: Bearer …`, or, where it can set no header, as
    `?token=…`. When it opens a stream after that time it gets a stream-error with the
    condition token-expired, with status 401 in the first case, and is to fetch a new one. The user's account going inactive and
    a new password end it at once.

    Args:
        user: Whose it is; None or AnonymousUser for an anonymous one.
        channels: What may be asked for with it, and what it asks for if the request names
            no channel. The channel manager is asked all the same.
        lifetime: Seconds for which a stream can be opened with it, up to a day.

    Raises:
        InvalidChannelError: A channel name is wrong, or there are none or too many.
        ValueError: The lifetime is out of range, or the user is not saved.
        TypeError: The user is something else, such as an id.
    """
    check_user(user)
    if isinstance(channels, str) or not channels:
        raise InvalidChannelError("channels must be a non-empty list of channel names")
    names = sorted({check_channel(name) for name in channels})
    limit = conf.get_options().channel_limit
    if len(names) > limit:
        raise InvalidChannelError(
            f"channels: {len(names)} given, a stream has at most "
            f"EVENTSTREAM_CHANNEL_LIMIT = {limit}"
        )
    is_number = isinstance(lifetime, int | float)
    if not (is_number and 0 < lifetime <= MAX_LIFETIME):
        raise ValueError(f"lifetime must be up to {MAX_LIFETIME} seconds: {lifetime!r}")
    expires = int(time.time() + lifetime)
    user_id, stamp = "", ""
    if user is not None and user.is_authenticated:
        if user.pk is None:
            raise ValueError("user must be saved: a token names its primary key")
        user_id, stamp = str(user.pk), next(_stamps(user))
    content = [expires, user_id, stamp, names]
    signer = signing.Signer(salt=_SALT)
    return PREFIX + signer.sign_object(content, compress=True)


def make_operator_token(user: AbstractBaseUser, channel: str) -> str:
    """Return a token with which the admin's page opens the stream of any channel.

    It says who asks. That the user may look at any event in the admin is asked when the
    stream is opened and as often as anybody's permission, so it grants nothing by itself.

    Raises:
        InvalidChannelError: The channel name is wrong.
    """
    expires = int(time.time() + OPERATOR_LIFETIME)
    content = [expires, str(user.pk), next(_stamps(user)), [check_channel(channel)]]
    signer = signing.Signer(salt=_OPERATOR_SALT)
    return OPERATOR_PREFIX + signer.sign_object(content, compress=True)


@dataclass(frozen=True)
class _Taken:
    """A token that is out of its request; nothing that is shown it shows the text."""

    text: str = field(repr=False)
    is_in_header: bool


@sensitive_variables()
def hide_token(request: HttpRequest) -> None:
    """Take the token out of the request, and keep it for take_grant.

    So no log, error page or reporter that is shown the request afterwards can show it, also
    where nobody asks what it says. The header wins over the query.
    """
    header = request.META.get("HTTP_AUTHORIZATION", "")
    token = ""
    is_in_header = False
    if header.lower().startswith(_SCHEME + PREFIX):
        token = header[len(_SCHEME) :].strip()
        is_in_header = True
        del request.META["HTTP_AUTHORIZATION"]
        request.__dict__.pop("headers", None)  # a copy of META, made on first use
    if _PARAMETER in request.GET:
        token = token or request.GET.get(_PARAMETER, "") or "-"
        _forget_parameter(request)
    if token:
        request.__dict__[_KEPT] = _Taken(token, is_in_header)


def take_grant(request: HttpRequest) -> Grant | None:
    """Return what the request's token says, None if it has none. It is in no request after.

    Raises:
        ExpiredTokenError: A new one will do.
        InvalidTokenError: It is none of this site's, or its account is not active.
    """
    hide_token(request)
    taken: _Taken | None = request.__dict__.pop(_KEPT, None)
    if taken is None:
        return None
    try:
        return read_subscribe_token(taken.text, now=time.time())
    except TokenError as error:
        error.is_in_header = taken.is_in_header
        raise


@sensitive_variables()
def _forget_parameter(request: HttpRequest) -> None:
    query = request.GET.copy()
    del query[_PARAMETER]
    # Not by its own way to write it, in the client's charset, which may not have all of it.
    text = urlencode(list(query.lists()), doseq=True, errors="replace")
    request.GET = query  # type: ignore[assignment]
    request.META["QUERY_STRING"] = text
    # What servers write into their access logs: uvicorn from the scope, gunicorn from these.
    if isinstance(request, ASGIRequest):
        scope = cast("dict[str, Any]", request.scope)
        scope["query_string"] = text.encode()
    for name in ("RAW_URI", "REQUEST_URI"):
        if name in request.META:
            path = request.META[name].partition("?")[0]
            request.META[name] = f"{path}?{text}" if text else path


@sensitive_variables()
def read_subscribe_token(token: str, *, now: float) -> Grant:
    """Return what a token says.

    Args:
        token: As make_subscribe_token gave it.
        now: Seconds since the epoch.

    Raises:
        ExpiredTokenError: A new one will do.
        InvalidTokenError: It is none of this site's, or its account is not active.
    """
    invalid = InvalidTokenError("The token is not one of this site")
    if not token.startswith(PREFIX):
        raise invalid
    is_operator = token.startswith(OPERATOR_PREFIX)
    prefix, salt = (OPERATOR_PREFIX, _OPERATOR_SALT) if is_operator else (PREFIX, _SALT)
    try:
        content = signing.Signer(salt=salt).unsign_object(token.removeprefix(prefix))
        expires, user_id, stamp, names = content
    except (signing.BadSignature, ValueError, TypeError):
        raise invalid from None
    if expires <= now:
        raise ExpiredTokenError("The token has expired: fetch a new one")
    user = None
    if user_id:
        user = read_user(user_id)
        if user is None or not user.is_active:
            raise InvalidTokenError("The token's account is not active")
        if not any(constant_time_compare(stamp, known) for known in _stamps(user)):
            raise ExpiredTokenError("The token has expired: fetch a new one")
    return Grant(user, frozenset(names), is_operator)


def _stamps(user: AbstractBaseUser) -> Iterator[str]:
    """Yield what changes with the password, as the hash in Django's sessions does.

    By the secret key first, then by each of its fallbacks: a token that was made with one
    of those is good for its time, as its signature is.
    """
    secrets = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    for secret, text in zip(secrets, hashes, strict=False):
        yield salted_hmac(_SALT, text, secret=secret).hexdigest()[:16]
