"""The protocol has no bad state; each wrong variant has one, and it is found."""

from __future__ import annotations

import pytest

from tests.proof.model import NO_FAULTS, Faults, Model, Variant, explore


@pytest.mark.parametrize(
    ("faults", "writer_count"),
    [(NO_FAULTS, 3), (Faults(deaths=1), 2), (Faults(1, False, False), 2)],
    ids=["nothing fails", "everything fails", "a relay dies"],
)
def test_protocol_is_consecutive_and_complete(
    faults: Faults, writer_count: int
) -> None:
    model = Model(Variant.NONE, faults, writer_count=writer_count, limit=1)

    result = explore(model)

    assert result.violation == "", result.trace
    assert result.state_count > 2_000


@pytest.mark.parametrize(
    ("variant", "faults", "expected"),
    [
        (Variant.ONE_TRANSACTION, Faults(), "ID"),
        (Variant.COUNTER_IN_SENDER, NO_FAULTS, "GAP"),
        (Variant.NO_LOOK_AGAIN, NO_FAULTS, "STUCK"),
        (Variant.FLAG_AFTER_READ, NO_FAULTS, "STUCK"),
        (Variant.FORGETS_ITS_FLAG, NO_FAULTS, "STUCK"),
        (Variant.NO_SECOND_TRY, NO_FAULTS, "STUCK"),
        (Variant.HANDS_ON_FIRST, NO_FAULTS, "STUCK"),
        (Variant.NO_SWEEP, Faults(), "STUCK"),
        (Variant.CONFIRM_UNFENCED, Faults(), "BACK"),
        (Variant.PRUNE_UNCONFIRMED, Faults(), "GAP"),
        (Variant.PRUNE_BY_AGE, Faults(), "HOLE"),
        (Variant.PUBLISH_UNORDERED, NO_FAULTS, "GAP"),
    ],
)
def test_wrong_variant_is_found_wrong(
    variant: Variant, faults: Faults, expected: str
) -> None:
    result = explore(Model(variant, faults))

    assert result.violation.partition(":")[0] == expected, result


def test_every_variant_is_tried() -> None:
    marks = test_wrong_variant_is_found_wrong.pytestmark  # type: ignore[attr-defined]
    tried = {arguments[0] for arguments in marks[0].args[1]}

    assert tried | {Variant.NONE} == set(Variant)
