/**
 * Sharing, with the tabs all in one process: Node has BroadcastChannel and locks, too. Tabs
 * of real browsers, which can be killed and frozen, are in tests/acceptance/test_browser.py.
 */

import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

import { EventStream } from "../src/eventstream.ts";
import { event, open, opening, Recorder, Server, sleep, state, until } from "./server.ts";

let names = 0;

/** A log of one channel, served as eventstream does: from the position on, then live. */
class Log {
  server!: Server;
  head = 0;
  readonly #share = `t${process.pid}-${(names += 1)}`;
  readonly #t: TestContext;

  private constructor(t: TestContext, head: number) {
    this.#t = t;
    this.head = head;
  }

  static async start(t: TestContext, head = 0): Promise<Log> {
    const log = new Log(t, head);
    log.server = await Server.start(t, (response, { query }) => {
      const from = Number((query.get("lastEventId") ?? `c:${log.head}`).slice(2));
      let text = opening(`c:${from}`, `c:${log.head}`);
      for (let id = from + 1; id <= log.head; id += 1) text += event(id);
      open(response, text);
    });
    return log;
  }

  send(count = 1): void {
    for (let n = 0; n < count; n += 1) this.server.write(event((this.head += 1)));
  }

  tab(from?: number, share: boolean | string = this.#share): Recorder {
    return new Recorder(this.#t, this.server.url, { share, ...(from !== undefined && { lastEventId: `c:${from}` }) });
  }

  get connections(): number {
    return this.server.responses.size;
  }
}

function range(first: number, last: number): string[] {
  return Array.from({ length: last - first + 1 }, (_, n) => String(first + n));
}

test("six tabs have one connection, and each receives everything once", async (t) => {
  const log = await Log.start(t);
  const tabs = range(1, 6).map(() => log.tab(0));
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");

  log.send(50);
  await until(() => tabs.every(({ data }) => data.length === 50), "all have everything");

  assert.equal(log.server.requests.length, 1);
  for (const { data, ids } of tabs) {
    assert.deepEqual(data, range(1, 50));
    assert.equal(ids.at(-1), "c:50");
  }
});

test("a tab that comes late begins at its own page's position", async (t) => {
  const log = await Log.start(t);
  const first = log.tab(0);
  await until(() => first.stream.status === "live", "it is live");
  log.send(10);
  await until(() => first.data.length === 10, "ten events");

  const second = log.tab(7);
  const third = log.tab();
  await until(() => second.data.length === 3, "what its page was too old for");
  await until(() => third.stream.status === "live", "it is live");
  log.send(2);
  await until(() => [second, third].every(({ data }) => data.at(-1) === "12"), "two more");

  assert.deepEqual(second.data, range(8, 12));
  assert.deepEqual(third.data, range(11, 12));
  assert.equal(log.server.requests.length, 1);
});

test("a tab older than what the leader remembers reads alone until it is level", async (t) => {
  const log = await Log.start(t, 40);
  const first = log.tab(40);
  await until(() => first.stream.status === "live", "it is live");

  const second = log.tab(3);
  await until(() => second.data.length === 37, "the backlog");
  await until(() => log.connections === 1, "its own connection is over");
  log.send(3);
  await until(() => second.data.length === 40 && first.data.length === 3, "all of it");

  assert.deepEqual(second.data, range(4, 43));
  assert.deepEqual(first.data, range(41, 43));
  assert.equal(log.server.requests.length, 2);
});

test("a tab that is level has the leader's status at once", async (t) => {
  const log = await Log.start(t, 40);
  const first = log.tab(40);
  await until(() => first.stream.status === "live", "it is live");

  const second = log.tab(3);
  await until(() => second.data.length === 37 && log.connections === 1, "it is level");

  assert.equal(second.stream.status, "live");
});

test("a tab whose page is ahead of the leader gets nothing twice", async (t) => {
  const log = await Log.start(t);
  const first = log.tab(0);
  await until(() => first.stream.status === "live", "it is live");
  log.head = 2; // numbered, and on its way to the leader's connection
  const second = log.tab(2);
  await until(() => second.stream.status === "live", "it is live, alone");

  log.server.responses.forEach((response) => response.write(event(1) + event(2)));
  await until(() => first.data.length === 2, "they arrive");
  await until(() => log.connections === 1, "the two are level");
  log.send();
  await until(() => second.data.length && first.data.length === 3, "the next");

  assert.deepEqual(first.data, range(1, 3));
  assert.deepEqual(second.data, range(3, 3));
});

test("when the leader is closed another goes on from its own cursor", async (t) => {
  const log = await Log.start(t);
  const tabs = range(1, 5).map(() => log.tab(0));
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");
  const closed: Recorder[] = [];

  for (let round = 1; round <= 4; round += 1) {
    log.send(5);
    const open = tabs.filter((tab) => !closed.includes(tab));
    await until(() => open.every(({ data }) => data.length === round * 5), "five events");
    const leader = open[0]!; // they got in line in this order
    leader.stream.close();
    closed.push(leader);
    log.send(0);
    await until(() => log.server.requests.length === round + 1, "another connects");
  }
  log.send(5);
  await until(() => tabs[4]!.data.length === 25, "the last five");

  assert.deepEqual(tabs[4]!.data, range(1, 25));
  for (const [index, { data }] of closed.entries()) assert.deepEqual(data, range(1, (index + 1) * 5));
});

test("events sent while nobody leads are missed by none", async (t) => {
  const log = await Log.start(t);
  const [first, second, third] = [log.tab(0), log.tab(0), log.tab(0)];
  await until(() => third.stream.status === "live", "all are live");

  first.stream.close();
  log.head += 3;
  await until(() => second.data.length === 3 && third.data.length === 3, "three events");
  log.send(2);
  await until(() => second.data.length === 5 && third.data.length === 5, "two more");

  assert.deepEqual(second.data, range(1, 5));
  assert.deepEqual(third.data, range(1, 5));
});

test("tabs that come and go under load miss nothing and get nothing twice", async (t) => {
  const log = await Log.start(t);
  const tabs: [Recorder, number][] = [];
  const sender = setInterval(() => log.send(3), 4);
  t.after(() => clearInterval(sender));
  for (let round = 0; round < 40; round += 1) {
    await sleep(25);
    const from = Math.max(0, log.head - (round % 4) * 7);
    tabs.push([log.tab(from), from]);
    if (round % 3 === 2) tabs[Math.floor(round / 2)]![0].stream.close();
    if (round % 9 === 8) log.server.cut();
  }
  clearInterval(sender);
  const last = log.head;
  const open = tabs.filter(([{ stream }]) => stream.readyState !== EventStream.CLOSED);
  await until(() => open.every(([{ data }, from]) => data.length >= last - from), "all have everything", 20_000);
  await until(() => log.connections === 1, "one connection is left");

  assert.ok(open.length > 20);
  for (const [{ data, stream }, from] of tabs) {
    const end = stream.readyState === EventStream.CLOSED ? Number(data.at(-1) ?? from) : last;
    assert.deepEqual(data, range(from + 1, end));
  }
});

test("a denied leader ends itself; each of the others asks for itself", async (t) => {
  const log = await Log.start(t);
  const tabs = [log.tab(0), log.tab(0), log.tab(0)];
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");

  log.server.write(event("error", '{"condition": "forbidden", "text": "No."}', "stream-error"));
  await until(() => log.server.requests.length === 2, "the second asks");
  log.send();

  await until(() => tabs[2]!.data.length, "it may read");
  assert.deepEqual(tabs.map(({ stream }) => stream.status), ["denied", "live", "live"]);
});

test("a tab that a handler closes, as its leader has gone, leaves the others alone", async (t) => {
  const log = await Log.start(t);
  const tabs = [log.tab(0), log.tab(0), log.tab(0)];
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");
  const errors: unknown[] = [];
  const note = (error: unknown): void => void errors.push(error);
  process.on("uncaughtException", note);
  t.after(() => process.off("uncaughtException", note));
  const { stream } = tabs[2]!;
  stream.addEventListener("stream-status", ({ status }) => status === "connecting" && stream.close());

  tabs[0]!.stream.close();
  await until(() => log.server.requests.length === 2, "the second leads");
  log.send();
  await until(() => tabs[1]!.data.length, "the event");

  assert.equal(tabs[2]!.statuses.at(-1), "closed");
  assert.deepEqual(errors, []);
});

test("a tab that a handler closes as it begins to lead does not keep the lock", async (t) => {
  const log = await Log.start(t);
  const tabs = [log.tab(0, "kept"), log.tab(0, "kept")];
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");
  const { stream } = tabs[1]!;
  stream.addEventListener("stream-status", ({ status }) => status === "connecting" && stream.close());

  tabs[0]!.stream.close();
  await until(() => stream.status === "closed", "it is closed");
  await sleep(20);

  const { held } = await navigator.locks.query();
  assert.deepEqual(held!.filter(({ name }) => name!.startsWith("eventstream:kept")), []);
});

test("a leader that a handler reconnects gets in line, and nothing is lost or comes twice", async (t) => {
  const log = await Log.start(t);
  const tabs = [log.tab(0), log.tab(0)];
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");
  const { stream } = tabs[0]!;
  stream.addEventListener("message", ({ data }) => data === "3" && stream.reconnect());

  log.send(3);
  await until(() => tabs.every(({ data }) => data.length === 3), "the events");
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live again");
  log.send(2);
  await until(() => tabs.every(({ data }) => data.length === 5), "two more");

  for (const { data } of tabs) assert.deepEqual(data, range(1, 5));
  assert.equal(log.connections, 1);
});

/** A server whose streams begin with a state, where they have no position. */
async function startStateful(
  t: TestContext,
  answer: (head: number) => [opening: string, state: string],
  delay = 0,
): Promise<{ server: Server; tab: () => Recorder; send: () => void }> {
  let head = 3;
  const server = await Server.start(t, (response, { query }) => {
    const from = query.get("lastEventId");
    if (from) return open(response, opening(from, `c:${head}`, 20, 0));
    const [opened, begins] = answer(head);
    open(response, opened + (delay ? "" : begins));
    if (delay) setTimeout(() => response.write(begins), delay);
  });
  const share = `states${process.pid}-${(names += 1)}`;
  return {
    server,
    tab: () => new Recorder(t, server.url, { share }),
    send: () => server.write(event((head += 1))),
  };
}

const BEGINNINGS: Record<string, [(head: number) => [string, string], delay?: number]> = {
  "of a channel with a log": [(head) => [opening("", `c:${head}`, 20, 1), state(`c:${head}`, head)]],
  "of a best-effort channel": [(head) => [opening("", "", 20, 1), state("", head)]],
  "that comes after its stream is at the head": [(head) => [opening(`c:${head}`, `c:${head}`, 20, 1), state("", head)], 300],
};
for (const [name, [answer, delay]] of Object.entries(BEGINNINGS)) {
  test(`a tab without a position has an initial state of its own, and then shares: ${name}`, async (t) => {
    const { server, tab, send } = await startStateful(t, answer, delay);
    const first = tab();
    await until(() => first.stream.status === "live", "it is live");
    send();
    await until(() => first.data.length, "an event");

    const second = tab();
    await until(() => second.states.length, "its state");
    await until(() => server.responses.size === 1, "it shares");
    send();
    await until(() => second.data.length && first.data.length === 2, "another event");

    assert.deepEqual([first.states, second.states], [["3"], ["4"]]);
    assert.deepEqual([first.data, second.data], [["4", "5"], ["5"]]);
    assert.equal(second.stream.status, "live");
    assert.equal(server.requests.length, 2);
  });
}

test("a tab without a position waits for its initial state, however long the stream takes to open", async (t) => {
  let head = 3;
  const begin = (): string => opening("", `c:${head}`, 20, 1) + state(`c:${head}`, head);
  const server = await Server.start(t, (response, _, number) => {
    open(response, number === 1 ? begin() : "");
    if (number > 1) setTimeout(() => response.write(begin()), 6_000); // who hears nothing is live after five
  });
  const tab = (): Recorder => new Recorder(t, server.url, { share: `slow${process.pid}` });
  const first = tab();
  await until(() => first.stream.status === "live", "it is live");

  const second = tab();
  await until(() => second.states.length, "its state", 12_000);
  await until(() => server.responses.size === 1, "it shares");
  server.write(event((head += 1)));
  await until(() => second.data.length && first.data.length, "an event");

  assert.deepEqual([second.states, second.data], [["3"], ["4"]]);
});

test("tabs without a position that open together share a connection and its initial state", async (t) => {
  const { server, tab, send } = await startStateful(t, BEGINNINGS["of a channel with a log"]![0]);
  const tabs = [tab(), tab(), tab()];
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");
  send();
  await until(() => tabs.every(({ data }) => data.length), "the event");

  for (const { states, data } of tabs) assert.deepEqual([states, data], [["3"], ["4"]]);
  assert.equal(server.requests.length, 1);
});

const RETURNS: Record<string, (tab: Recorder, page: EventTarget) => void> = {
  "becomes visible": (_, page) => page.dispatchEvent(new Event("visibilitychange")),
  "is told to reconnect": ({ stream }) => stream.reconnect(),
};
for (const [name, comeBack] of Object.entries(RETURNS)) {
  test(`a tab that ${name} does not wait out the leader's backoff`, async (t) => {
    let isUp = true;
    const server = await Server.start(t, (response) => {
      if (isUp) open(response, `retry: 60000\n\n${opening("c:0")}`);
      else response.writeHead(503).end();
    });
    const page = globalThis as { document?: unknown };
    const pages = [new EventTarget(), new EventTarget()].map((target) => Object.assign(target, { visibilityState: "visible" }));
    const tabs = pages.map((document) => {
      page.document = document;
      return new Recorder(t, server.url, { share: `${name}${process.pid}`, lastEventId: "c:0" });
    });
    delete page.document;
    await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");
    isUp = false;
    server.cut();
    await until(() => tabs.every(({ stream }) => stream.status === "connecting"), "the connection is lost");
    await sleep(1_000); // the least between two attempts
    isUp = true;

    comeBack(tabs[1]!, pages[1]!);

    await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live again", 2_000);
    assert.equal(server.responses.size, 1);
  });
}

test("a leader that has no token any more lets another lead", async (t) => {
  const server = await Server.start(t, (response) => open(response, opening("c:0")));
  const share = `token${process.pid}`;
  let isLoggedIn = true;
  t.mock.method(console, "error", () => undefined);
  const token = (): string => {
    if (isLoggedIn) return "t";
    throw new Error("This page's CSRF token is old");
  };
  const options = { share, lastEventId: "c:0" };
  const first = new Recorder(t, server.url, { ...options, token });
  const others = [1, 2].map(() => new Recorder(t, server.url, { ...options, token: "t" }));
  const tabs = [first, ...others];
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");

  isLoggedIn = false;
  server.cut();
  await until(() => tabs.every(({ stream }) => stream.status === "offline"), "it has no token");
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "another leads", 10_000);
  server.write(event(1));
  await until(() => tabs.every(({ data }) => data.length), "the event");

  assert.equal(server.requests.length, 2);
  assert.equal(server.responses.size, 1);
  for (const { statuses } of tabs) assert.deepEqual(statuses, ["live", "connecting", "offline", "live"]);
});

test("tabs that share take turns at a server that is down, and ask no more often than one", async (t) => {
  const server = await Server.start(t, (response, _, number) => {
    if (number === 1 || number > 5) open(response, opening("c:0"));
    else response.writeHead(503).end();
  });
  // Those that have not had a connection yet wait for two seconds and more.
  const tabs = [1, 2, 3].map(() => new Recorder(t, server.url, { share: `down${process.pid}`, lastEventId: "c:0" }));
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");

  server.cut();
  await until(() => server.requests.length === 6, "two attempts of the first, one of each other", 12_000);
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");

  const times = server.requests.map(({ at }) => at);
  for (const index of [3, 4]) assert.ok(times[index]! - times[index - 1]! >= 1_900, times.join());
  assert.equal(server.requests.length, 6);
  for (const { statuses } of tabs) assert.deepEqual(statuses, ["live", "connecting", "offline", "live"]);
});

test("a reset reaches all tabs, in its place", async (t) => {
  const log = await Log.start(t);
  const tabs = [log.tab(0), log.tab(0)];
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");

  log.send();
  log.server.write(event("c:0", '{"channels": ["c"]}', "stream-reset"));
  log.head = 0;
  log.send();
  await until(() => tabs.every(({ data }) => data.length === 2), "both have both");

  for (const { data, types } of tabs) {
    assert.deepEqual(data, ["1", "1"]);
    assert.ok(types.includes("stream-reset"));
  }
});

test("a tab that hears nothing of the leader reads alone", async (t) => {
  const log = await Log.start(t);
  const name = `eventstream:frozen:-:${log.server.url}`;
  let free!: () => void;
  // As a tab does that the browser has stopped without telling it.
  void navigator.locks.request(name, () => new Promise<void>((resolve) => (free = resolve)));
  t.after(() => free());

  const tab = log.tab(0, "frozen");
  await until(() => tab.stream.status === "live", "it is live");
  log.send();

  await until(() => tab.data.length, "the event");
});

test("a tab that reads alone asks the leader once", async (t) => {
  const log = await Log.start(t);
  const name = `eventstream:hung:-:${log.server.url}`;
  let free!: () => void;
  void navigator.locks.request(name, () => new Promise<void>((resolve) => (free = resolve)));
  t.after(() => free());
  const tab = log.tab(0, "hung");
  await until(() => tab.stream.status === "live", "it is live, alone");

  // The leader goes on, and has been elsewhere.
  const bus = new BroadcastChannel(name);
  t.after(() => bus.close());
  const asked: string[] = [];
  const stand = { leader: "l", position: "c:900", status: "live", isPlain: true, failures: 0 };
  bus.onmessage = ({ data }) => {
    if (data.kind !== "hello") return;
    asked.push(data.tab);
    bus.postMessage({ kind: "welcome", to: data.tab, seq: 1, base: "c:900", steps: [], ...stand });
  };
  for (let seq = 1; seq < 4; seq += 1) {
    const step = { seq, position: `c:${899 + seq}`, event: { type: "message", data: "", id: `c:${899 + seq}`, hasId: true } };
    bus.postMessage({ kind: "steps", leader: "l", steps: [step], status: "live" });
    await sleep(1_100);
  }

  assert.equal(asked.length, 1);
});

test("a leader whose lock is stolen follows", async (t) => {
  const log = await Log.start(t);
  const tabs = [log.tab(0, "stolen"), log.tab(0, "stolen"), log.tab(0, "stolen")];
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");

  await navigator.locks.request(`eventstream:stolen:-:${log.server.url}`, { steal: true }, () => undefined);
  await until(() => log.server.requests.length === 2, "the second leads");
  await until(() => log.connections === 1, "the first does not");
  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live again");
  log.send(3);
  await until(() => tabs.every(({ data }) => data.length === 3), "the events");

  for (const { data } of tabs) assert.deepEqual(data, range(1, 3));
  assert.equal(log.connections, 1);
});

test("where a page may have no channel between tabs, each has its own connection", async (t) => {
  const log = await Log.start(t);
  const { BroadcastChannel } = globalThis;
  t.after(() => Object.assign(globalThis, { BroadcastChannel }));
  globalThis.BroadcastChannel = class {
    constructor() {
      throw new DOMException("The operation is insecure.", "SecurityError"); // as in Firefox that lets no site store anything
    }
  } as never;
  const tabs = [log.tab(0), log.tab(0)];

  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");

  assert.equal(log.connections, 2);
});

test("tabs of other names have their own connections", async (t) => {
  const log = await Log.start(t);
  const tabs = [log.tab(0, "anna"), log.tab(0, "ben"), log.tab(0, true), log.tab(0, true)];

  await until(() => tabs.every(({ stream }) => stream.status === "live"), "all are live");

  assert.equal(log.server.requests.length, 3);
});
