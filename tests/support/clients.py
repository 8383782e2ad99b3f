"""`python -m tests.support.clients NAME URL`: reads a stream with httpx-sse or curl.

Neither comes back by itself. Around each is the loop that its users write: wait for as long
as the server asked, and open anew with the last id. Prints what js/clients.ts prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import httpx_sse

from tests.support.sse import Message, Parser

RETRY = 2.0


class Client:
    """What a client knows between two connections."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.last_id = ""
        self.retry = RETRY
        self.wait = 0.0

    def read(self) -> Iterator[Message]:
        raise NotImplementedError

    @property
    def headers(self) -> dict[str, str]:
        return {"Last-Event-ID": self.last_id} if self.last_id else {}

    def run(self) -> None:
        while True:
            for message in self.read():
                self.last_id = message.id
                if message.type in ("message", "stream-error"):
                    print(json.dumps(vars(message)), flush=True)
                if message.type == "stream-error":
                    return
            time.sleep(max(self.retry, self.wait))
            self.wait = 0.0


class HttpxSse(Client):
    def read(self) -> Iterator[Message]:
        timeout = httpx.Timeout(10, read=30)
        try:
            with (
                httpx.Client(timeout=timeout) as client,
                httpx_sse.connect_sse(
                    client, "GET", self.url, headers=self.headers
                ) as source,
            ):
                self.wait = float(source.response.headers.get("Retry-After", 0))
                for event in source.iter_sse():
                    if event.retry is not None:
                        self.retry = event.retry / 1000
                    yield Message(type=event.event, data=event.data, id=event.id)
        except (httpx.TransportError, httpx_sse.SSEError) as error:
            print(f"lost: {error!r}", flush=True)


class Curl(Client):
    def read(self) -> Iterator[Message]:
        headers = [f"{name}: {value}" for name, value in self.headers.items()]
        options = [part for header in headers for part in ("-H", header)]
        parser = Parser()
        parser.last_id = self.last_id
        with subprocess.Popen(
            ["curl", "-sSNf", *options, self.url], stdout=subprocess.PIPE
        ) as curl:
            assert curl.stdout
            for line in curl.stdout:
                yield from parser.feed(line)


CLIENTS: dict[str, type[Client]] = {"httpx-sse": HttpxSse, "curl": Curl}

if __name__ == "__main__":
    name, url = sys.argv[1:]
    CLIENTS[name](url).run()
