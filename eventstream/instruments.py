"""What is counted in each process. Nothing, unless the extra `metrics` is installed.

The relay, the hub and the dispatcher call these; metrics.py puts its own in their place.
What the database knows (events written, confirmed, waiting, …) is not counted here: every
process would know only its own share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eventstream.exceptions import PublishRejectedError


class Instruments:
    """Counts nothing. `holder` is "hub" or "proxy"."""

    is_enabled = False

    def attempt(self, target: str, outcome: str, seconds: float) -> None:
        """One POST, or one pipeline; "ok", or what failure_kind says."""

    def confirmed(self, target: str, ages: Sequence[float]) -> None:
        """A batch, by how many seconds old each of its events was then."""

    def wake_up(self, outcome: str) -> None:
        """One wake-up: "sent", "coalesced", "failed" or "skipped" (the circuit is open).

        Or "handed-on", by a relay that has waited for the next event for as long as it may.
        """

    def circuit_open_until(self, instant: float) -> None:
        """No wake-up is tried until then, in seconds since the epoch."""

    def catch_up(self, holder: str) -> None:
        """A reader was sent a page of the log."""

    def reset(self, holder: str) -> None:
        """A reader was sent a stream-reset."""

    def overflow(self) -> None:
        """A live reader fell behind the tail in memory, and was put back on the log."""

    def kick(self) -> None:
        """A hub heard of a withdrawn permission."""

    def delivered(self, seconds: float) -> None:
        """From writing an event to handing it to a client; some of all, at random."""


active = Instruments()


def install(instruments: Instruments) -> None:
    """Count by these from now on."""
    global active
    active = instruments


def failure_kind(error: BaseException) -> str:
    """Return what kind of failure it was: "rejected", "timeout", "connection", "answer".

    Told by the names of what caused it, as each target has a library of its own.
    """
    if isinstance(error, PublishRejectedError):
        return "rejected"
    names = " ".join(type(cause).__name__ for cause in _causes(error))
    if "Timeout" in names:
        return "timeout"
    return "connection" if "Connection" in names else "answer"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
