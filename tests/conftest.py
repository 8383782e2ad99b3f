"""Fixtures for all layers."""

from __future__ import annotations

import pytest

from eventstream import hub, reading


@pytest.fixture(autouse=True)
def fresh_process_state() -> None:
    """Forget what a process remembers between requests."""
    reading._stale_checked.clear()
    hub._hubs.clear()
