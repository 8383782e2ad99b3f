"""May this process get requests? For load balancers and orchestrators; without secrets.

Live: the process answers. Ready: it can open streams. What is wrong elsewhere, say with a
proxy or the worker, is not a reason to take a web process away: that is `eventstream
status`'s to tell.
"""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.db import DatabaseError, connections
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from eventstream import conf, hold
from eventstream.log import database_now
from eventstream.transactions import outside_transactions

_migrated: set[str] = set()
"""Databases that were seen to be: a process lives with the code that it has loaded."""


@login_not_required
@never_cache
@outside_transactions
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """Answer, and say whether the request came through a GRIP proxy. No database."""
    grip = "none"
    if hold.is_proxied(request):
        grip = "verified"
    elif "Grip-Sig" in request.headers:
        grip = "invalid"
    return JsonResponse({"live": True, "grip": grip})


@login_not_required
@never_cache
@outside_transactions
@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """Answer 200 if streams can be opened here, else 503 and what is missing."""
    missing = find_missing(request)
    content = {"ready": not missing, "missing": missing}
    return JsonResponse(content, status=503 if missing else 200)


def find_missing(request: HttpRequest) -> list[str]:
    """Return what keeps this process from opening streams, in words."""
    try:
        options = conf.get_options()
        proxies = conf.grip_proxies()
    except ImproperlyConfigured as error:
        return [f"settings: {error}"]
    missing = []
    for using in options.databases:
        try:
            if not _is_migrated(using):
                missing.append(f"database {using!r} is not migrated")
        except DatabaseError as error:
            # Not its text, which names hosts and users.
            missing.append(f"database {using!r}: {type(error).__name__}")
    if not proxies and not isinstance(request, ASGIRequest):
        missing.append("holding: this is WSGI, and no GRIP proxy is configured")
    return missing


def _is_migrated(using: str) -> bool:
    database_now(using)
    if using not in _migrated:
        executor = MigrationExecutor(connections[using])
        leaves = [
            node
            for node in executor.loader.graph.leaf_nodes()
            if node[0] == "eventstream"
        ]
        if executor.migration_plan(leaves):
            return False
        _migrated.add(using)
    return True
