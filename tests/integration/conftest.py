"""Fixtures with a database."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from tests.support.targets import RecordingTarget


@pytest.fixture
def targets(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> dict[str, RecordingTarget]:
    """Two targets, "a" and "b"; nothing is relayed but by the test."""
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    found = {name: RecordingTarget(name) for name in ("a", "b")}
    for module in ("api", "relay", "jobs"):
        monkeypatch.setattr(f"eventstream.{module}.get_targets", lambda: found)
    return found
