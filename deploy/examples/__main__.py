"""`python -m deploy.examples`: a clock, a chat and a chat on REST framework, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import threading
import time

import django
import uvicorn
from django.core.management import call_command
from django.utils import timezone

# Not setdefault: `deploy`, imported on the way here, has named its own.
os.environ["DJANGO_SETTINGS_MODULE"] = "deploy.examples.settings"


def tick() -> None:
    """Send the time every second, as any other process or thread might."""
    from eventstream import send_event  # noqa: PLC0415  Django has to be set up first

    while True:
        send_event("clock", "message", timezone.now().isoformat(timespec="seconds"))
        time.sleep(1)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.examples")
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    django.setup()
    from deploy.examples.settings import DIRECTORY  # noqa: PLC0415

    DIRECTORY.mkdir(parents=True, exist_ok=True)
    call_command("migrate", verbosity=0)
    threading.Thread(target=tick, daemon=True).start()
    print(f"http://127.0.0.1:{port}/", flush=True)
    uvicorn.run(
        "deploy.examples.asgi:application",
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
