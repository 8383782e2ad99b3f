"""Attempt → delay."""

from __future__ import annotations

import pytest

from eventstream import cursors
from eventstream_tasks.backoff import MAX_RETRIES, retry_delay


@pytest.mark.parametrize(
    ("attempt", "most"), [(1, 2), (2, 4), (3, 8), (4, 10), (9, 10)]
)
def test_task_s_retry_waits_one_second_to_its_ceiling(attempt: int, most: int) -> None:
    delays = [retry_delay(attempt) for _ in range(500)]

    assert min(delays) >= 1
    assert most * 0.8 < max(delays) <= most


def test_task_gives_up_after_three_retries() -> None:
    assert MAX_RETRIES == 3


@pytest.mark.parametrize(("attempts", "most"), [(1, 2), (3, 8), (6, 60), (5000, 60)])
def test_relay_s_backoff_has_full_jitter_up_to_a_minute(
    attempts: int, most: int
) -> None:
    delays = [cursors.backoff(attempts) for _ in range(500)]

    assert min(delays) < most * 0.2
    assert most * 0.8 < max(delays) <= most
