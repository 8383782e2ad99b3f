"""Fixtures for all layers."""

from __future__ import annotations

import pytest
from django.core.cache import cache

from eventstream import limits, reading
from eventstream.hub import switchboard

pytest_plugins = ["eventstream.pytest_plugin"]


@pytest.fixture(autouse=True)
def fresh_process_state() -> None:
    """Forget what a process remembers between requests."""
    reading._stale_checked.clear()
    switchboard._hubs.clear()
    limits.counts.__init__()  # type: ignore[misc]
    cache.clear()
