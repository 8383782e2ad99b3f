/**
 * One connection, from opening to its end. Nothing here connects again.
 */

import { retryAfter } from "./backoff.ts";
import { Parser, type ParsedEvent } from "./parser.ts";

/** Why a connection is over. */
export interface End {
  /**
   * "lost": try again. "refused": the server will not have us; `status` says why.
   * "done": 204, the server wants no more of us.
   */
  kind: "lost" | "refused" | "done";
  /** HTTP status where it is known, else 0. */
  status: number;
  /** Milliseconds the server asks us to stay away, 0 if it does not. */
  wait: number;
  /** The data of the stream-error that a refusal is told as. */
  data?: string;
  /** What a function of the page's for headers or a token has thrown. */
  error?: unknown;
}

export interface Sink {
  onOpen(): void;
  /** Whatever arrives in one piece; empty for bytes that are not yet an event. */
  onEvents(events: ParsedEvent[]): void;
  onRetry(milliseconds: number): void;
  /** Called once at most, and never after `close`. */
  onEnd(end: End): void;
}

export interface Connection {
  /** Has the connection dispatch another event type. */
  listen(type: string): void;
  close(): void;
}

// 408, 425, 429: later. Other 4xx and 501 do not go away by asking again.
const RETRYABLE = new Set([408, 425, 429]);

function judge(status: number, wait: number): End {
  if (status === 204) return { kind: "done", status, wait };
  const isRefusal = (status >= 400 && status < 500 && !RETRYABLE.has(status)) || status === 501;
  return { kind: isRefusal ? "refused" : "lost", status, wait };
}

function isOf(type: string, response: Response): boolean {
  return new RegExp(`^text/${type} *(;|$)`, "i").test(response.headers.get("Content-Type") ?? "");
}

/** The server's own stream-error, or one made of its status and of what it says in plain text. */
async function describe(response: Response): Promise<string> {
  const { status } = response;
  let text = "";
  if (isOf("event-stream", response)) {
    let data: string | undefined;
    const onEvent = (event: ParsedEvent): void => {
      if (event.type === "stream-error") data ??= event.data;
    };
    new Parser({ onEvent, onRetry: () => undefined }).feed(new Uint8Array(await response.arrayBuffer()));
    if (data !== undefined) return data;
  } else if (isOf("plain", response)) {
    text = (await response.text()).slice(0, 500);
  }
  const condition = status === 401 || status === 403 ? "forbidden" : "bad-request";
  return JSON.stringify({ condition, text: `The server has answered ${status}. ${text}`.trim() });
}

export type HeadersSource = () => Promise<HeadersInit>;

/** By fetch: sees HTTP's status and headers, sends headers, and receives every event type. */
export function openFetch(
  url: string,
  sink: Sink,
  options: { withCredentials: boolean; headers: HeadersSource },
): Connection {
  const abort = new AbortController();
  const address = new URL(url);
  // fetch takes no such URL, and a page at https://name:password@… makes one of each path. The
  // browser knows the page's own, and sends them.
  address.username = address.password = "";
  const end = (how: End): void => {
    if (abort.signal.aborted) return;
    abort.abort();
    sink.onEnd(how);
  };

  async function run(): Promise<void> {
    await null; // the page's functions may close what is being opened, so it has to be there
    if (abort.signal.aborted) return;
    let headers: Headers;
    try {
      headers = new Headers(await options.headers());
    } catch (error) {
      return end({ kind: "lost", status: 0, wait: 0, error });
    }
    headers.set("Accept", "text/event-stream");
    if (abort.signal.aborted) return;
    const response = await fetch(address, {
      headers,
      cache: "no-store",
      credentials: options.withCredentials ? "include" : "same-origin",
      signal: abort.signal,
    });
    if (abort.signal.aborted) return;
    const { status } = response;
    if (status !== 200) {
      const how = judge(status, retryAfter(response.headers.get("Retry-After")));
      if (how.kind === "refused") how.data = await describe(response);
      return end(how);
    }
    // A hotel's log-in page is 200, too: it goes away, so this is no refusal.
    if (!isOf("event-stream", response)) {
      return end({ kind: "lost", status, wait: 0 });
    }
    sink.onOpen();
    let events: ParsedEvent[] = [];
    const parser = new Parser({
      onEvent: (event) => events.push(event),
      onRetry: (milliseconds) => sink.onRetry(milliseconds),
    });
    const reader = response.body!.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (abort.signal.aborted) return;
      if (done) return end({ kind: "lost", status: 0, wait: 0 });
      parser.feed(value);
      const arrived = events;
      events = [];
      sink.onEvents(arrived);
      if (abort.signal.aborted) return;
    }
  }

  // Network errors.
  run().catch(() => end({ kind: "lost", status: 0, wait: 0 }));
  return { listen: () => undefined, close: () => abort.abort() };
}

/** The part of EventSource that is used; polyfills have it, too. */
export interface EventSourceLike {
  readonly readyState: number;
  onopen: ((event: Event) => unknown) | null;
  onerror: ((event: Event) => unknown) | null;
  addEventListener(type: string, listener: (event: MessageEvent) => void): void;
  close(): void;
}

export type EventSourceClass = new (
  url: string,
  init?: { withCredentials?: boolean },
) => EventSourceLike;

/**
 * By an EventSource: sees only the event types it is told of, and neither status nor
 * whether an event had an id. It is closed at the first error, as its own way to come back
 * knows no backoff.
 */
export function openEventSource(
  url: string,
  sink: Sink,
  options: { withCredentials: boolean; eventSourceClass: EventSourceClass; types: Iterable<string> },
): Connection {
  const source = new options.eventSourceClass(url, { withCredentials: options.withCredentials });
  const known = new Set<string>();
  let lastId = "";
  let isOver = false;
  const close = (): void => {
    isOver = true;
    source.onopen = source.onerror = null;
    source.close();
  };
  const receive = (event: MessageEvent): void => {
    if (isOver) return;
    const id = event.lastEventId;
    // Without an id line an event has the id of the one before; an empty one takes that away.
    const hasId = id !== lastId;
    lastId = id;
    sink.onEvents([{ type: event.type, data: event.data as string, id, hasId }]);
  };
  const listen = (type: string): void => {
    // Its own "open" and "error" have those names, too.
    if (known.has(type) || type === "open" || type === "error") return;
    known.add(type);
    source.addEventListener(type, receive);
  };
  for (const type of options.types) listen(type);
  source.onopen = () => sink.onOpen();
  source.onerror = () => {
    close();
    sink.onEnd({ kind: "lost", status: 0, wait: 0 });
  };
  return { listen, close };
}
