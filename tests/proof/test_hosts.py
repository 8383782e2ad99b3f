"""Several machines, in network namespaces. `make hosts SECONDS=…` for longer."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from deploy.environment import POSTGRESQL_OPTIONS
from tests.proof.hosts.__main__ import run
from tests.support.hosts import Network
from tests.support.postgres import Postgres


@pytest.mark.timeout(420)
def test_clients_stay_consecutive_whichever_host_goes_down() -> None:
    # Each host loses its link or its power once.
    assert run(0, seed=4) == []


def test_database_that_vanishes_in_the_middle_of_a_query_is_noticed() -> None:
    """Its readers' threads, and workers, would wait for the answer for two hours."""
    options: dict[str, Any] = dict(POSTGRESQL_OPTIONS)
    with Network("pg", "web") as network:
        with network["pg"].entered():
            server = Postgres(options=("fsync=off", "listen_addresses=*"))
        try:
            server.trust("192.0.2.0/24")
            with network["web"].entered():
                connection = psycopg.connect(
                    host=network["pg"].address, port=server.port,
                    user="postgres", dbname="postgres", **options,
                )  # fmt: skip
            began = time.monotonic()
            threading.Timer(1, network["pg"].cut).start()  # it has been asked by then

            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT pg_sleep(100)")

            assert time.monotonic() - began < 40
        finally:
            network["pg"].mend()
            server.close()
