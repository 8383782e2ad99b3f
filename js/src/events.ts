/** The events that are not the application's, with what they say. */

import type { Status } from "./link.ts";

function read(data: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(data)) as Record<string, unknown>;
  } catch {
    return {};
  }
}

function readChannels(data: string): string[] {
  const { channels } = read(data);
  return Array.isArray(channels) ? channels.map(String) : [];
}

/** `stream-reset`: the log no longer reaches back to the cursor. Load the state anew. */
export class StreamResetEvent extends MessageEvent<string> {
  /** The channels in which events were missed. */
  readonly channels: string[];

  constructor(type: string, init: MessageEventInit<string>) {
    super(type, init);
    this.channels = readChannels(init.data ?? "");
  }
}

/** `stream-error`: the server does not send this stream. */
export class StreamErrorEvent extends MessageEvent<string> {
  /** "forbidden", "bad-request", "unsupported", "internal-error", … */
  readonly condition: string;
  /** For people. */
  readonly text: string;
  /** The channels that were refused, if the server says. */
  readonly channels: string[];

  constructor(type: string, init: MessageEventInit<string>) {
    super(type, init);
    const { condition, text } = read(init.data ?? "");
    this.condition = String(condition ?? "");
    this.text = String(text ?? "");
    this.channels = readChannels(init.data ?? "");
  }
}

/** `stream-status`: `status` has changed. Made here; the server never sends it. */
export class StreamStatusEvent extends Event {
  readonly status: Status;
  readonly previous: Status;

  constructor(status: Status, previous: Status) {
    super("stream-status");
    this.status = status;
    this.previous = previous;
  }
}
