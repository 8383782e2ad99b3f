import assert from "node:assert/strict";
import { test } from "node:test";

import { EventSource } from "eventsource";

import { EventStream, StreamErrorEvent, StreamResetEvent } from "../src/eventstream.ts";
import { event, open, opening, Recorder, Server, sleep, state, until } from "./server.ts";

test("begins at the page's position, and comes back from the last event dispatched", async (t) => {
  const server = await Server.start(t, (response, { query }) => {
    const from = query.get("lastEventId")!;
    open(response, opening(from) + (from === "c:3" ? event(4) + event(5) : event(6)));
    setTimeout(() => response.end(), 30);
  });
  const { stream, data } = new Recorder(t, `${server.url}?channel=c`, { lastEventId: "c:3" });

  await until(() => data.length >= 3, "three events");

  assert.deepEqual(data.slice(0, 3), ["4", "5", "6"]);
  assert.deepEqual(server.requests.slice(0, 2).map((r) => r.query.get("lastEventId")), ["c:3", "c:5"]);
  assert.equal(stream.lastEventId, "c:6");
});

test("code that is written for an EventSource takes it, for tsc as well", async (t) => {
  const server = await Server.start(t, (response) => open(response, event(1)));
  const { stream } = new Recorder(t, server.url);
  const source: InstanceType<typeof globalThis.EventSource> = stream;

  const data = await new Promise((resolve) => {
    source.onmessage = function ({ data }) {
      this.close();
      resolve(data);
    };
  });

  assert.equal(data, "1");
  assert.equal(stream.status, "closed");
});

test("a position in the URL is used, and does not stay there", async (t) => {
  const server = await Server.start(t, (response) => open(response, event(8)));
  const { stream, data } = new Recorder(t, `${server.url}?channel=a%20b&lastEventId=c%3A7`);

  await until(() => data.length, "the event");
  server.cut();
  await until(() => server.requests.length === 2, "the second request");

  assert.deepEqual(server.requests.map((r) => r.query.getAll("lastEventId")), [["c:7"], ["c:8"]]);
  assert.equal(server.requests[0]!.query.get("channel"), "a b");
  assert.doesNotMatch(stream.url, /lastEventId/);
});

test("the cursor of a stream that is cut before its first event is where it opened", async (t) => {
  const server = await Server.start(t, (response) => open(response, opening("a:4,b:0")));
  const { stream } = new Recorder(t, server.url);

  await until(() => stream.lastEventId, "stream-open");
  server.cut();
  await until(() => server.requests.length === 2, "the second request");

  assert.equal(server.requests[1]!.query.get("lastEventId"), "a:4,b:0");
});

test("stream-open gives places to channels that the page had none for, and moves no other", async (t) => {
  const server = await Server.start(t, (response) => open(response, opening("a:9,b:3,c%20d:1")));
  const { stream } = new Recorder(t, server.url, { lastEventId: "a:4,z:1" });

  await until(() => stream.status === "catching-up", "stream-open");

  assert.equal(stream.lastEventId, "a:4,b:3,c%20d:1");
});

test("events that were dispatched already are dropped, and those without an id are not", async (t) => {
  const live = "event: message\ndata: live\n\n";
  const text = event("a:1,b:0", "a1") + event("a:1,b:1", "b1") + event("a:1,b:0", "a1") + live + event("a:1,b:1", "b1") + live + event("a:2,b:1", "a2");
  const server = await Server.start(t, (response) => open(response, text));
  const { data, ids } = new Recorder(t, server.url);

  await until(() => data.includes("a2"), "the last event");

  assert.deepEqual(data, ["a1", "b1", "live", "live", "a2"]);
  assert.deepEqual(ids, ["a:1,b:0", "a:1,b:1", "a:1,b:1", "a:1,b:1", "a:2,b:1"]);
});

test("an id that names its channel twice, as a proxy's does, is the last of the two", async (t) => {
  const text = event("a:0,b:0,a:1", "a1") + event("a:1,b:1,b:1", "b1") + event("a:0,b:1,a:1", "a1");
  const server = await Server.start(t, (response) => open(response, text + event("a:1,b:1,a:2", "a2")));
  const { stream, data, ids } = new Recorder(t, server.url, { lastEventId: "a:0,b:0" });

  await until(() => data.includes("a2"), "the last event");
  server.cut();
  await until(() => server.requests.length === 2, "the second request");

  assert.deepEqual(data.slice(0, 3), ["a1", "b1", "a2"]);
  assert.deepEqual(ids.slice(0, 3), ["a:1,b:0", "a:1,b:1", "a:2,b:1"]);
  assert.equal(stream.lastEventId, "a:2,b:1");
  assert.equal(server.requests[1]!.query.get("lastEventId"), "a:2,b:1");
});

const INTERLEAVED: Record<string, [string, string[], string]> = {
  "of events that a page read meanwhile has again": [
    event("a:6,b:5", "a6") + event("a:6,b:6", "b6") +
      event("a:6,b:5", "a6") + event("a:7,b:5", "a7") + event("a:7,b:6", "b6") + event("a:8,b:6", "a8"),
    ["a6", "b6", "a7", "a8"],
    "a:8,b:6",
  ],
  "of a proxy that is behind in another channel": [
    event("a:5,b:5,a:6", "a6") + event("a:5,b:5,b:6", "b6") + event("a:6,b:6,a:6", "a6") + event("a:6,b:6,a:7", "a7"),
    ["a6", "b6", "a7"],
    "a:7,b:6",
  ],
};
for (const [name, [text, expected, last]] of Object.entries(INTERLEAVED)) {
  test(`ids do not take the cursor back in another channel: ${name}`, async (t) => {
    const server = await Server.start(t, (response) => open(response, opening("a:5,b:5") + text));
    const { stream, data, ids } = new Recorder(t, server.url, { lastEventId: "a:5,b:5" });

    await until(() => data.includes(expected.at(-1)!), "the last event");

    assert.deepEqual(data, expected);
    assert.equal(ids[1], "a:6,b:6");
    assert.equal(ids.at(-1), stream.lastEventId);
    assert.equal(stream.lastEventId, last);
  });
}

test("a place that JavaScript cannot count to is sent back as it came", async (t) => {
  const id = "a:9223372036854775807,b:4";
  const server = await Server.start(t, (response) => open(response, event(id)));
  const { stream, data } = new Recorder(t, server.url, { lastEventId: "a:1,b:5" });

  await until(() => data.length, "the event");

  assert.equal(stream.lastEventId, "a:9223372036854775807,b:5");
});

test("a name and password in the URL, as of a page that was opened with them, are no hindrance", async (t) => {
  const server = await Server.start(t, (response) => open(response, event(1)));
  const { data } = new Recorder(t, server.url.replace("//", "//anna:secret@"));

  await until(() => data.length, "the event");
});

test("ids of types that nobody listens to count", async (t) => {
  const server = await Server.start(t, (response) => open(response, event(1, "x", "other")));
  const { stream } = new Recorder(t, server.url);

  await until(() => stream.lastEventId === "c:1", "the event");
  server.cut();
  await until(() => server.requests.length === 2, "the second request");

  assert.equal(server.requests[1]!.query.get("lastEventId"), "c:1");
});

test("ids that are no positions are sent back as they are", async (t) => {
  const text = event("7f", "a") + event("7e", "b") + event("7e", "c");
  const server = await Server.start(t, (response) => open(response, text));
  const { data } = new Recorder(t, server.url);

  await until(() => data.length === 3, "the events");
  server.cut();
  await until(() => server.requests.length === 2, "the second request");

  assert.equal(server.requests[1]!.query.get("lastEventId"), "7e");
});

test("each handler is called once, with the stream as this, and can be taken away", async (t) => {
  const server = await Server.start(t, (response) => open(response, event(1)));
  const stream = new EventStream(server.url);
  t.after(() => stream.close());
  const calls: string[] = [];
  stream.onmessage = () => calls.push("replaced");
  stream.onmessage = function (message) {
    calls.push(`on ${message.data} ${this === stream}`);
  };
  const listener = (): void => void calls.push("listener");
  stream.addEventListener("message", listener);
  stream.addEventListener("message", listener);
  stream.addEventListener("message", { handleEvent: () => calls.push("object") });
  stream.addEventListener("message", () => calls.push("once"), { once: true });

  await until(() => calls.length === 4, "the calls");
  stream.onmessage = null;
  stream.removeEventListener("message", listener);
  server.write(event(2));
  await until(() => calls.length === 5, "the call");

  assert.deepEqual(calls, ["on 1 true", "listener", "object", "once", "object"]);
  assert.equal(stream.onmessage, null);
});

test("nothing is dispatched after close, not even the rest of what has arrived", async (t) => {
  const server = await Server.start(t, (response) => open(response, event(1) + event(2) + event(3)));
  const { stream, data } = new Recorder(t, server.url);
  stream.addEventListener("message", ({ lastEventId }) => lastEventId === "c:2" && stream.close());

  await until(() => stream.readyState === EventStream.CLOSED, "it is closed");
  await sleep(100);

  assert.deepEqual(data, ["1", "2"]);
  assert.equal(stream.lastEventId, "c:2");
  assert.equal(stream.status, "closed");
  assert.equal(server.requests.length, 1);
  stream.reconnect();
  await sleep(50);
  assert.equal(server.requests.length, 1);
});

for (const last of ["connecting", "offline"] as const) {
  test(`a stream that a handler closes when its status is ${last} stays closed`, async (t) => {
    const server = await Server.start(t, (response, _, number) => {
      if (number === 1) open(response, opening("c:0"));
      else response.writeHead(503).end();
    });
    const { stream, statuses, types } = new Recorder(t, server.url);
    stream.addEventListener("stream-status", ({ status }) => status === last && stream.close());
    await until(() => stream.status === "live", "it is live");

    server.cut();
    await until(() => stream.status === "closed", "it is closed");
    const [requests, dispatched] = [server.requests.length, types.length];
    await sleep(300);

    assert.equal(stream.readyState, EventStream.CLOSED);
    assert.equal(statuses.filter((status) => status === "closed").length, 1);
    assert.equal(server.requests.length, requests);
    assert.equal(types.length, dispatched);
    assert.equal(server.responses.size, 0);
  });
}

test("a stream that a handler reconnects when it is offline does so once", async (t) => {
  const server = await Server.start(t, (response, _, number) => {
    if (number === 2) response.writeHead(503).end();
    else open(response, opening("c:0"));
  });
  const { stream } = new Recorder(t, server.url);
  stream.addEventListener("stream-status", ({ status }) => status === "offline" && stream.reconnect());
  await until(() => stream.status === "live", "it is live");

  server.cut();
  await until(() => server.requests.length === 3, "it has reconnected");
  await sleep(300);

  assert.equal(stream.status, "live");
  assert.equal(server.requests.length, 3);
});

test("a refusal is not told to a stream that a handler has closed by then", async (t) => {
  const server = await Server.start(t, (response) => response.writeHead(403).end());
  const { stream, types } = new Recorder(t, server.url);
  stream.addEventListener("stream-status", ({ status }) => status === "denied" && stream.close());

  await until(() => stream.status === "closed", "it is closed");
  await sleep(50);

  assert.deepEqual(types, []);
});

test("a function for headers may close the stream, which then asks for nothing", async (t) => {
  const server = await Server.start(t, (response) => open(response));
  const { stream } = new Recorder(t, server.url, {
    headers: () => {
      stream.close();
      return {};
    },
  });

  await until(() => stream.status === "closed", "it is closed");
  await sleep(100);

  assert.equal(server.requests.length, 0);
});

test("stream-reset has its channels, and sets the cursor back", async (t) => {
  const reset = event("a:2,b:7", '{"channels": ["a"]}', "stream-reset");
  const server = await Server.start(t, (response) => open(response, opening("a:99,b:7") + reset + event("a:3,b:7", "a3")));
  const { stream, data } = new Recorder(t, server.url, { lastEventId: "a:99,b:7" });
  const resets: StreamResetEvent[] = [];
  stream.addEventListener("stream-reset", (e) => resets.push(e));

  await until(() => data.length, "the event after it");

  assert.equal(resets.length, 1);
  assert.ok(resets[0] instanceof StreamResetEvent);
  assert.deepEqual(resets[0].channels, ["a"]);
  assert.equal(stream.lastEventId, "a:3,b:7");
});

test("a stream that is reset to begin with a state has no position until there is one", async (t) => {
  const reset = event("", '{"channels": ["c"]}', "stream-reset");
  const server = await Server.start(t, (response, _, number) => {
    open(response, number === 1 ? opening("c:99", "c:10") + reset : opening("c:10"));
  });
  const { stream, types } = new Recorder(t, server.url, { lastEventId: "c:99" });

  await until(() => types.includes("stream-reset"), "the reset");
  for (const count of [2, 3]) {
    server.cut(); // the second time before any event, and there is no state any more
    await until(() => server.requests.length === count, "another request");
    await until(() => stream.status === "live", "it is open");
  }

  assert.deepEqual(server.requests.map(({ query }) => query.get("lastEventId")), ["c:99", null, "c:10"]);
});

test("stream-error ends the stream, with its reason, and keeps the cursor", async (t) => {
  const error = { condition: "forbidden", text: "No.", channels: ["c"] };
  const server = await Server.start(t, (response, _, number) => {
    open(response, number === 1 ? event(1) + event("error", JSON.stringify(error), "stream-error") : event(2));
    if (number === 1) response.end();
  });
  const { stream, data, statuses } = new Recorder(t, server.url);
  const errors: StreamErrorEvent[] = [];
  stream.addEventListener("stream-error", (e) => errors.push(e));

  await until(() => errors.length, "the error");
  await sleep(100);

  assert.equal(stream.status, "denied");
  assert.equal(stream.readyState, EventStream.CLOSED);
  const { condition, text, channels } = errors[0]!;
  assert.deepEqual({ condition, text, channels }, error);
  assert.equal(server.requests.length, 1);

  stream.reconnect();
  await until(() => data.length === 2, "the next event, once it is allowed again");
  assert.equal(server.requests[1]!.query.get("lastEventId"), "c:1");
  assert.ok(statuses.includes("denied"));
});

test("a stream-error of the server's own fault is tried again", async (t) => {
  const error = event("error", '{"condition": "internal-error", "text": "Oops"}', "stream-error");
  const server = await Server.start(t, (response, _, number) => open(response, number < 3 ? error : event(1)));
  const { stream, data } = new Recorder(t, server.url);

  await until(() => data.length, "the event");

  assert.equal(server.requests.length, 3);
  assert.notEqual(stream.status, "denied");
});

const ENDS: Record<string, (stream: EventStream) => string> = {
  "an internal error": () => event("error", '{"condition": "internal-error", "text": "Oops"}', "stream-error"),
  "a token that has expired": () => 'event: stream-error\ndata: {"condition": "token-expired", "text": "It is over."}\n\n',
  "reconnect() in a handler": (stream) => {
    stream.addEventListener("message", () => stream.reconnect());
    return event(2);
  },
};
for (const [name, prepare] of Object.entries(ENDS)) {
  test(`${name} leaves a stream that connects, and is not live`, async (t) => {
    const server = await Server.start(t, (response, _, number) => {
      if (number === 1) open(response, opening("c:1"));
    });
    const options = { lastEventId: "c:1", token: () => "t" };
    const { stream, statuses } = new Recorder(t, server.url, options);
    await until(() => stream.status === "live", "it is live");

    server.write(prepare(stream));
    await until(() => server.requests.length === 2, "the second request");
    await sleep(50);

    assert.deepEqual(statuses, ["live", "connecting"]);
    assert.equal(stream.readyState, EventStream.CONNECTING);
  });
}

for (const [status, condition] of [[400, "bad-request"], [403, "forbidden"], [401, "forbidden"], [404, "bad-request"], [501, "bad-request"]] as const) {
  test(`an answer of ${status} is a refusal: ${condition}`, async (t) => {
    const server = await Server.start(t, (response) => response.writeHead(status).end());
    const { stream, types } = new Recorder(t, server.url);
    const errors: StreamErrorEvent[] = [];
    stream.addEventListener("stream-error", (e) => errors.push(e));

    await until(() => types.includes("error"), "the error");
    await sleep(100);

    assert.equal(errors[0]?.condition, condition);
    assert.match(errors[0]!.text, new RegExp(String(status)));
    assert.equal(stream.status, "denied");
    assert.equal(server.requests.length, 1);
  });
}

for (const [name, type, body, told] of [
  ["plain text", "text/plain; charset=utf-8", "Use ASGI.\n", ["bad-request", "The server has answered 404. Use ASGI.", []]],
  ["HTML", "text/html", "<h1>No</h1>", ["bad-request", "The server has answered 404.", []]],
  [
    "a stream-error",
    "text/event-stream",
    event("error", '{"condition": "gone", "text": "No.", "channels": ["a"]}', "stream-error"),
    ["gone", "No.", ["a"]],
  ],
  ["a stream of something else", "text/event-stream", event("c:1", "1"), ["bad-request", "The server has answered 404.", []]],
] as const) {
  test(`a refusal in ${name} is told as it should be`, async (t) => {
    const server = await Server.start(t, (response) => response.writeHead(404, { "Content-Type": type }).end(body));
    const { stream, types } = new Recorder(t, server.url);
    const errors: StreamErrorEvent[] = [];
    stream.addEventListener("stream-error", (e) => errors.push(e));

    await until(() => types.includes("error"), "the error");

    assert.deepEqual(errors.map(({ condition, text, channels }) => [condition, text, channels]), [told]);
    assert.equal(stream.status, "denied");
  });
}

test("a refusal whose text does not come is asked for again", async (t) => {
  const server = await Server.start(t, (response, _, number) => {
    if (number > 1) open(response, opening("c:0"));
    else response.writeHead(501, { "Content-Type": "text/plain" }).write("Use");
  });
  const { stream } = new Recorder(t, server.url, { silenceTimeout: 500 });

  await until(() => stream.status === "live", "it is live", 12_000);

  assert.equal(server.requests.length, 2);
});

test("204 ends the stream", async (t) => {
  const server = await Server.start(t, (response) => response.writeHead(204).end());
  const { stream } = new Recorder(t, server.url);

  await until(() => stream.status === "closed", "it is closed");
  await sleep(100);

  assert.equal(server.requests.length, 1);
});

for (const [name, answer] of [
  ["500", { status: 500 }],
  ["503", { status: 503 }],
  ["429", { status: 429 }],
  ["another content type", { status: 200, type: "text/html" }],
] as const) {
  test(`${name} is tried again`, async (t) => {
    const server = await Server.start(t, (response, _, number) => {
      if (number > 2) return open(response, event(1));
      // With a retry in a 200 of ours the waits would be short; before, they are not.
      response.writeHead(answer.status, { "Content-Type": "type" in answer ? answer.type : "text/plain" }).end("retry: 1\n\n");
    });
    const { stream, data, types } = new Recorder(t, server.url);

    // Two seconds and a random part: nobody has said how long to wait.
    await until(() => types.includes("error"), "the first failure");
    assert.equal(stream.status, "offline");
    stream.reconnect();
    await until(() => types.filter((x) => x === "error").length === 2, "the second");
    stream.reconnect();
    await until(() => data.length, "the event");
    assert.equal(server.requests.length, 3);
  });
}

test("a stream without anything in it, as of a proxy whose server is away, leaves it offline", async (t) => {
  let isAway = false;
  const server = await Server.start(t, (response) => {
    open(response, isAway ? "" : opening("c:1"));
    if (isAway) response.end();
  });
  const { stream, statuses } = new Recorder(t, server.url);
  await until(() => stream.status === "live", "it is live");

  isAway = true;
  server.cut();
  await until(() => server.requests.length === 4, "some attempts");
  isAway = false;
  await until(() => stream.status === "live", "it is live again");

  assert.deepEqual(statuses, ["live", "connecting", "offline", "live"]);
});

test("Retry-After is waited out", async (t) => {
  const server = await Server.start(t, (response, _, number) => {
    if (number === 1) return open(response, event(1));
    if (number === 2) return response.writeHead(429, { "Retry-After": "1" }).end();
    open(response, event(2));
  });
  const { data } = new Recorder(t, server.url);
  await until(() => data.length, "the first event");
  server.cut();

  await until(() => data.length === 2, "the second event");

  const [, refused, again] = server.requests;
  assert.ok(again!.at - refused!.at >= 1_000, `${again!.at - refused!.at} ms`);
});

test("the server's retry is kept to, and waits grow", async (t) => {
  const server = await Server.start(t, (response, _, number) => {
    if (number > 1) return response.writeHead(500).end();
    open(response);
    response.end("retry: 100\n\n");
  });
  new Recorder(t, server.url, { max_retry_time: 1_000 });

  await until(() => server.requests.length === 5, "attempts");

  const times = server.requests.map((r) => r.at);
  const waits = times.slice(1).map((at, index) => at - times[index]!);
  assert.ok(waits.every((wait) => wait >= 95), waits.join());
});

test("a stream that falls silent is given up, and goes on where it was", async (t) => {
  const server = await Server.start(t, (response, { query }) => {
    open(response, query.get("lastEventId") === "c:1" ? event(2) : event(1));
  });
  const { data, types } = new Recorder(t, server.url, { silenceTimeout: 500 });

  await until(() => data.length === 2, "the second event");

  assert.deepEqual(data, ["1", "2"]);
  assert.ok(types.includes("error"));
});

test("a silence is noticed though the clock is set back", async (t) => {
  const server = await Server.start(t, (response) => open(response, opening("c:1")));
  const { stream } = new Recorder(t, server.url, { silenceTimeout: 500 });
  await until(() => stream.status === "live", "it is live");
  const { now } = Date;

  t.mock.method(Date, "now", () => now() - 3_600_000);

  await until(() => server.requests.length === 2, "the second request");
});

test("a network that is back is tried at once though the clock is set back", async (t) => {
  const server = await Server.start(t, (response, _, number) => {
    if (number === 1) response.writeHead(503).end();
    else open(response, event(1));
  });
  const page = new EventTarget();
  const { addEventListener } = globalThis;
  globalThis.addEventListener = page.addEventListener.bind(page) as typeof addEventListener;
  const { stream, data } = new Recorder(t, server.url);
  globalThis.addEventListener = addEventListener;
  await until(() => stream.status === "offline", "the first failure");
  const { now } = Date;

  t.mock.method(Date, "now", () => now() - 3_600_000);
  page.dispatchEvent(new Event("online"));

  await until(() => data.length, "the event", 1_900); // the least that it would wait by itself is more
});

test("keep-alives and comments are no silence", async (t) => {
  const server = await Server.start(t, (response, _, number) => {
    open(response, event(1));
    const text = number % 2 ? ": \n\n" : "event: keep-alive\ndata:\n\n";
    const timer = setInterval(() => response.write(text), 200);
    response.on("close", () => clearInterval(timer));
  });
  new Recorder(t, server.url, { silenceTimeout: 500 });

  await sleep(3_000);

  assert.equal(server.requests.length, 1);
});

test("the server's keep-alive says how long a silence may be", async (t) => {
  const server = await Server.start(t, (response) => open(response, opening("c:0", "c:0", 0.001)));
  t.mock.timers.enable({ apis: ["Date"], now: Date.now() });
  const { stream } = new Recorder(t, server.url);
  await until(() => stream.status === "live", "it is live");

  t.mock.timers.tick(4_000); // two keep-alives and five seconds
  await sleep(2_200);
  assert.equal(server.requests.length, 1);
  t.mock.timers.tick(2_000);
  const deadline = performance.now() + 5_000;
  while (server.requests.length < 2 && performance.now() < deadline) await sleep(20);
  assert.equal(server.requests.length, 2);
});

test("status: catching up to the head, then live", async (t) => {
  const server = await Server.start(t, (response) => open(response, opening("c:0", "c:2") + event(1)));
  const { stream, statuses, data } = new Recorder(t, server.url, { lastEventId: "c:0" });
  assert.equal(stream.status, "connecting");
  await until(() => data.length, "the first event");
  assert.equal(stream.status, "catching-up");

  server.write(event(2));

  await until(() => stream.status === "live", "it is live");
  assert.deepEqual(statuses, ["catching-up", "live"]);
  server.cut();
  await until(() => stream.status === "connecting", "it connects");
});

test("status: a stream that is at the head is live at once; one that hears nothing more, soon", async (t) => {
  const server = await Server.start(t, (response, { query }) => open(response, opening(query.get("lastEventId")!, "c:5")));
  const first = new Recorder(t, server.url, { lastEventId: "c:5" });
  const second = new Recorder(t, server.url, { lastEventId: "c:4" });

  await until(() => first.stream.status === "live", "it is live");
  await until(() => second.stream.status === "live", "what is missing was for others");

  assert.deepEqual(first.statuses, ["live"]);
  assert.deepEqual(second.statuses, ["catching-up", "live"]);
});

test("status: live once the initial states are there, however long they take", async (t) => {
  const server = await Server.start(t, (response) => open(response, opening("c:5", "c:5", 20, 2)));
  const { stream, statuses, states } = new Recorder(t, server.url);
  await until(() => stream.status === "catching-up", "it is open");

  server.write(state("c:5,d:3", "one"));
  await until(() => states.length, "the first state");
  await sleep(1_200);
  assert.deepEqual(statuses, ["catching-up"]);
  server.write(state("", "two"));

  await until(() => stream.status === "live", "it is live");
  assert.deepEqual(states, ["one", "two"]);
});

test("status: a stream of which nothing is stored is live as it opens", async (t) => {
  const server = await Server.start(t, (response) => open(response, opening("")));
  const { stream, statuses } = new Recorder(t, server.url);

  await until(() => stream.status === "live", "it is live", 1_000);

  assert.deepEqual(statuses, ["live"]);
});

test("readyState, open and error are an EventSource's", async (t) => {
  const server = await Server.start(t, (response) => open(response, event(1)));
  const { stream, types } = new Recorder(t, server.url);
  assert.equal(stream.readyState, EventStream.CONNECTING);
  await until(() => stream.readyState === stream.OPEN, "it is open");

  server.cut();

  await until(() => types.includes("error"), "the error");
  assert.equal(stream.readyState, EventStream.CONNECTING);
  await until(() => types.length === 3, "open again");
  assert.deepEqual(types, ["open", "error", "open"]);
});

test("headers and a token are asked for before each attempt", async (t) => {
  const server = await Server.start(t, (response) => open(response, event(1)));
  let number = 0;
  const { data } = new Recorder(t, server.url, {
    headers: () => ({ "X-Page": "board" }),
    token: () => Promise.resolve(`t${(number += 1)}`),
  });
  await until(() => data.length, "the event");
  server.cut();
  await until(() => server.requests.length === 2, "the second request");

  assert.deepEqual(server.requests.map((r) => r.headers.authorization), ["Bearer t1", "Bearer t2"]);
  assert.equal(server.requests[0]!.headers["x-page"], "board");
  assert.equal(server.requests[0]!.headers.accept, "text/event-stream");
});

test("401 is tried once more where the token can be another", async (t) => {
  const server = await Server.start(t, (response, { headers }, number) => {
    if (number === 1) return open(response, event(1));
    if (headers.authorization === "Bearer t3") open(response, event(2));
    else response.writeHead(401).end();
  });
  let number = 0;
  const { data } = new Recorder(t, server.url, { token: () => `t${(number += 1)}` });
  await until(() => data.length, "the event");

  server.cut();

  await until(() => data.length === 2, "the second event");
  assert.equal(server.requests.length, 3);
});

test("a token that has expired is replaced, and the page need not know", async (t) => {
  const expired = event("error", '{"condition": "token-expired", "text": "It is over."}', "stream-error");
  const server = await Server.start(t, (response, { headers }) => {
    open(response, headers.authorization === "Bearer t1" ? event(1) + expired : event(2));
  });
  let number = 0;
  const { data, types } = new Recorder(t, server.url, { token: () => `t${(number += 1)}` });

  await until(() => data.length === 2, "the second event");

  assert.ok(!types.includes("stream-error"));
});

const FAILURES: Record<string, (failure: Error) => Promise<string>> = {
  throws: (failure) => {
    throw failure;
  },
  rejects: (failure) => Promise.reject(failure),
};
for (const [name, fail] of Object.entries(FAILURES)) {
  test(`a token function that ${name} is asked again later, and the page hears why`, async (t) => {
    const server = await Server.start(t, (response) => open(response, event(1)));
    const failure = new TypeError("response.jsn is not a function");
    let number = 0;
    const log = t.mock.method(console, "error", () => undefined);
    const errors: unknown[] = [];
    const { stream, data } = new Recorder(t, server.url, { token: () => ((number += 1) === 1 ? fail(failure) : "t") });
    stream.addEventListener("error", ({ error }) => errors.push(error));
    await until(() => errors.length, "the failure");
    assert.equal(stream.status, "offline");
    stream.reconnect();

    await until(() => data.length, "the event");
    server.cut();
    await until(() => errors.length === 2, "the connection is lost");

    assert.deepEqual(errors, [failure, undefined]);
    assert.deepEqual(log.mock.calls.map(({ arguments: [first] }) => first), [failure]);
  });
}

test("by an EventSource: the same, but for what it cannot see", async (t) => {
  const live = "event: message\ndata: live\n\n";
  const server = await Server.start(t, (response, { query }) => {
    const from = query.get("lastEventId");
    if (from === "c:1") open(response, event(2) + event(2, 2, "unheard") + live + event(3) + event(2));
    else open(response, event(1));
  });
  const { data } = new Recorder(t, server.url, { eventSourceClass: EventSource as never, token: "secret" });
  await until(() => data.length, "the first event");
  await sleep(20);
  server.cut();

  await until(() => data.includes("3"), "the events after it", 12_000);

  assert.deepEqual(data, ["1", "2", "live", "3"]);
  assert.equal(server.requests[0]!.query.get("token"), "secret");
});

test("by an EventSource: a reset to no position, as a state follows, takes the old one away", async (t) => {
  const reset = event("", '{"channels": ["c"]}', "stream-reset");
  // The log was lost, and began anew: what follows is behind the old position.
  const text = opening("c:99", "c:10", 20, 0) + reset + state("c:10", "state") + event(11);
  const server = await Server.start(t, (response) => open(response, text));
  const { stream, states, data } = new Recorder(t, server.url, { lastEventId: "c:99", eventSourceClass: EventSource as never });

  await until(() => data.length, "the event after it");

  assert.deepEqual([states, data], [["state"], ["11"]]);
  assert.equal(stream.lastEventId, "c:11");
});

test("by an EventSource: a token that has expired ends the stream, and the next has its position", async (t) => {
  const data = '{"condition": "token-expired", "text": "It is over."}';
  // As the view has it: status 200, and no id, so that the position is kept.
  const expired = `event: stream-error\ndata: ${data}\n\n`;
  const server = await Server.start(t, (response, { query }) => {
    const isOld = query.get("token") === "old";
    if (isOld && query.get("lastEventId") === "c:1") open(response, expired), response.end();
    else open(response, event(isOld ? 1 : 2));
  });
  const options = { eventSourceClass: EventSource as never };
  const first = new Recorder(t, server.url, { ...options, token: "old" });
  const errors: string[] = [];
  first.stream.addEventListener("stream-error", ({ condition }) => errors.push(condition));
  await until(() => first.data.length, "the first event");
  server.cut();
  await until(() => first.stream.status === "denied", "the refusal", 12_000);
  const count = server.requests.length;
  await sleep(200);

  assert.equal(server.requests.length, count);
  assert.deepEqual(errors, ["token-expired"]);
  const { lastEventId } = first.stream;
  const second = new Recorder(t, server.url, { ...options, token: "new", lastEventId });
  await until(() => second.data.length, "the event after it");
  assert.equal(server.requests.at(-1)!.query.get("lastEventId"), "c:1");
  assert.deepEqual(second.ids, ["c:2"]);
});

const WRONG: [object, RegExp][] = [
  [{ transport: "websocket" }, /transport: "fetch" or "eventsource", not "websocket"/],
  [{ transport: "fetch", eventSourceClass: EventSource }, /eventSourceClass/],
  [{ eventSourceClass: EventSource, headers: {} }, /headers/],
  [{ eventSourceClass: EventSource, token: () => "t" }, /token/],
  [{ eventSourceClass: EventSource, share: true }, /share/],
  [{ share: true, token: "t" }, /share/],
  [{ max_retry_time: -1 }, /max_retry_time: milliseconds, 0 or more, not -1/],
  [{ silenceTimeout: "5s" }, /silenceTimeout/],
  [{ lastEventID: "c:1" }, /lastEventID: there is no such option/],
  [{ lastEventId: 1 }, /lastEventId: a text, not 1/],
  [{ headers: { "no name": "1" } }, /no name/],
];
for (const [options, message] of WRONG) {
  test(`what makes no sense is said at once: ${message.source}`, () => {
    assert.throws(() => new EventStream("http://localhost/", options as never), (error) => error instanceof TypeError && message.test(error.message));
  });
}

test("a URL that is none is said at once", () => {
  assert.throws(() => new EventStream("http://["), SyntaxError);
});

test("in a worker, which has no document, a path is of its own address", (t) => {
  const scope = globalThis as { location?: unknown };
  scope.location = { href: "http://localhost:8000/static/worker.js" };
  t.after(() => delete scope.location);
  const stream = new EventStream("/events/?channel=c");
  stream.close();

  assert.equal(stream.url, "http://localhost:8000/events/?channel=c");
});
