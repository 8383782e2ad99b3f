"""The async tests of docs/howto/testing.md, run as they stand there."""

from __future__ import annotations

import re
import unittest
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from eventstream.testing import EventStreamTestClient
from tests.support.processes import ROOT


@pytest.fixture
def page() -> dict[str, Any]:
    text = (ROOT / "docs/howto/testing.md").read_text()
    section = text.partition("## Async tests")[2].partition("\n## ")[0]
    code = "".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    names: dict[str, Any] = {"__name__": "page", "pytest": pytest}
    exec(compile(code, "testing.md", "exec"), names)
    return names


@pytest.fixture
async def own_thread() -> AsyncIterator[None]:
    """Close the connection of the thread that asgiref keeps for async tests."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.mark.django_db
def test_test_case_passes(page: dict[str, Any]) -> None:
    result = unittest.TestResult()

    unittest.TestSuite([page["OrderTests"]("test_order_is_announced")]).run(result)

    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


@pytest.mark.usefixtures("own_thread")
@pytest.mark.django_db(transaction=True)
async def test_test_with_the_fixture_passes(
    page: dict[str, Any], eventstream_client: EventStreamTestClient
) -> None:
    await page["test_order_is_announced"](eventstream_client)
