"""Views and ATOMIC_REQUESTS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.db import connections, transaction

_View = TypeVar("_View", bound=Callable[..., Any])


def outside_transactions(view: _View) -> _View:
    """Exempt a view from ATOMIC_REQUESTS, of whichever database has it.

    The relay publishes an id only once it is committed. Inside the request's transaction
    a rollback would take back ids that clients have, and give them out a second time. And
    a database that is away would be an error before the view is asked.
    """
    for name in connections:
        transaction.non_atomic_requests(name)(view)
    return view
