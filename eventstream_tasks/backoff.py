"""Attempt → delay. Pure."""

from __future__ import annotations

import random

MAX_RETRIES = 3
MIN_SECONDS = 1.0
MAX_SECONDS = 10.0


def retry_delay(attempt: int) -> float:
    """Return the seconds before a retry, with full jitter.

    At most 2, 4, 8 s for attempts 1, 2, 3, and never less than 1 s nor more than 10 s.
    What takes longer waits in the database, as the cursor's next attempt.

    Args:
        attempt: 1 for the first retry.
    """
    ceiling = min(MAX_SECONDS, 2.0**attempt)
    return random.uniform(MIN_SECONDS, max(MIN_SECONDS, ceiling))  # noqa: S311  jitter
