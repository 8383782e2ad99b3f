"""A long backlog drains in bounded memory, and other partitions notice nothing."""

from __future__ import annotations

import pytest

from tests.proof.backlog import drain

COUNT = 50_000
GROWTH = 60_000_000
"""Bytes: a batch of a thousand events, in each of the forms that it goes through."""


@pytest.mark.timeout(180)
def test_backlog_of_a_hot_channel_drains_beside_the_others() -> None:
    drained = drain(COUNT)

    assert drained.memory_most - drained.memory_before < GROWTH, drained
    assert sorted(drained.latencies)[len(drained.latencies) // 2] < 1, drained
