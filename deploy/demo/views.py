"""The board, and what its buttons do."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBadRequest,
    JsonResponse,
)
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST

from deploy.demo.models import Order
from deploy.demo.orders import CHANNEL, place_orders
from deploy.demo.switch import is_on, manage_path, switch_path, turn
from eventstream import get_current_event_id
from eventstream.storage import get_storage
from eventstream.targets import get_targets

MAX_ORDERS = 100
_ROOT = Path(__file__).resolve().parents[2]


def _switch() -> Path | None:
    """Return the worker's switch; None if nobody started us who would look at it."""
    directory = getattr(settings, "DEMO_DIR", None)
    return switch_path(directory) if directory else None


def _manage() -> str:
    """Return what one types for manage.py, with the environment of this process."""
    directory = getattr(settings, "DEMO_DIR", None)
    if not directory:
        return "python manage.py"  # whoever started us knows the environment
    path = manage_path(directory)
    return str(path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path)


@require_GET
def board(request: HttpRequest) -> HttpResponse:
    """Show the last orders, and go on from there by the stream."""
    # Before the orders are read: an event in between then comes twice, and never not.
    position = get_current_event_id([CHANNEL])
    orders = list(Order.objects.order_by("-pk")[:12])
    return render(
        request,
        "demo/board.html",
        {
            "channel": CHANNEL,
            "position": position,
            "orders": orders,
            "targets": list(get_targets()),
            "has_switch": _switch() is not None,
            "manage": _manage(),
        },
    )


@require_POST
def orders(request: HttpRequest) -> HttpResponse:
    """POST count=1…100, rollback=0 or 1."""
    count = request.POST.get("count", "1")
    if not count.isdecimal() or not 1 <= int(count) <= MAX_ORDERS:
        return HttpResponseBadRequest(f"count: 1 to {MAX_ORDERS}, not {count!r}")
    is_rolled_back = request.POST.get("rollback") == "1"
    numbers = place_orders(int(count), is_rolled_back=is_rolled_back)
    return JsonResponse({"numbers": numbers, "rolled_back": is_rolled_back})


@require_POST
def worker(request: HttpRequest) -> HttpResponse:
    """POST run=0 or 1: stop or start the Celery worker."""
    switch = _switch()
    if switch is None:
        return HttpResponseBadRequest("Only under `make demo`.")
    turn(switch, on=request.POST.get("run") == "1")
    return status(request)


def status(request: HttpRequest) -> HttpResponse:
    """Say how much waits, and whether the worker is to run."""
    waiting = get_storage().count_undelivered("default", list(get_targets()))
    switch = _switch()
    is_running = None if switch is None else is_on(switch)
    return JsonResponse({"waiting": waiting, "worker": is_running})
