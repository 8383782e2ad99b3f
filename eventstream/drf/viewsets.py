"""A view set that streams: authentication, permissions and throttles are DRF's.

They are asked when a stream is opened. While it is open, the channel manager is asked again,
as for any stream: see can_read_channel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import classonlymethod
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.renderers import BaseRenderer, BrowsableAPIRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from eventstream import views
from eventstream.cors import allow_origin
from eventstream.drf.renderers import (
    BrowsableAPIEventStreamRenderer,
    SSEEventRenderer,
)
from eventstream.tokens import hide_token
from eventstream.transactions import outside_transactions


class EventsViewSet(ViewSet):
    """Events, as they are sent.

    A stream for clients that accept text/event-stream, this page for browsers.

    Which channels: `channels` of the class, else the last part of the path, else
    `?channels=a,b`, else what the channel manager finds in the request.
    """

    channels: Sequence[str] = ()
    messages_types: Sequence[str] = ()
    # The project's defaults are for other views: whatever they are, this one streams.
    renderer_classes: Sequence[type[BaseRenderer]] = (
        SSEEventRenderer,
        BrowsableAPIEventStreamRenderer,
    )
    http_method_names = ["get", "options"]

    def __init__(
        self,
        channels: Sequence[str] | None = None,
        messages_types: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        given: dict[str, Any] = {}
        if channels is not None:
            given["channels"] = self.channels = channels
        if messages_types is not None:
            given["messages_types"] = self.messages_types = messages_types
        # router.register("events", EventsViewSet(channels=["a"])): routers ask what they
        # are given for as_view, which is otherwise the class's alone.
        self.as_view = functools.partial(type(self).as_view, **given)  # type: ignore[method-assign]

    @classonlymethod
    def as_view(  # type: ignore[override]
        cls,  # noqa: N805
        actions: Any = None,
        **initkwargs: Any,
    ) -> Callable[..., HttpResponseBase]:
        """Return the view. A stream is no transaction, whatever ATOMIC_REQUESTS says."""
        if "next_link" in (actions or {}).values():
            # No schema shows it: it is between the proxy and us. Not said to @action, as
            # drf-spectacular derives from the schema that an action has.
            initkwargs["schema"] = None
        view: Callable[..., HttpResponseBase] = super().as_view(actions, **initkwargs)
        return outside_transactions(view)

    def initialize_request(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> Request:
        hide_token(request)  # before anything can refuse it
        return super().initialize_request(request, *args, **kwargs)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # A next link is signed, and asked by the proxy for a user who is not here; a
        # preflight has no credentials by definition.
        if self.action != "next_link" and request.method != "OPTIONS":
            super().initial(request, *args, **kwargs)

    def list(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Stream the channels of the class, or those that the query names."""
        query = [
            name for text in request.GET.getlist("channels") for name in text.split(",")
        ]
        if self.channels and (query or request.GET.getlist("channel")):
            raise ValidationError(
                "The channels of this stream are fixed: leave `channels` and `channel` "
                "out of the query."
            )
        return self._respond(request, self.channels or query, kwargs)

    # Below the stream's own path, which may end with the channel.
    @action(
        detail=False,
        # Links end with a slash, whether or not the router's paths do.
        url_path=r"(?:[^/.]+/)?next/(?P<token>[^/]+)/?",
        url_name="next-link",
    )
    def next_link(self, request: Request, token: str, **_: Any) -> HttpResponseBase:
        """Answer the GRIP proxy that holds one of the streams."""
        return views.next_link(request._request, token)

    @action(detail=False, url_path=r"(?P<channel>[^/.]+)")
    def channel(
        self, request: Request, channel: str = "", **kwargs: Any
    ) -> HttpResponseBase:
        """Stream the channel that the path names."""
        if self.channels or self._chooses_in_list():
            raise ValidationError(
                "The channels of this stream are fixed: leave the channel out of the path."
            )
        return self._respond(request, [channel], kwargs)

    def _chooses_in_list(self) -> bool:
        """Say whether the class has a `list` of its own, which may choose the channels.

        It is not asked for a channel in the path: that would be one of the client's choice.
        """
        return (
            type(self).list is not EventsViewSet.list
            and type(self).channel is EventsViewSet.channel
        )

    def options(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:  # type: ignore[override]
        """Answer a preflight as the settings say."""
        return views.events(request._request)

    def _respond(
        self, request: Request, channels: Sequence[str], kwargs: dict[str, Any]
    ) -> HttpResponseBase:
        if isinstance(request.accepted_renderer, BrowsableAPIRenderer):
            names = [*channels, *request.GET.getlist("channel")]
            return Response({"channels": names, "messages_types": self._types(request)})
        if channels:
            kwargs = {"channels": channels}
        return views.events(request, **kwargs)

    def _types(self, request: Request) -> Sequence[str]:
        asked = request.GET.get("messages_types", "")
        return list(self.messages_types) or (asked.split(",") if asked else ["message"])

    def finalize_response(
        self, request: Any, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        if isinstance(response, Response):
            # A refusal, or the page: without this a script of another origin, which may
            # read the stream, could not read why it is refused.
            allow_origin(request._request, response)
            response["Cache-Control"] = "no-cache, no-store, private"
        return super().finalize_response(request, response, *args, **kwargs)


def configure_events_view_set(
    channels: Sequence[str] | None = None, messages_types: Sequence[str] | None = None
) -> type[EventsViewSet]:
    """Return a view set of these channels, to be registered on a router.

    Args:
        channels: Those of the stream; None leaves it to the request.
        messages_types: Event types that the browsable page shows; default: message.
    """
    attributes = {
        "channels": channels or (),
        "messages_types": tuple(messages_types or ()),
        "__doc__": EventsViewSet.__doc__,
        "__module__": __name__,
    }
    return type("EventsViewSet", (EventsViewSet,), attributes)
