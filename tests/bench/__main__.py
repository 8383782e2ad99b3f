"""`python -m tests.bench [--quick] [--rounds N] [--only WORD …] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
import venv
from pathlib import Path
from typing import Any

import django
import psycopg

from tests.bench import report
from tests.bench.cases import FULL, QUICK, Bench, describe_machine
from tests.bench.table import CASES, Case
from tests.support.postgres import Postgres
from tests.support.processes import ROOT

PEER_REQUIREMENTS = Path(__file__).parent / "peer" / "requirements.txt"


def install_peer(directory: Path) -> Path:
    """Return the Python of a virtual environment that has the peer, and only this one."""
    python = directory / "bin" / "python"
    stamp = directory / ".stamp"
    wanted = PEER_REQUIREMENTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(directory, with_pip=True, clear=True)
        subprocess.run(
            [
                # Errors only: of an index that is a folder, pip warns at each package.
                str(python), "-m", "pip", "install", "-qq",
                "--disable-pip-version-check", "-r", str(PEER_REQUIREMENTS),
            ],
            check=True,
        )  # fmt: skip
        stamp.write_text(wanted)
    return python


def _wear_in(postgres: Postgres) -> None:
    """Give the server a log whose files it reuses, as one has that is up for a while.

    To make one takes 50 ms here, in which nobody commits.
    """
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal() "
            "FROM generate_series(1, 60)"
        )
        connection.execute("CHECKPOINT")


def _describe(error: Exception) -> str:
    """Return what the page may say of it: a line, without this machine's folders."""
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line.replace(f'{ROOT}/', '')}"[:300]


def measure(bench: Bench, cases: list[Case], rounds: int) -> dict[str, Any]:
    """Run all sides of a case in turn, round by round; a side that fails says why."""
    results: dict[str, Any] = {}
    for case in cases:
        sides: dict[str, Any] = {side: {"rounds": []} for side in case.sides}
        for number in range(1 if case.is_once else rounds):
            order = case.sides if number % 2 == 0 else case.sides[::-1]
            for side in order:
                before = sides[side]["rounds"]
                if before and "error" in before[-1]:
                    continue  # it takes minutes to find out that it still cannot
                began = time.monotonic()
                try:
                    figures = case.run(bench, side)
                except Exception as error:
                    traceback.print_exc()
                    figures = {"error": _describe(error)}
                sides[side]["rounds"].append(figures)
                shown = {k: v for k, v in figures.items() if k not in ("cpu",)}
                taken = time.monotonic() - began
                print(
                    f"{case.name:20} {side:6} round {number + 1}, {taken:4.0f} s: {shown}",
                    flush=True,
                )
        for found in sides.values():
            values = [r["value"] for r in found["rounds"] if r.get("value") is not None]
            if values:
                found["median"] = statistics.median(values)
                found["least"], found["most"] = min(values), max(values)
        results[case.name] = sides
    return results


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 3)
    cases = [
        case
        for case in CASES
        if (
            any(word in case.name for word in options.only)
            if options.only
            else not (options.quick and case.is_long)
        )
    ]
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    python = install_peer(ROOT / "var" / "bench-peer")
    # Durable, as in production: what waits for the disk must be seen to wait.
    postgres = Postgres(
        options=(
            "max_connections=1500", "shared_buffers=256MB", "min_wal_size=1GB",
            "max_wal_size=4GB",
        )
    )  # fmt: skip
    try:
        _wear_in(postgres)
        scale = QUICK if options.quick else FULL
        bench = Bench(postgres, python, scale)
        results = measure(bench, cases, rounds)
    finally:
        postgres.close()
    content = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": describe_machine(),
        "python": platform.python_version(),
        "rounds": rounds,
        "scale": scale._asdict(),
        "results": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "quick.json" if options.quick else "results.json"
    path = options.out / name
    if options.only and path.exists():
        content = report.merge(json.loads(path.read_text()), content)
    path.write_text(json.dumps(content, indent=1) + "\n")
    report.write(path, options.out, is_quick=options.quick)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
