"""docs/decisions: what others refer to by number."""

from __future__ import annotations

from collections import Counter

from tests.support.processes import ROOT


def test_every_decision_has_a_number_of_its_own() -> None:
    names = [path.name for path in (ROOT / "docs/decisions").glob("*.md")]
    numbers = Counter(name[:4] for name in names)

    assert len(names) > 10
    assert all(number.isdecimal() for number in numbers)
    assert [number for number, count in numbers.items() if count > 1] == []
