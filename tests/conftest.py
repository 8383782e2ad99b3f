"""Fixtures for all layers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from asgiref.sync import sync_to_async
from django.core.cache import cache
from django.db import connection, connections
from pytest_django import DjangoDbBlocker

from eventstream import api, limits, pieces, reading
from eventstream.hub import switchboard

pytest_plugins = ["eventstream.pytest_plugin"]

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would what they
# start, and whoever is to be ended by it in a test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is a matter of what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


LAYERS = ("proof", "acceptance", "integration", "unit")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that may take minutes: on one that begins last, all would wait."""
    root = Path(__file__).parent
    items.sort(key=lambda item: LAYERS.index(item.path.relative_to(root).parts[0]))


@pytest.fixture(autouse=True)
def fresh_process_state() -> None:
    """Forget what a process remembers between requests."""
    api._homes.clear()
    pieces._shared.clear()
    reading._stale_checked.clear()
    switchboard._hubs.clear()
    limits.counts.__init__()  # type: ignore[misc]
    cache.clear()


@pytest.fixture(scope="session")
def django_db_setup(
    django_db_setup: None, django_db_blocker: DjangoDbBlocker
) -> Iterator[None]:
    """The tests' database, not taken down before PostgreSQL has noticed the end of its users.

    A killed process's session outlives it for a moment, and a database with sessions cannot be
    dropped. One that is still there after 10 s belongs to something that was left running, and
    dropping the database says so.
    """
    yield
    # That of asgiref's thread, in which the database is asked for all async tests.
    asyncio.run(sync_to_async(connections.close_all)())
    if connection.vendor != "postgresql":
        return
    others = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
    """
    deadline = time.monotonic() + 10
    with django_db_blocker.unblock():
        while time.monotonic() < deadline:
            with connection.cursor() as cursor:
                cursor.execute(others)
                if cursor.fetchone() == (0,):
                    break
            time.sleep(0.05)
        connection.close()
