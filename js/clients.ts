/**
 * `node clients.ts NAME URL`: reads a stream with somebody's client, and prints what it
 * dispatches, a line of JSON for each event. For tests/acceptance/test_clients.py.
 */

const [name, url] = process.argv.slice(2) as [string, string];

interface Dispatched {
  type: string;
  data: string;
  lastEventId: string;
}

function print({ type, data, lastEventId }: Dispatched): void {
  if (type === "message" || type === "stream-error") {
    console.log(JSON.stringify({ type, data, id: lastEventId }));
  }
}

function listen(source: object): void {
  const target = source as EventTarget & { close(): void };
  target.addEventListener("message", (event) => print(event as never));
  target.addEventListener("error", (event) => {
    const { message } = event as { message?: string };
    console.log("error:", message ?? "", (target as { readyState?: number }).readyState);
  });
  target.addEventListener("stream-error", (event) => {
    print(event as never);
    target.close();
    process.exit();
  });
}

// eventsource and eventsource-client wait for the next attempt by a timer that does not keep
// Node.js running (`unref`): a process that does nothing else ends where it should come back.
setInterval(() => undefined, 60_000);

if (name === "eventstream") {
  const { EventStream } = await import("./src/eventstream.ts");
  listen(new EventStream(url));
} else if (name === "eventsource" || name === "reconnecting-eventsource") {
  const { EventSource } = await import("eventsource");
  if (name === "eventsource") {
    listen(new EventSource(url));
  } else {
    const module = (await import("reconnecting-eventsource")) as unknown as { default: never };
    const found = module.default as { default?: unknown };
    const Reconnecting = (found.default ?? found) as new (url: string, options: object) => object;
    listen(new Reconnecting(url, { eventSourceClass: EventSource }));
  }
} else if (name === "eventsource-client") {
  const { createEventSource } = await import("eventsource-client");
  createEventSource({
    url,
    onMessage: ({ event, data, id }) => {
      const type = event ?? "message";
      print({ type, data, lastEventId: id ?? "" });
      if (type === "stream-error") process.exit();
    },
  });
} else {
  // A page's surroundings, as far as it looks at them.
  const document = { hidden: false, addEventListener: () => 0, removeEventListener: () => 0 };
  Object.assign(globalThis, { window: globalThis, document });
  const { fetchEventSource } = await import("@microsoft/fetch-event-source");
  await fetchEventSource(url, {
    onmessage: ({ event, data, id }) => {
      print({ type: event || "message", data, lastEventId: id });
      if (event === "stream-error") process.exit();
    },
    onclose: () => {
      throw new Error("come back"); // it takes the end of an answer for the end of all
    },
    onerror: () => 500,
  });
}
