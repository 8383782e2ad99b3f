"""The list of what is broken on purpose, kept up with the code that it breaks."""

from __future__ import annotations

import pytest

from tests.proof.mutations import MUTATIONS, Mutation
from tests.support.processes import ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_mutation_finds_its_text_and_its_test(mutation: Mutation) -> None:
    path, *names = mutation.test.partition("[")[0].split("::")

    source = (ROOT / mutation.file).read_text()
    assert source.count(mutation.old) == 1
    if mutation.file.endswith(".py"):  # else any test at all would fail
        compile(source.replace(mutation.old, mutation.new), mutation.file, "exec")
    text = (ROOT / path).read_text()
    assert [name for name in names if f"{name}(" not in text] == []
