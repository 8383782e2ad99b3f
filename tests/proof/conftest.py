"""Fixtures of the proofs."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from tests.integration.conftest import targets

__all__ = ["settings_fixture", "targets"]


@pytest.fixture
def settings_fixture(settings: Settings) -> Settings:
    """Two partitions, and small batches: much happens with few events."""
    settings.EVENTSTREAM_PARTITIONS = 2
    settings.EVENTSTREAM_BATCH_SIZE = 3
    settings.EVENTSTREAM_PAGE_SIZE = 4
    return settings
