/**
 * `node parsers.ts`: reads a line of JSON, {"chunks": [base64, …]}, and prints what npm's
 * eventsource-parser and the client's own parser make of these bytes; and so on, line by
 * line. For tests/unit/test_wire.py.
 */

import { createInterface } from "node:readline";

import { createParser } from "eventsource-parser";

import { Parser } from "./src/parser.ts";

type Event = [type: string, data: string, id: string];

function byEventsourceParser(chunks: Uint8Array[]): { events: Event[]; retry: number | null } {
  const events: Event[] = [];
  let retry: number | null = null;
  let lastId = "";
  const parser = createParser({
    onEvent: ({ event, data, id }) => {
      lastId = id ?? lastId;
      events.push([event || "message", data, lastId]);
    },
    onRetry: (milliseconds) => (retry = milliseconds),
  });
  const decoder = new TextDecoder();
  for (const chunk of chunks) parser.feed(decoder.decode(chunk, { stream: true }));
  return { events, retry };
}

function byOurs(chunks: Uint8Array[]): { events: Event[]; retry: number | null } {
  const events: Event[] = [];
  let retry: number | null = null;
  const parser = new Parser({
    onEvent: ({ type, data, id }) => events.push([type, data, id]),
    onRetry: (milliseconds) => (retry = milliseconds),
  });
  for (const chunk of chunks) parser.feed(chunk);
  return { events, retry };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { chunks } = JSON.parse(line) as { chunks: string[] };
  const bytes = chunks.map((chunk) => Buffer.from(chunk, "base64"));
  console.log(JSON.stringify({ "eventsource-parser": byEventsourceParser(bytes), eventstream: byOurs(bytes) }));
}
