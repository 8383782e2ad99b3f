"""The benchmark's page says which rows are of which run."""

from __future__ import annotations

from typing import Any

from tests.bench import report


def run(date: str, *names: str, rounds: int = 3) -> dict[str, Any]:
    results = {name: {"ours": {"rounds": [], "median": 1.0}} for name in names}
    return {"date": date, "machine": "2 cores", "rounds": rounds, "results": results}


def test_rows_of_a_later_run_are_said_to_be() -> None:
    whole = run("Monday", "send", "idle", "prune")
    assert report.apart(whole) == ""

    once = report.merge(whole, run("Tuesday", "idle", "prune", rounds=5))
    twice = report.merge(once, run("Wednesday", "prune", rounds=1))

    assert (twice["date"], twice["rounds"]) == ("Monday", 1)
    lines = report.apart(twice).splitlines()
    assert lines[3:] == [
        "- Tuesday, 2 cores: idle streams, direct.",
        "- Wednesday, 2 cores: prune while sending.",
    ]
