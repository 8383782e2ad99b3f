"""text/event-stream, and a page that shows a stream live."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rest_framework.renderers import (
    BaseRenderer,
    BrowsableAPIRenderer,
    JSONRenderer,
)
from rest_framework.utils.encoders import JSONEncoder

from eventstream import sse

_CONDITIONS = {401: "not-authenticated", 403: "forbidden", 429: "too-many-requests"}


class SSEEventRenderer(BaseRenderer):
    """What is not a stream, for a client that accepts nothing else.

    A refusal becomes a stream-error, with the refusal's own status: clients that can see a
    body learn the reason, and EventSource does not try again. Anything else is one event.
    """

    media_type = "text/event-stream"
    format = "text/event-stream"
    charset = "utf-8"

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,
        renderer_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        if data is None:
            return b""
        response = (renderer_context or {}).get("response")
        status = getattr(response, "status_code", 200)
        if status < 400:
            text = json.dumps(data, cls=JSONEncoder)
            return sse.encode_event("message", text).encode()
        condition = _CONDITIONS.get(status, "bad-request")
        if status >= 500:
            condition = "internal-error"
        return sse.encode_error(condition, _describe(data), {"status": status}).encode()


def _describe(data: Any) -> str:
    """Return a refusal as text: of most a `detail`, of a ValidationError a list of texts.

    One that names fields is its JSON.
    """
    detail = data.get("detail") if isinstance(data, dict) else data
    if isinstance(detail, list) and all(isinstance(text, str) for text in detail):
        detail = " ".join(detail)
    if isinstance(detail, str) and detail:
        return str(detail)
    return json.dumps(data, cls=JSONEncoder)


class BrowsableAPIEventStreamRenderer(BrowsableAPIRenderer):
    """The browsable API's page of a stream: its events, as they come."""

    format = "api_sse"
    template = "eventstream/drf/api.html"

    def get_content(
        self,
        renderer: BaseRenderer | None,
        data: Any,
        accepted_media_type: str | None,
        renderer_context: Mapping[str, Any],
    ) -> str:
        """Show what the view says about the stream as JSON, whatever else it renders."""
        context = {"indent": 4}
        return JSONRenderer().render(data, "application/json", context).decode()

    def get_context(
        self,
        data: Any,
        accepted_media_type: str | None,
        renderer_context: Mapping[str, Any],
    ) -> dict[str, Any]:
        context = super().get_context(data, accepted_media_type, renderer_context)
        is_stream = renderer_context["response"].status_code == 200
        context["event_types"] = data["messages_types"] if is_stream else None
        return context
