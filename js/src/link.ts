/**
 * Keeps a connection, from wherever the cursor is: connects, notices that it is lost or has
 * fallen silent, waits, connects again.
 */

import { backoff } from "./backoff.ts";
import { now } from "./clock.ts";
import type { ParsedEvent } from "./parser.ts";
import { isWithin } from "./position.ts";
import type { Connection, End, Sink } from "./transport.ts";

export type Status = "connecting" | "catching-up" | "live" | "offline" | "denied" | "closed";

export interface LinkHost {
  /** The cursor: where to connect from, and whether the head has been reached. */
  position(): string | null;
  /** Takes events in order. It may stop the link in between. */
  receive(events: ParsedEvent[]): void;
  onStatus(status: Status): void;
  onOpen(): void;
  /** The connection was lost, or an attempt failed; there will be another. */
  onError(end: End): void;
  /** The server has refused; the link has stopped. */
  onRefused(end: End): void;
  /** The server has answered 204; the link has stopped. */
  onDone(): void;
}

export interface LinkOptions {
  open: (position: string | null, sink: Sink) => Connection;
  /** Milliseconds: the most that backoff makes of the wait, unless `retry` is more. */
  maxRetryTime: number;
  /** Milliseconds of silence after which the connection is given up; null: by its keep-alive. */
  silenceTimeout: number | null;
  /** A 401 may be cured by asking the page for another token. */
  canRenew: boolean;
}

const RETRY = 2_000;
const SILENCE = 45_000;
const CONNECT_TIMEOUT = 20_000;
const QUIET = 1_000;
// A server under load may take its time between the headers and stream-open.
const OPENING = 5_000;
// A state may be large, and the network slow.
const STATES = 20_000;
const SPACING = 1_000;
const STABLE = 10_000;
const DAY = 86_400_000;

export class Link {
  readonly #host: LinkHost;
  readonly #options: LinkOptions;
  #connection: Connection | null = null;
  #isStarted = false;
  #isOpen = false;
  #hasRenewed = false;
  #attempt = 0;
  #retry = RETRY;
  #silence: number;
  /** The position to catch up to, "" where nothing is stored; null while the server has not said. */
  #head: string | null = null;
  /** Initial states that are still to come. */
  #awaited = 0;
  #givesStates: boolean | null = null;
  #isCaughtUp = false;
  #hasSpoken = false;
  #openedAt = 0;
  #startedAt = 0;
  #heardAt = 0;
  #notBefore = 0;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #quietTimer: ReturnType<typeof setTimeout> | undefined;
  #watch: ReturnType<typeof setInterval> | undefined;

  constructor(host: LinkHost, options: LinkOptions) {
    this.#host = host;
    this.#options = options;
    this.#silence = options.silenceTimeout ?? SILENCE;
  }

  /** Whether streams of this server may begin with a state; null while it has not said. */
  get givesStates(): boolean | null {
    return this.#givesStates;
  }

  /** Whether this connection has brought all that its stream begins with. */
  get hasBegun(): boolean {
    return this.#hasSpoken && !this.#awaited;
  }

  /** Attempts that failed in a row; 0 while the server has asked us to stay away. */
  get failures(): number {
    return this.#isOpen || this.#notBefore > now() ? 0 : this.#attempt;
  }

  /** Connects, or goes on with a backoff: after so many failures, of whichever tab. */
  start(failures = 0): void {
    if (this.#isStarted) return;
    this.#isStarted = true;
    this.#attempt = failures;
    this.#watch = setInterval(() => this.#check(), 2_000);
    const rest = failures && backoff(failures - 1, this.#retry, this.#options.maxRetryTime);
    const wait = Math.max(this.#notBefore - now(), rest);
    if (wait <= 0) return this.#connect();
    this.#retryTimer = setTimeout(() => this.#connect(), wait);
    if (!failures) this.#setStatus("connecting");
  }

  stop(): void {
    this.#isStarted = false;
    clearInterval(this.#watch);
    this.#drop();
  }

  listen(type: string): void {
    this.#connection?.listen(type);
  }

  /** Gives the connection up, and comes back after the usual wait. */
  fail(): void {
    if (this.#connection) this.#onEnd({ kind: "lost", status: 0, wait: 0 });
  }

  /** Looks at once whether the connection is alive, and does not wait out a backoff. */
  wake(reason: "online" | "visible"): void {
    if (!this.#isStarted) return;
    const time = now();
    if (this.#connection) {
      // The network may be another one: what was sent through the old one is not coming.
      if (reason === "online" && this.#startedAt < time - SPACING) this.#connect();
      else this.#check();
      return;
    }
    const wait = Math.max(this.#notBefore - time, this.#startedAt + SPACING - time, 0);
    clearTimeout(this.#retryTimer);
    this.#retryTimer = setTimeout(() => this.#connect(), wait);
  }

  /**
   * Says that the browser has no network. The connection is kept: it may be to this machine,
   * or the network back before it is missed. The next event shows that it lives.
   */
  onOffline(): void {
    if (this.#isOpen) this.#setStatus("offline");
  }

  #drop(): void {
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#quietTimer);
    this.#connection?.close();
    this.#connection = null;
    this.#isOpen = this.#hasSpoken = false;
  }

  #connect(): void {
    this.#drop();
    this.#expect(null);
    this.#startedAt = this.#heardAt = now();
    const sink: Sink = {
      onOpen: () => {
        this.#isOpen = true;
        this.#hasRenewed = false;
        this.#openedAt = this.#heardAt = now();
        this.#settle(OPENING);
        this.#host.onOpen();
      },
      onEvents: (events) => this.#receive(events),
      onRetry: (milliseconds) => {
        this.#retry = Math.min(milliseconds, DAY);
      },
      onEnd: (end) => this.#onEnd(end),
    };
    this.#connection = this.#options.open(this.#host.position(), sink);
    if (this.#attempt === 0) this.#setStatus("connecting");
  }

  #receive(events: ParsedEvent[]): void {
    this.#heardAt = now();
    if (!events.length) return;
    this.#hasSpoken = true;
    for (const event of events) {
      if (event.type === "stream-open") this.#readOpening(event.data);
      else if (!event.type.startsWith("stream-") && event.type !== "keep-alive") {
        this.#attempt = 0;
        this.#awaited = Math.max(0, this.#awaited - 1); // states are the first
      }
    }
    const connection = this.#connection;
    this.#host.receive(events);
    if (this.#connection !== connection) return; // an event, or a handler of one, has ended it
    const isAlone = events.length === 1;
    this.#isCaughtUp ||= this.#isAtHead();
    if (this.#isCaughtUp || (isAlone && events[0]!.type === "keep-alive")) {
      clearTimeout(this.#quietTimer);
      this.#setStatus("live");
    } else {
      // From another server: some seconds after it opened.
      if (this.#head !== null) this.#settle(this.#awaited ? STATES : QUIET);
      this.#setStatus("catching-up");
    }
  }

  #expect(head: string | null, states = 0): void {
    this.#head = head;
    this.#awaited = states;
    this.#isCaughtUp = false;
  }

  #isAtHead(): boolean {
    if (this.#head === null || this.#awaited) return false;
    return this.#head === "" || isWithin(this.#head, this.#host.position() ?? "");
  }

  /** Whoever has heard nothing for a second is not catching up, whatever the head was. */
  #settle(quiet: number): void {
    clearTimeout(this.#quietTimer);
    this.#quietTimer = setTimeout(() => {
      this.#isCaughtUp = true;
      this.#setStatus("live");
    }, quiet);
  }

  #readOpening(data: string): void {
    this.#expect(null);
    this.#givesStates = false;
    try {
      const opening = JSON.parse(data) as { head?: unknown; keep_alive?: unknown; states?: unknown };
      if (typeof opening.head === "string") this.#expect(opening.head, Number(opening.states) || 0);
      this.#givesStates = opening.states !== undefined;
      if (this.#options.silenceTimeout === null && Number(opening.keep_alive) > 0) {
        // Two keep-alives may be late or lost; a third is not coming.
        this.#silence = Number(opening.keep_alive) * 2_000 + 5_000;
      }
    } catch {
      // Another server's stream-open has no data.
    }
  }

  #check(): void {
    const silent = now() - this.#heardAt;
    const limit = this.#isOpen ? this.#silence : Math.min(this.#silence || CONNECT_TIMEOUT, CONNECT_TIMEOUT);
    if (limit && silent > limit) this.fail();
  }

  #onEnd(end: End): void {
    const wasStable = this.#isOpen && now() - this.#openedAt > STABLE;
    // For a server that is away a proxy may answer with a stream that has nothing in it.
    const hasWorked = this.#hasSpoken || wasStable;
    this.#drop();
    if (end.kind === "done") {
      this.stop();
      return this.#host.onDone();
    }
    if (end.kind === "refused") {
      if (end.status !== 401 || !this.#options.canRenew || this.#hasRenewed) {
        this.stop();
        return this.#host.onRefused(end);
      }
      this.#hasRenewed = true;
    }
    if (wasStable) this.#attempt = 0;
    const { onLine } = globalThis.navigator ?? {};
    this.#notBefore = end.wait ? now() + Math.min(end.wait, DAY) : 0;
    const wait = Math.max(
      backoff(this.#attempt, this.#retry, this.#options.maxRetryTime),
      // Not all in the very second in which the server lets them.
      end.wait * (1 + Math.random() / 10),
    );
    this.#attempt += 1;
    this.#retryTimer = setTimeout(() => this.#connect(), Math.min(wait, DAY));
    this.#setStatus(hasWorked && onLine !== false ? "connecting" : "offline");
    if (this.#isStarted) this.#host.onError(end);
  }

  /** Runs handlers of the page, which may stop the link or start it anew: comes last. */
  #setStatus(status: Status): void {
    this.#host.onStatus(status);
  }
}
