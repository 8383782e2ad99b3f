"""Which pages of other origins may read: exactly those of the settings.

Source: WHATWG Fetch, "HTTP-CORS protocol".
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponseBase
from django.utils.cache import patch_vary_headers

from eventstream import conf

DEFAULT_HEADERS = "Authorization, Cache-Control, Last-Event-ID"
"""What a page may send: Authorization has a subscribe token. A "*" would not cover it."""

EXPOSED_HEADERS = "Retry-After"

PREFLIGHT_SECONDS = 600


def allow_origin(request: HttpRequest, response: HttpResponseBase) -> None:
    """Add what lets the request's origin read the answer, whatever its status.

    Credentials are for origins that the settings name. "*" lets everybody in without:
    echoing each origin together with credentials would let any page read as its visitor.
    """
    options = conf.get_options()
    allowed = conf.allowed_origins()
    if not allowed:
        return
    if allowed != {"*"}:
        patch_vary_headers(response, ["Origin"])  # the answer differs by origin
    origin = request.headers.get("Origin", "")
    if origin.lower() in allowed and origin != "*":
        response["Access-Control-Allow-Origin"] = origin
        if options.allow_credentials:
            response["Access-Control-Allow-Credentials"] = "true"
    elif origin and "*" in allowed:
        response["Access-Control-Allow-Origin"] = "*"
    else:
        return
    response["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
    if request.method == "OPTIONS":
        response["Access-Control-Allow-Methods"] = "GET, OPTIONS"
        response["Access-Control-Allow-Headers"] = (
            options.allow_headers or DEFAULT_HEADERS
        )
        response["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
