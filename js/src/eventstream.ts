import { StreamErrorEvent, StreamResetEvent, StreamStatusEvent } from "./events.ts";
import { Link, type Status } from "./link.ts";
import type { ParsedEvent } from "./parser.ts";
import { isWithin, parsePosition, tidy } from "./position.ts";
import { Share } from "./share.ts";
import {
  openEventSource,
  openFetch,
  type Connection,
  type End,
  type EventSourceClass,
  type Sink,
} from "./transport.ts";

export { StreamErrorEvent, StreamResetEvent, StreamStatusEvent };
export type { EventSourceClass, Status };

type Source<T> = T | (() => T | Promise<T>);

export interface EventStreamOptions {
  /** Where to begin: the position that the page was made at. Default: with what comes next. */
  lastEventId?: string;
  /** Send cookies to another origin. Default false. */
  withCredentials?: boolean;
  /** Milliseconds: the longest wait between two attempts. Default 30000. */
  max_retry_time?: number;
  /** Milliseconds of silence after which to reconnect, 0 for never. Default: by the server's keep-alive. */
  silenceTimeout?: number;
  /** "fetch" (default), or "eventsource", which see docs/browser.md. */
  transport?: "fetch" | "eventsource";
  /** The class for transport "eventsource"; setting it chooses that. */
  eventSourceClass?: EventSourceClass;
  /** Request headers, or a function that is asked before each attempt. Only by fetch. */
  headers?: Source<HeadersInit>;
  /** A subscribe token, or a function that is asked before each attempt. */
  token?: Source<string>;
  /**
   * One connection for all tabs. True if everybody who uses this browser may read the same;
   * else a name for whoever reads, such as the user's id.
   */
  share?: boolean | string;
}

export interface EventStreamEventMap {
  open: Event;
  /** With `error`: what a function for headers or a token has thrown. */
  error: Event & { readonly error?: unknown };
  message: MessageEvent<string>;
  "keep-alive": MessageEvent<string>;
  "stream-open": MessageEvent<string>;
  "stream-reset": StreamResetEvent;
  "stream-error": StreamErrorEvent;
  "stream-status": StreamStatusEvent;
}

// Without `this`, or an EventStream could not stand where TypeScript expects an EventSource.
type Handler<T> = ((event: T) => unknown) | null;

const OPTIONS: Record<keyof EventStreamOptions, true> = {
  lastEventId: true,
  withCredentials: true,
  max_retry_time: true,
  silenceTimeout: true,
  transport: true,
  eventSourceClass: true,
  headers: true,
  token: true,
  share: true,
};
const CONNECTING = 0;
const OPEN = 1;
const CLOSED = 2;
const MAX_RETRY_TIME = 30_000;

/**
 * An EventSource that never loses an event, nor gives one twice.
 *
 * Takes the place of ReconnectingEventSource. The full reference is docs/browser.md.
 */
export class EventStream extends EventTarget {
  static readonly CONNECTING = CONNECTING;
  static readonly OPEN = OPEN;
  static readonly CLOSED = CLOSED;
  readonly CONNECTING = CONNECTING;
  readonly OPEN = OPEN;
  readonly CLOSED = CLOSED;
  readonly url: string;
  readonly withCredentials: boolean;

  #state: 0 | 1 | 2 = CONNECTING;
  #current: Status = "connecting";
  #cursor: string | null;
  #isRunning = false;
  readonly #origin: string;
  readonly #canRenew: boolean;
  readonly #link: Link;
  readonly #share: Share | null = null;
  readonly #types = new Set(["message", "keep-alive", "stream-open", "stream-reset", "stream-error"]);
  readonly #handlers: Record<string, EventListener | null> = {};
  readonly #lifetime = new AbortController();

  /** @throws TypeError: an option makes no sense; SyntaxError: the URL does not. */
  constructor(url: string | URL, options: EventStreamOptions = {}) {
    super();
    checkNames(options);
    const address = resolve(url);
    this.#cursor = options.lastEventId || address.searchParams.get("lastEventId") || null;
    if (address.searchParams.has("lastEventId")) address.searchParams.delete("lastEventId");
    this.url = address.href;
    this.#origin = address.origin;
    this.withCredentials = options.withCredentials ?? false;
    this.#canRenew = typeof options.token === "function" || typeof options.headers === "function";
    this.#link = new Link(
      {
        position: () => this.#cursor,
        receive: (events) => this.#receive(events),
        onStatus: (status) => (this.#share ? this.#share.onLinkStatus(status) : this.#setStatus(status)),
        onOpen: () => this.#onOpen(),
        onError: (end) => this.#onError(end),
        onRefused: (end) => this.#onRefused(end),
        onDone: () => this.close(),
      },
      {
        open: this.#chooseTransport(options),
        maxRetryTime: checkTime("max_retry_time", options.max_retry_time) ?? MAX_RETRY_TIME,
        silenceTimeout: checkTime("silenceTimeout", options.silenceTimeout) ?? null,
        canRenew: this.#canRenew,
      },
    );
    const name = this.#nameShare(options);
    if (name !== null && Share.isSupported) {
      const host = {
        position: () => this.#cursor,
        accept: (event: ParsedEvent) => this.#accept(event),
        onStatus: (status: Status) => this.#setStatus(status),
        onFollow: (position: string | null) => {
          this.#cursor ??= position;
        },
      };
      this.#share = new Share(name, host, this.#link);
    }
    this.#watchPage();
    // Not at once: whoever made us must be able to add listeners to the first events.
    queueMicrotask(() => this.#start());
  }

  get readyState(): 0 | 1 | 2 {
    return this.#state;
  }

  /** What to tell the user: "connecting", "catching-up", "live", "offline", "denied", "closed". */
  get status(): Status {
    return this.#current;
  }

  /** The cursor: the position after the last event that was dispatched, "" before the first. */
  get lastEventId(): string {
    return this.#cursor ?? "";
  }

  get onopen(): Handler<Event> {
    return this.#getHandler("open");
  }

  set onopen(handler: Handler<Event>) {
    this.#setHandler("open", handler);
  }

  get onmessage(): Handler<MessageEvent<string>> {
    return this.#getHandler("message");
  }

  set onmessage(handler: Handler<MessageEvent<string>>) {
    this.#setHandler("message", handler);
  }

  get onerror(): Handler<Event> {
    return this.#getHandler("error");
  }

  set onerror(handler: Handler<Event>) {
    this.#setHandler("error", handler);
  }

  override addEventListener<K extends keyof EventStreamEventMap>(
    type: K,
    listener: (this: EventStream, event: EventStreamEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  override addEventListener(
    type: string,
    listener: ((this: EventStream, event: MessageEvent<string>) => unknown) | EventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  override addEventListener(
    type: string,
    listener: unknown,
    options?: boolean | AddEventListenerOptions,
  ): void {
    super.addEventListener(type, listener as EventListener, options);
    this.#types.add(type);
    this.#link.listen(type);
  }

  override removeEventListener<K extends keyof EventStreamEventMap>(
    type: K,
    listener: (this: EventStream, event: EventStreamEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
  override removeEventListener(
    type: string,
    listener: ((this: EventStream, event: MessageEvent<string>) => unknown) | EventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
  override removeEventListener(
    type: string,
    listener: unknown,
    options?: boolean | EventListenerOptions,
  ): void {
    super.removeEventListener(type, listener as EventListener, options);
  }

  /** Ends the stream for good. No event is dispatched any more, from now on. */
  close(): void {
    this.#halt("closed");
    this.#lifetime.abort();
  }

  /**
   * Connects again, now, from the cursor on: after "denied", once the user has logged in
   * again, or because the page knows better than a timer. Does nothing once closed.
   */
  reconnect(): void {
    if (this.#current === "closed") return;
    this.#pause();
    this.#start();
    this.#share?.wake("visible"); // the tab that leads may be waiting
  }

  #start(): void {
    if (this.#isRunning || this.#current === "closed") return;
    this.#isRunning = true;
    this.#state = CONNECTING;
    (this.#share ?? this.#link).start();
  }

  #pause(): void {
    this.#isRunning = false;
    if (this.#state !== CLOSED) this.#state = CONNECTING;
    (this.#share ?? this.#link).stop();
  }

  #halt(status: Status): void {
    this.#pause();
    this.#state = CLOSED;
    this.#setStatus(status);
  }

  /** A page that is put aside holds no connection and no lock: others may want them. */
  #watchPage(): void {
    const on = (target: EventTarget | undefined, type: string, action: () => void): void => {
      target?.addEventListener?.(type, action, { signal: this.#lifetime.signal });
    };
    const page = globalThis as unknown as EventTarget;
    const { document } = globalThis as { document?: Document };
    const resume = (): void => {
      if (this.#state !== CLOSED) this.#start();
    };
    on(page, "pagehide", () => this.#pause());
    on(page, "pageshow", resume);
    on(document, "freeze", () => this.#pause());
    on(document, "resume", resume);
    on(document, "visibilitychange", () => {
      if (document?.visibilityState === "visible") this.#wake("visible");
    });
    on(page, "online", () => this.#wake("online"));
    on(page, "offline", () => this.#link.onOffline());
  }

  #wake(reason: "online" | "visible"): void {
    if (this.#isRunning) (this.#share ?? this.#link).wake(reason);
  }

  #chooseTransport(
    options: EventStreamOptions,
  ): (position: string | null, sink: Sink) => Connection {
    const { headers, token } = options;
    const eventSourceClass =
      options.eventSourceClass ??
      (globalThis as { EventSource?: EventSourceClass }).EventSource;
    const transport = options.transport ?? (options.eventSourceClass ? "eventsource" : "fetch");
    const { withCredentials } = this;
    if (transport === "fetch") {
      if (options.eventSourceClass) {
        throw new TypeError('eventSourceClass: is not used with transport "fetch"; leave one of them out');
      }
      const source = async (): Promise<HeadersInit> => {
        const all = new Headers(await ask(headers));
        const bearer = await ask(token);
        if (bearer) all.set("Authorization", `Bearer ${bearer}`);
        return all;
      };
      return (position, sink) =>
        openFetch(this.#addressFor(position), sink, { withCredentials, headers: source });
    }
    if (transport !== "eventsource") {
      throw new TypeError(`transport: "fetch" or "eventsource", not ${JSON.stringify(transport)}`);
    }
    if (headers) throw new TypeError('headers: an EventSource cannot send any; use transport "fetch"');
    if (typeof token === "function") {
      throw new TypeError('token: a function needs transport "fetch"; here, give the token itself');
    }
    if (!eventSourceClass) {
      throw new TypeError("eventSourceClass: there is no EventSource here, so give a class");
    }
    return (position, sink) =>
      openEventSource(this.#addressFor(position, token), sink, {
        withCredentials,
        eventSourceClass,
        types: this.#types,
      });
  }

  #nameShare(options: EventStreamOptions): string | null {
    const { share } = options;
    if (!share) return null;
    if (options.transport === "eventsource" || options.eventSourceClass) {
      throw new TypeError('share: needs transport "fetch", which receives every event type');
    }
    if (share === true && (options.token || options.headers)) {
      throw new TypeError("share: with a token or headers, give the name of whoever reads, not true");
    }
    return `${share === true ? "" : share}:${this.withCredentials ? "+" : "-"}:${this.url}`;
  }

  /** In the query, not in a header: that would cost another origin's page a preflight. */
  #addressFor(position: string | null, token?: string): string {
    const address = new URL(this.url);
    if (position) address.searchParams.set("lastEventId", position);
    if (token) address.searchParams.set("token", token);
    return address.href;
  }

  #receive(events: ParsedEvent[]): void {
    if (this.#share) return this.#share.onLinkEvents(events);
    for (const event of events) this.#accept(event);
  }

  /** Dispatches an event that is new, and moves the cursor; says whether it was. */
  #accept({ type, data, id: received, hasId }: ParsedEvent): boolean {
    if (!this.#isRunning) return false;
    const id = tidy(received);
    const cursor = this.#cursor;
    let event: MessageEvent<string> | undefined;
    const init: MessageEventInit<string> = { data, origin: this.#origin, lastEventId: id };
    switch (type) {
      case "stream-open":
        if (hasId) this.#cursor = merge(cursor, id);
        break;
      case "stream-reset":
        // Which may be behind, as the log was lost and began anew, or none: a state follows.
        if (hasId) this.#cursor = id || null;
        event = new StreamResetEvent(type, init);
        break;
      case "stream-error":
        event = new StreamErrorEvent(type, init);
        break;
      default:
        if (hasId && cursor !== null && isWithin(id, cursor)) return false;
        if (hasId) this.#cursor = advance(this.lastEventId, id);
        init.lastEventId = this.lastEventId;
    }
    if (event instanceof StreamErrorEvent) {
      if (event.condition === "token-expired" && this.#canRenew) {
        this.#link.fail(); // comes back with another token
        return false;
      }
      // First, so that a handler can do something about it, and reconnect.
      if (event.condition === "internal-error") this.#link.fail();
      else this.#halt("denied");
    }
    this.#dispatch(event ?? new MessageEvent(type, init));
    return true;
  }

  #onOpen(): void {
    this.#state = OPEN;
    this.#dispatch(new Event("open"));
  }

  #onError({ error }: End): void {
    this.#state = CONNECTING;
    // Also where nobody listens: a mistake in such a function would look like a server that is away.
    if (error !== undefined) console.error(error);
    this.#dispatch(Object.assign(new Event("error"), { error }));
  }

  /** As the server's own stream-error would say it, so that pages need to listen to one. */
  #onRefused({ data }: End): void {
    const init = { data, origin: this.#origin, lastEventId: "error" };
    this.#halt("denied");
    this.#dispatch(new StreamErrorEvent("stream-error", init));
    this.#dispatch(new Event("error"));
  }

  #setStatus(status: Status): void {
    const previous = this.#current;
    if (status === previous || previous === "closed") return;
    this.#current = status;
    if (status === "live" || status === "catching-up") {
      if (this.#state === CONNECTING) this.#onOpen(); // by another tab's connection
      if (this.#current !== status) return; // closed or reconnected by a handler
    } else if (this.#state === OPEN) {
      this.#state = CONNECTING;
    }
    this.dispatchEvent(new StreamStatusEvent(status, previous));
  }

  /** A handler of something before it may have closed the stream. */
  #dispatch(event: Event): void {
    if (this.#current !== "closed") this.dispatchEvent(event);
  }

  #getHandler<T>(type: string): Handler<T> {
    return (this.#handlers[type] ?? null) as Handler<T>;
  }

  #setHandler<T>(type: string, handler: Handler<T>): void {
    const before = this.#handlers[type];
    if (before) this.removeEventListener(type, before);
    const after = typeof handler === "function" ? (handler as EventListener) : null;
    this.#handlers[type] = after;
    if (after) this.addEventListener(type, after);
  }
}

/** The tab's own place in each channel; where it has none, the one that the stream opens at. */
function merge(cursor: string | null, opening: string): string {
  const mine = cursor === null ? null : parsePosition(cursor);
  const theirs = parsePosition(opening);
  if (!mine || !theirs) return cursor ?? opening;
  return [...theirs].map(([channel, place]) => `${channel}:${mine.get(channel) ?? place}`).join(",");
}

/** What an id says of other channels than its event's may be behind the tab's own place there. */
function advance(cursor: string, id: string): string {
  const mine = parsePosition(cursor);
  const theirs = parsePosition(id);
  if (!mine || !theirs) return id;
  const ahead = tidy(cursor).split(",").filter((entry) => {
    const channel = entry.slice(0, entry.lastIndexOf(":"));
    return theirs.has(channel) && mine.get(channel)! > theirs.get(channel)!;
  });
  return tidy([id, ...ahead].join(","));
}

function resolve(url: string | URL): URL {
  const { document, location } = globalThis as { document?: Document; location?: Location };
  try {
    return new URL(url, document?.baseURI ?? location?.href); // a worker has no document
  } catch {
    throw new SyntaxError(`url: ${JSON.stringify(String(url))} is not a URL`);
  }
}

/** A lastEventID that counted for nothing would cost the page what it missed, silently. */
function checkNames(options: EventStreamOptions): void {
  for (const name in options) {
    if (!(name in OPTIONS)) throw new TypeError(`${name}: there is no such option`);
  }
  const { lastEventId, headers } = options;
  if (lastEventId && typeof lastEventId !== "string") {
    throw new TypeError(`lastEventId: a text, not ${JSON.stringify(lastEventId)}`);
  }
  if (typeof headers !== "function") new Headers(headers); // a name that cannot be would fail for ever
}

function checkTime(name: string, value: number | undefined): number | undefined {
  if (value === undefined || (typeof value === "number" && value >= 0)) return value;
  throw new TypeError(`${name}: milliseconds, 0 or more, not ${JSON.stringify(value)}`);
}

async function ask<T>(source: Source<T> | undefined): Promise<T | undefined> {
  return typeof source === "function" ? await (source as () => T | Promise<T>)() : source;
}
