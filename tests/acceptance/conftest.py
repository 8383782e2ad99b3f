"""Installations that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack import Stack, running


@pytest.fixture(scope="module", params=["direct", "pushpin"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A web process and a worker; streams held by either, each test's channels its own."""
    with running(with_pushpin=request.param == "pushpin") as stack:
        yield stack
