"""`python -m deploy.demo`: the whole installation on this machine, until Ctrl-C.

Web, Celery worker and beat, a Valkey, and Pushpin in front where it is installed; the
database is a SQLite file. Set DATABASE_URL or REDIS_URL to use servers of yours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.demo.supervisor import ROOT, Demo, DemoError


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--port", type=int, help="of the page; default: 8000, or next")
    parser.add_argument(
        "--directory",
        type=Path,
        default=ROOT / "var" / "demo",
        help="where database and logs are kept",
    )
    parser.add_argument(
        "--no-pushpin",
        action="store_true",
        help="let the web process hold the streams even where Pushpin is installed",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="send events, see that each arrives, and stop; the exit code says so",
    )
    options = parser.parse_args()
    try:
        demo = Demo(
            port=options.port,
            directory=options.directory.absolute(),
            wants_pushpin=not options.no_pushpin,
            is_check=options.check,
        )
        sys.exit(demo.run())
    except DemoError as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
