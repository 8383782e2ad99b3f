/**
 * One connection for all tabs of an origin that read the same.
 *
 * A Web Lock says who leads: the browser gives it to another tab when the leader is closed,
 * crashes or is frozen. The leader alone has a connection, and passes on what it receives
 * over a BroadcastChannel, numbered.
 *
 * Each tab has a cursor of its own, and the rule that keeps it consecutive is: a tab follows
 * the leader from the place where the leader's cursor was *equal* to its own, and from there
 * it takes number after number. A tab whose cursor the leader has never had (its page is
 * older than what the leader remembers, or two channels moved in another order) reads by a
 * connection of its own until the two are equal. So does one that hears no leader, and one
 * without a cursor that may begin with an initial state, until it has that. Whatever happens
 * to messages, locks and timers, a tab can only have one connection too many.
 */

import { now } from "./clock.ts";
import type { ParsedEvent } from "./parser.ts";
import { canonical } from "./position.ts";
import type { Link, Status } from "./link.ts";

export interface ShareHost {
  position(): string | null;
  /** Takes an event; says whether it was new, hence dispatched. */
  accept(event: ParsedEvent): boolean;
  onStatus(status: Status): void;
  /** The tab follows a leader, as good as an open connection, which stands there. */
  onFollow(position: string | null): void;
}

/** An event on its way between tabs, with its number and the leader's cursor after it. */
interface Step {
  seq: number;
  position: string | null;
  event: ParsedEvent;
}

/** Where the leader stands. */
interface State {
  leader: string;
  seq: number;
  position: string | null;
  status: Status;
  /** A tab without a cursor that follows from here misses no initial state. */
  isPlain: boolean;
  /** How many attempts to connect have failed in a row. */
  failures: number;
}

type Message =
  | ({ kind: "state" } & State)
  | ({ kind: "welcome"; to: string; base: string | null; steps: Step[] } & State)
  | { kind: "steps"; leader: string; steps: Step[]; status: Status }
  | { kind: "hello"; tab: string; position: string | null }
  | { kind: "bye"; leader: string }
  | { kind: "wake" };

/** What the leader remembers for tabs that come a little late. */
const MEMORY = 500;
const MEMORY_CHARACTERS = 1_000_000;
const JOINING = 1_000;
const BEAT = 5_000;
const LEADER_SILENCE = 15_000;
/** Failures in a row, the loss of a connection included, after which another tab is to try. */
const PATIENCE = 3;

export class Share {
  readonly #name: string;
  readonly #host: ShareHost;
  readonly #link: Link;
  readonly #tab = Math.random().toString(36).slice(2);
  #role: "stopped" | "joining" | "following" | "alone" | "leading" = "stopped";
  #bus: BroadcastChannel | null = null;
  #abort: AbortController | null = null;
  #release: (() => void) | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #beat: ReturnType<typeof setInterval> | undefined;
  #heardAt = 0;
  #askedAt = 0;
  #status: Status = "connecting";
  /** The leader's, which this tab's becomes once it follows. */
  #leaderStatus: Status = "connecting";
  /** Whether this tab has what its stream begins with. */
  #hasBegun = false;
  /** Whether the leader's stream begins with nothing that this tab would miss. */
  #isPlain = false;
  #failures = 0;
  /** The leader's name and last number, "" while unknown. */
  #leader = "";
  #seq = 0;
  /** The leader's cursor, and the steps from there up to `seq`. */
  #base: string | null = null;
  #steps: Step[] = [];
  #size = 0;

  constructor(name: string, host: ShareHost, link: Link) {
    this.#name = `eventstream:${name}`;
    this.#host = host;
    this.#link = link;
  }

  /** Says whether this browser has what it takes, and lets the page have it. */
  static get isSupported(): boolean {
    try {
      new BroadcastChannel("eventstream").close();
      return !!navigator.locks;
    } catch {
      return false; // there is none, or the site may store nothing
    }
  }

  start(): void {
    if (this.#role !== "stopped") return;
    this.#bus = new BroadcastChannel(this.#name);
    this.#bus.onmessage = ({ data }) => this.#hear(data as Message);
    this.#beat = setInterval(() => this.#tick(), BEAT);
    this.#abort = new AbortController();
    this.#queue(this.#abort.signal);
    this.#join();
  }

  stop(): void {
    if (this.#role === "stopped") return;
    if (this.#role === "leading") this.#say({ kind: "bye", leader: this.#tab });
    this.#role = "stopped";
    clearTimeout(this.#timer);
    clearInterval(this.#beat);
    this.#abort?.abort();
    this.#release?.();
    this.#release = null;
    this.#bus?.close();
    this.#bus = null;
    this.#link.stop();
    this.#know("", 0, null);
  }

  wake(reason: "online" | "visible"): void {
    this.#link.wake(reason);
    if (this.#role !== "leading") this.#say({ kind: "wake" });
    this.#tick();
  }

  /** What the link has received: takes it, and passes it on if this tab leads. */
  onLinkEvents(events: ParsedEvent[]): void {
    const steps: Step[] = [];
    for (const event of events) {
      if (this.#role !== "leading" && this.#role !== "alone") return; // closed by a handler
      if (this.#host.accept(event) && this.#role === "leading") {
        steps.push({ seq: ++this.#seq, position: this.#host.position(), event });
      }
    }
    if (this.#role === "alone") this.#align();
    if (this.#role !== "leading") return;
    this.#remember(steps);
    this.#say({ kind: "steps", leader: this.#tab, steps, status: this.#status });
  }

  /** What the link makes of its connection; a follower has the leader's word for it. */
  onLinkStatus(status: Status): void {
    if (this.#role !== "leading" && this.#role !== "alone") return;
    // Not by the status: who has heard nothing for a while is live, too.
    this.#hasBegun ||= this.#link.hasBegun;
    this.#setStatus(status);
    if (this.#role === "alone") this.#align();
    if (this.#role !== "leading") return;
    this.#say({ kind: "state", ...this.#state });
    if (status === "offline" && this.#link.failures >= PATIENCE) void this.#handOver();
  }

  get #state(): State {
    const position = this.#host.position();
    const { givesStates } = this.#link;
    const isPlain = givesStates === false || (givesStates === null && position === null);
    const { failures } = this.#link;
    return { leader: this.#tab, seq: this.#seq, position, status: this.#status, isPlain, failures };
  }

  #say(message: Message): void {
    this.#bus?.postMessage(message);
  }

  #queue(signal: AbortSignal): void {
    navigator.locks
      .request(this.#name, { signal }, () => {
        if (signal.aborted) return;
        const held = new Promise<void>((resolve) => {
          this.#release = resolve;
        });
        this.#lead();
        return held;
      })
      .catch(() => {
        // Stopped before its turn came; or the lock was stolen, and another tab will lead.
        if (signal.aborted || this.#role !== "leading") return;
        this.stop();
        this.start();
      });
  }

  #lead(): void {
    clearTimeout(this.#timer);
    this.#role = "leading";
    this.#know(this.#tab, 0, this.#host.position());
    // Does nothing where this tab was alone, which just goes on. The lock may have come before
    // the word of the last failure.
    this.#link.start(this.#status === "offline" ? this.#failures + 1 : 0);
    if (this.#role === "leading") this.#say({ kind: "state", ...this.#state });
  }

  /**
   * Has the next in line lead: what fails may be this tab's own, such as its token. The next
   * goes on with the backoff, so that a server that is down is not asked more often.
   */
  async #handOver(): Promise<void> {
    const { pending } = await navigator.locks.query();
    const isAwaited = pending?.some(({ name }) => name === this.#name);
    if (!isAwaited || this.#role !== "leading" || this.#link.failures < PATIENCE) return;
    this.#failures = this.#link.failures;
    this.#link.stop();
    this.#role = "joining";
    this.#know("", 0, null);
    this.#release?.();
    this.#queue(this.#abort!.signal);
    this.#ask();
  }

  /** Asks the leader where it stands; without an answer, reads alone. */
  #join(): void {
    this.#role = "joining";
    this.#hasBegun = this.#host.position() !== null;
    this.#know("", 0, null);
    this.#ask();
    this.#setStatus("connecting");
  }

  #ask(): void {
    this.#askedAt = now();
    this.#say({ kind: "hello", tab: this.#tab, position: this.#host.position() });
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#know("", 0, null);
      this.#goAlone();
    }, JOINING);
  }

  #goAlone(): void {
    clearTimeout(this.#timer);
    if (this.#role !== "joining" && this.#role !== "following") return;
    this.#role = "alone";
    this.#link.start();
  }

  #tick(): void {
    if (this.#role === "leading") this.#say({ kind: "state", ...this.#state });
    // A hidden leader's timers may come once a minute, but it answers at once.
    const isSilent = now() - this.#heardAt > LEADER_SILENCE;
    if (this.#role === "following" && isSilent) this.#ask();
  }

  #hear(message: Message): void {
    if (message.kind === "hello") {
      if (this.#role === "leading") this.#welcome(message.tab, message.position);
      return;
    }
    if (message.kind === "wake") {
      // Whatever its reason: the network's coming back is told to each tab by the browser.
      if (this.#role === "leading") this.#link.wake("visible");
      return;
    }
    if (this.#role === "leading" || this.#role === "stopped") return;
    if (message.kind === "welcome" && message.to !== this.#tab) return;
    this.#heardAt = now();
    if (message.kind === "steps") return this.#hearSteps(message);
    if (message.kind === "bye") {
      if (message.leader === this.#leader && this.#role === "following") this.#join();
      return;
    }
    clearTimeout(this.#timer); // there is a leader
    const { leader, seq, position, status, isPlain, failures } = message;
    if (leader === this.#leader && seq <= this.#seq) {
      // An old acquaintance; a message that was sent before the last one says nothing new.
      if (seq < this.#seq) return;
      [this.#leaderStatus, this.#isPlain, this.#failures] = [status, isPlain, failures];
      return this.#follow();
    }
    // A leader that is new to us, or has gone on without us.
    if (this.#role === "following") this.#role = "joining";
    [this.#leaderStatus, this.#isPlain, this.#failures] = [status, isPlain, failures];
    if (message.kind === "welcome") this.#know(leader, seq, message.base, message.steps);
    else this.#know(leader, seq, position);
    if (this.#align() || this.#role !== "joining") return;
    if (message.kind === "welcome") this.#goAlone();
    else this.#join();
  }

  #hearSteps({ leader, steps, status }: Message & { kind: "steps" }): void {
    const fresh = steps.filter((step) => leader === this.#leader && step.seq > this.#seq);
    const isNext = leader === this.#leader && (!fresh.length || fresh[0]!.seq === this.#seq + 1);
    if (!isNext) {
      // Steps are missing, or this leader has not introduced itself.
      if (this.#role === "following") return this.#join();
      this.#know("", 0, null);
      if (now() - this.#askedAt > JOINING) this.#ask();
    } else if (this.#role === "following") {
      if (fresh.length) this.#seq = fresh[fresh.length - 1]!.seq;
      this.#leaderStatus = status;
      this.#take(fresh);
      this.#follow();
    } else {
      this.#leaderStatus = status;
      this.#remember(fresh);
      this.#align();
    }
  }

  /** Follows, if the leader's cursor was at some step what this tab's is now; says whether it was. */
  #align(): boolean {
    if (!this.#leader || (this.#role !== "joining" && this.#role !== "alone")) return false;
    if (!this.#hasBegun && !this.#isPlain) return false;
    const mine = this.#host.position();
    // From the newest on: after that the leader's cursor has not stood there again.
    let index = this.#steps.length;
    while (index > 0 && !isSame(this.#steps[index - 1]!.position, mine)) index -= 1;
    if (index === 0 && !isSame(this.#base, mine)) return false;
    const missed = this.#steps.slice(index);
    const start = index > 0 ? this.#steps[index - 1]!.position : this.#base;
    clearTimeout(this.#timer);
    this.#link.stop();
    this.#role = "following";
    this.#heardAt = now();
    this.#know(this.#leader, this.#seq, null);
    this.#host.onFollow(start);
    // Best-effort events among them may have come by the tab's own connection.
    this.#take(missed.filter((step) => step.event.hasId));
    this.#follow();
    return true;
  }

  #follow(): void {
    if (this.#role === "following") this.#setStatus(this.#leaderStatus);
  }

  #take(steps: Step[]): void {
    for (const step of steps) {
      if (this.#role !== "following") return; // a handler has closed the stream
      this.#host.accept(step.event);
    }
  }

  /** Tells a tab what it needs to follow, from its cursor on if that is remembered. */
  #welcome(to: string, position: string | null): void {
    let index = this.#steps.length;
    while (index > 0 && !isSame(this.#steps[index - 1]!.position, position)) index -= 1;
    let [base, steps] = [this.#host.position(), [] as Step[]];
    if (index > 0) [base, steps] = [this.#steps[index - 1]!.position, this.#steps.slice(index)];
    else if (isSame(this.#base, position)) [base, steps] = [this.#base, this.#steps];
    this.#say({ kind: "welcome", to, base, steps, ...this.#state });
  }

  #know(leader: string, seq: number, base: string | null, steps: Step[] = []): void {
    this.#leader = leader;
    this.#seq = seq;
    this.#base = base;
    this.#steps = steps;
    this.#size = steps.reduce((sum, step) => sum + step.event.data.length, 0);
  }

  #remember(steps: Step[]): void {
    for (const step of steps) {
      this.#seq = step.seq;
      this.#size += step.event.data.length;
      this.#steps.push(step);
    }
    let excess = Math.max(0, this.#steps.length - MEMORY);
    for (let index = 0; index < excess; index += 1) this.#size -= this.#steps[index]!.event.data.length;
    while (this.#size > MEMORY_CHARACTERS && excess < this.#steps.length) {
      this.#size -= this.#steps[excess]!.event.data.length;
      excess += 1;
    }
    if (excess) this.#base = this.#steps.splice(0, excess).pop()!.position;
  }

  #setStatus(status: Status): void {
    this.#status = status;
    this.#host.onStatus(status);
  }
}

/** Says whether a leader's cursor is the tab's; a tab without one may begin anywhere. */
function isSame(theirs: string | null, mine: string | null): boolean {
  if (mine === null) return true;
  return theirs !== null && canonical(theirs) === canonical(mine);
}
