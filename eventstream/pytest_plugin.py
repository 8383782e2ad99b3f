"""Fixtures for pytest: `pytest_plugins = ["eventstream.pytest_plugin"]` in conftest.py.

Not an entry point: a plugin that loads by itself would be in every test run of an
environment that merely has this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from eventstream.testing import EventStreamTestClient


@pytest.fixture
def eventstream_client(db: None) -> EventStreamTestClient:
    """Give what the test sends. With `django_db(transaction=True)` it really commits."""
    # Models: pytest loads plugins before Django is set up.
    from eventstream.testing import EventStreamTestClient  # noqa: PLC0415

    return EventStreamTestClient()
