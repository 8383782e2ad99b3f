"""Migrations against a real PostgreSQL: no long locks, nothing that breaks old code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Postgres, postgres
from tests.support.processes import ROOT

EXCLUDED = ",".join(
    (
        # Matters of taste, which Django decides.
        "prefer-text-field", "prefer-bigint-over-int", "prefer-bigint-over-smallint",
        "prefer-robust-stmts", "prefer-identity",
        # Set by whoever migrates, for all migrations at once: docs/howto/deploy.md.
        "require-lock-timeout", "require-statement-timeout",
    )
)  # fmt: skip
SQUAWK = Path(sys.executable).with_name("squawk")
MIGRATIONS = sorted(
    path.stem for path in (ROOT / "eventstream/migrations").glob("[0-9]*.py")
)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


def manage(server: Postgres, *arguments: str) -> str:
    env = {
        **os.environ,
        "ES_DB": server.url,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def squawk(sql: str) -> list[dict[str, object]]:
    """Return what the linter finds in a migration's SQL."""
    done = subprocess.run(
        [SQUAWK, "--reporter=json", f"--exclude={EXCLUDED}", "--pg-version=13.0"],
        input=sql, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", MIGRATIONS)
def test_migration_holds_no_long_lock_and_keeps_old_code_running(
    server: Postgres, name: str
) -> None:
    sql = manage(server, "sqlmigrate", "eventstream", name)

    # Django's own transaction: BEGIN; … COMMIT;
    assert re.search(r"\b(CREATE|ALTER|DROP|UPDATE|COMMENT)\b", sql) or "(no-op)" in sql
    assert squawk(sql) == []


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE eventstream_event ADD COLUMN n integer NOT NULL;",
        "CREATE INDEX slow ON eventstream_event (channel);",
        "ALTER TABLE eventstream_event DROP COLUMN data;",
        "ALTER TABLE eventstream_event RENAME COLUMN data TO body;",
        "ALTER TABLE eventstream_event ALTER COLUMN eid TYPE integer;",
    ],
)
def test_linter_would_find_a_dangerous_one(sql: str) -> None:
    assert squawk(f"BEGIN;\n{sql}\nCOMMIT;\n") != []


def test_all_can_be_taken_back_and_made_again(server: Postgres) -> None:
    manage(server, "migrate", "-v", "0")
    manage(server, "migrate", "eventstream", "zero", "-v", "0")
    manage(server, "migrate", "-v", "0")

    assert "No changes" in manage(server, "makemigrations", "--check", "--dry-run")
