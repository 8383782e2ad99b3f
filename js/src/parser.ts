/**
 * text/event-stream, WHATWG HTML section 9.2.6, from bytes in any pieces.
 */

export interface ParsedEvent {
  type: string;
  data: string;
  /** The last event id after this event. */
  id: string;
  /** Whether this event had an id line of its own. */
  hasId: boolean;
}

export interface ParserTarget {
  onEvent(event: ParsedEvent): void;
  onRetry(milliseconds: number): void;
}

export class Parser {
  // Takes one BOM off the beginning, and replaces what is not UTF-8.
  readonly #decoder = new TextDecoder("utf-8");
  #rest = "";
  #endedWithCR = false;
  #type = "";
  #data: string[] = [];
  #hasId = false;
  readonly #target: ParserTarget;
  #id: string;

  constructor(target: ParserTarget, id = "") {
    this.#target = target;
    this.#id = id;
  }

  feed(chunk: Uint8Array): void {
    let text = this.#decoder.decode(chunk, { stream: true });
    if (!text) return;
    if (this.#endedWithCR && text[0] === "\n") text = text.slice(1);
    this.#endedWithCR = text.endsWith("\r");
    // Of what is new alone: a long line that comes in small pieces is not looked through for each.
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#rest + lines[0]!;
    this.#rest = lines.pop()!;
    for (const line of lines) this.#line(line);
  }

  #line(line: string): void {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value[0] === " ") value = value.slice(1);
    if (name === "data") {
      this.#data.push(value);
    } else if (name === "event") {
      this.#type = value;
    } else if (name === "id") {
      if (!value.includes("\0")) {
        this.#id = value;
        this.#hasId = true;
      }
    } else if (name === "retry" && /^[0-9]+$/.test(value)) {
      this.#target.onRetry(Number(value));
    }
  }

  #dispatch(): void {
    const type = this.#type || "message";
    const data = this.#data;
    this.#type = "";
    this.#data = [];
    // An id without data counts for the next event, as in the browsers' own.
    if (!data.length) return;
    const hasId = this.#hasId;
    this.#hasId = false;
    this.#target.onEvent({ type, data: data.join("\n"), id: this.#id, hasId });
  }
}
