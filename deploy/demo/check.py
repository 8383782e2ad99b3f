"""`python -m deploy.demo --check`: does every event arrive, once, in order?"""

from __future__ import annotations

import http.cookiejar
import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPResponse

from deploy.demo.orders import CHANNEL

TIMEOUT = 10.0
QUIET_SECONDS = 1.5


class _Stream:
    """An event stream, read line by line.

    Args:
        url: Of the project.
        last_event_id: Where to go on from.
        timeout: Seconds of silence that end it.
    """

    def __init__(
        self, url: str, last_event_id: str = "", timeout: float = TIMEOUT
    ) -> None:
        request = urllib.request.Request(f"{url}/events/?channel={CHANNEL}")  # noqa: S310
        if last_event_id:
            request.add_header("Last-Event-ID", last_event_id)
        self._response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout)  # noqa: S310
        self._events = self._read()

    def _read(self) -> Iterator[dict[str, str]]:
        fields: dict[str, str] = {}
        for raw in self._response:
            line = raw.decode().rstrip("\n")
            name, _, value = line.partition(":")
            if line and name:
                fields[name] = value.removeprefix(" ")
            elif not line and fields:
                if fields.get("event") != "keep-alive" and "data" in fields:
                    yield fields
                fields = {}

    def take(self, count: int) -> list[tuple[str, int]]:
        """Return (id, order number) of the next events; fewer if no more come in time."""
        taken = []
        try:
            for fields in self._events:
                if fields.get("event", "message") == "message":
                    number = json.loads(fields["data"])["number"]
                    # Behind a proxy, of two entries of a channel the last counts.
                    taken.append((fields.get("id", "").rpartition(",")[2], number))
                    if len(taken) == count:
                        break
        except TimeoutError:
            pass
        return taken

    def open(self) -> str:
        """Wait for stream-open; return its id."""
        for fields in self._events:
            if fields.get("event") == "stream-open":
                return fields["id"]
        raise ConnectionError("the stream ended before it opened")

    def close(self) -> None:
        self._response.close()


class _Page:
    """The page's buttons, with its cookie and token."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self._jar)
        )
        self._opener.open(url + "/", timeout=TIMEOUT).close()

    def post(self, path: str, **fields: object) -> dict[str, list[int]]:
        token = next(c.value for c in self._jar if c.name == "csrftoken")
        request = urllib.request.Request(  # noqa: S310
            self._url + path,
            data=urllib.parse.urlencode(fields).encode(),
            headers={"X-CSRFToken": token or ""},
        )
        with self._opener.open(request, timeout=TIMEOUT) as response:
            answer: dict[str, list[int]] = json.load(response)
        return answer


def run_checks(
    url: str, web_url: str, began: float, print_line: Callable[[str], None]
) -> int:
    """Check both holders that there are; return how many checks failed.

    Args:
        url: Where browsers go: Pushpin's, or the web process's.
        web_url: The web process.
        began: `time.monotonic()` of the start.
        print_line: Takes each line of the report.
    """
    failures = 0
    holders = {"web": web_url}
    if url != web_url:
        holders["pushpin"] = url

    def check(what: str, actual: object, expected: object) -> None:
        nonlocal failures
        if actual == expected:
            print_line(f"PASS  {what}")
        else:
            failures += 1
            print_line(f"FAIL  {what}: expected {expected}, got {actual}")

    streams = {name: _Stream(address) for name, address in holders.items()}
    for name, stream in streams.items():
        check(f"{name}: a new stream opens at the head", stream.open(), f"{CHANNEL}:0")
    page = _Page(url)
    numbers = page.post("/orders/", count=1)["numbers"]
    first = {name: stream.take(1) for name, stream in streams.items()}
    seconds = time.monotonic() - began
    print_line(f"      first live event {seconds:.1f} s after the start")
    page.post("/orders/", count=1, rollback=1)
    numbers += page.post("/orders/", count=3)["numbers"]
    numbers += _send_elsewhere(5)
    expected = [(f"{CHANNEL}:{place}", n) for place, n in enumerate(numbers, 1)]
    for name, stream in streams.items():
        events = first[name] + stream.take(len(numbers) - 1)
        text = "9 events of 10, one rolled back: each once, in order"
        check(f"{name}: {text}", events, expected)
        stream.close()
    for name, address in holders.items():
        stream = _Stream(address, last_event_id=f"{CHANNEL}:4", timeout=QUIET_SECONDS)
        text = "a reconnect with Last-Event-ID gets what it missed, and no more"
        check(f"{name}: {text}", stream.take(len(numbers)), expected[4:])
        stream.close()
    return failures


def _send_elsewhere(count: int) -> list[int]:
    """Place orders from a process of its own; return their numbers."""
    done = subprocess.run(  # noqa: S603  our own command
        [sys.executable, "manage.py", "demo_send", str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"demo_send failed: {done.stderr.strip()[-500:]}")
    return [int(word) for word in done.stdout.split()]
