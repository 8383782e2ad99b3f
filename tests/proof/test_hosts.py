"""Several machines, in network namespaces. `make hosts SECONDS=…` for longer."""

from __future__ import annotations

import pytest

from tests.proof.hosts.__main__ import run


@pytest.mark.timeout(420)
def test_clients_stay_consecutive_whichever_host_goes_down() -> None:
    # Each host loses its link or its power once.
    assert run(0, seed=4) == []
