"""Takes the pictures of docs/admin.md: `python docs/_operators.py`, with Chromium.

With a directory as its argument it leaves them there, too, as PNG, to be looked at.

A real installation whose proxy is down; the hour before it is made up, as it would take one.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.browser import browsing  # noqa: E402
from tests.support.postgres import postgres  # noqa: E402
from tests.support.sse import Stream  # noqa: E402
from tests.support.stack import Stack, running  # noqa: E402

IMAGES = ROOT / "docs/images"
TARGET = "grip:http://127.0.0.1:5561"
MAX_BYTES = 150_000
QUALITY = 60
PAGES = {
    "landing": ("", 900),
    "overview": ("sample/?ask=1", 1560),
    "targets": ("pausedtarget/", 440),
    "channel": ("channel/orders/change/", 980),
}
HOUR = """
import datetime, math, random
from django.contrib.auth.models import User
from eventstream.models import Sample
from eventstream.storage import database_now
random.seed(4)
now = database_now("default").replace(second=0, microsecond=0)
written, failed, rows = 20_000, 3, []
for minute in range(62, 1, -1):
    rate = 60 + 25 * math.sin(minute / 9) + random.random() * 12
    is_down = 34 > minute > 28
    written += int(rate)
    failed += 4 * is_down
    waiting = int(rate * (34 - minute)) if is_down else 0
    figures = {"state": "up", "confirmed": written, "failed": 0, "waiting": 0,
        "oldest": None, "latency": 0.006 + random.random() * 0.004}
    proxy = {**figures, "confirmed": written - waiting, "failed": failed,
        "waiting": waiting, "oldest": 60.0 * (34 - minute) if is_down else None,
        "latency": 0.009 + random.random() * 0.006,
        "state": "failing" if is_down else "up"}
    rows.append(Sample(minute=now - datetime.timedelta(minutes=minute),
        event_count=written, oldest_seconds=proxy["oldest"],
        reader_count=int(2900 + 300 * math.sin(minute / 20)),
        targets={"%s": proxy, "bus": figures}))
Sample.objects.bulk_create(rows)
print(User.objects.create_superuser("ann").pk)
"""
LETTER = """
from eventstream.models import DeadLetter, Event
event = Event.objects.filter(channel="rooms/7", position__isnull=False).earliest("pk")
DeadLetter.objects.create(event_id=event.pk, partition=event.partition,
    position=event.position, channel=event.channel, eid=event.eid, target="bus",
    error="refused: the message is larger than the server takes")
"""


def take(stack: Stack, browser: Browser, session: str) -> None:
    """Save each page, light."""
    seen = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    key, _, value = session.partition("=")
    context = browser.new_context(color_scheme="light")
    context.add_cookies([{"name": key, "value": value, "url": stack.url}])
    for name, (path, height) in PAGES.items():
        page = context.new_page()
        page.set_viewport_size({"width": 1240, "height": height})
        page.goto(f"{stack.url}/admin/eventstream/{path}")
        page.wait_for_timeout(4000)
        picture = IMAGES / f"admin-{name}.webp"
        chrome = context.new_cdp_session(page)
        shot = chrome.send(
            "Page.captureScreenshot", {"format": "webp", "quality": QUALITY}
        )
        picture.write_bytes(base64.b64decode(shot["data"]))
        if seen:
            page.screenshot(path=seen / f"{name}.png")
        size = picture.stat().st_size
        if size > MAX_BYTES:
            sys.exit(f"{picture} has {size:,} bytes, more than {MAX_BYTES:,}")
        print(f"{picture.relative_to(ROOT)}: {size // 1000} kB")
        page.close()


def main() -> None:
    """Run the installation, have something happen in it, and take the pictures."""
    grip = f"http://127.0.0.1:5561/?key={'k' * 32}"
    env = {"ES_SET": json.dumps({"GRIP_URL": grip, "TIME_ZONE": "UTC"})}
    with ExitStack() as exits:
        server = exits.enter_context(postgres())
        url = server.create_database("pictures")
        stack = exits.enter_context(running(beat=True, database_url=url, env=env))
        pk = int(stack.run(HOUR % TARGET).split()[-1])
        for channel in ["orders"] * 5 + ["rooms/7"] * 3:
            address = f"{stack.url}/events/?channel={channel}"
            exits.enter_context(Stream(address).open())
        stack.manage("eventstream", "prune")
        for number in range(12):
            channel = "rooms/7" if number % 4 == 3 else "orders"
            data = {"number": 4711 + number, "item": "tea", "cups": 1 + number % 3}
            stack.send(channel, 1, data=data)
        time.sleep(20)  # readers are reported, and the proxy has failed some times
        stack.run(LETTER)
        take(stack, exits.enter_context(browsing()), stack.log_in(pk))


if __name__ == "__main__":
    main()
