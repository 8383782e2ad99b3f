"""The list of what is broken on purpose, kept up with the code that it breaks."""

from __future__ import annotations

import pytest

from tests.proof.mutations import MUTATIONS, Mutation
from tests.support.processes import ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_mutation_finds_its_text_and_its_test(mutation: Mutation) -> None:
    path, *names = mutation.test.partition("[")[0].split("::")

    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    text = (ROOT / path).read_text()
    assert [name for name in names if f"{name}(" not in text] == []
