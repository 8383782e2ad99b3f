"""Several machines, in network namespaces; see hosts.py. `make hosts SECONDS=…` for longer."""

from __future__ import annotations

import pytest

from tests.proof import hosts


@pytest.mark.timeout(420)
def test_clients_stay_consecutive_whichever_host_goes_down() -> None:
    # Each host loses its link or its power once.
    assert hosts.run(0, seed=4) == []
