import assert from "node:assert/strict";
import { test } from "node:test";

import { createParser } from "eventsource-parser";

import { Parser, type ParsedEvent } from "../src/parser.ts";

type Piece = Uint8Array | string;

function parse(...pieces: Piece[]): { events: ParsedEvent[]; retries: number[] } {
  const events: ParsedEvent[] = [];
  const retries: number[] = [];
  const parser = new Parser({ onEvent: (e) => events.push(e), onRetry: (ms) => retries.push(ms) });
  for (const piece of pieces) {
    parser.feed(typeof piece === "string" ? new TextEncoder().encode(piece) : piece);
  }
  return { events, retries };
}

const brief = (events: ParsedEvent[]): string[][] => events.map((e) => [e.type, e.data, e.id]);

// The text, and what the specification makes of it: type, data, last event id.
const TABLE: [string, string, string[][]][] = [
  ["two data lines", "data: a\ndata: b\n\n", [["message", "a\nb", ""]]],
  ["no blank line at the end", "data: a\n", []],
  ["one space after the colon goes", "data:  a\n\n", [["message", " a", ""]]],
  ["no space", "data:a\n\n", [["message", "a", ""]]],
  ["empty data is dispatched", "data\n\ndata\ndata\n\n", [["message", "", ""], ["message", "\n", ""]]],
  ["no data is not", "event: x\nid: 1\n\n", []],
  ["type is for one event", "event: x\ndata: 1\n\ndata: 2\n\n", [["x", "1", ""], ["message", "2", ""]]],
  ["type of an event without data is forgotten", "event: x\n\ndata: 2\n\n", [["message", "2", ""]]],
  ["id stays", "id: 1\ndata: a\n\ndata: b\n\n", [["message", "a", "1"], ["message", "b", "1"]]],
  ["id without data stays", "id: 1\n\ndata: b\n\n", [["message", "b", "1"]]],
  ["empty id resets", "id: 1\ndata: a\n\nid\ndata: b\n\n", [["message", "a", "1"], ["message", "b", ""]]],
  ["id with NUL is ignored", "id: 1\0\ndata: a\n\n", [["message", "a", ""]]],
  ["comments", ": x\n:\ndata: a\n:y\n\n", [["message", "a", ""]]],
  ["unknown fields", "foo: x\nData: y\n data: z\ndata: a\n\n", [["message", "a", ""]]],
  ["CR", "data: a\rdata: b\r\r", [["message", "a\nb", ""]]],
  ["CRLF", "data: a\r\ndata: b\r\n\r\n", [["message", "a\nb", ""]]],
  ["mixed", "data: a\rdata: b\n\r\ndata: c\r\n\r", [["message", "a\nb", ""], ["message", "c", ""]]],
  ["BOM", "\ufeffdata: a\n\n", [["message", "a", ""]]],
  ["only one BOM", "\ufeff\ufeffdata: a\ndata: b\n\n", [["message", "b", ""]]],
  ["not ASCII", "event: é\ndata: ✓ 𝄞 \u2028\n\n", [["é", "✓ 𝄞 \u2028", ""]]],
];

for (const [name, text, expected] of TABLE) {
  test(`${name}, in one piece and byte by byte`, () => {
    const bytes = new TextEncoder().encode(text);

    assert.deepEqual(brief(parse(bytes).events), expected);
    assert.deepEqual(brief(parse(...[...bytes].map((byte) => Uint8Array.of(byte))).events), expected);
  });
}

test("retry takes ASCII digits only", () => {
  const { retries } = parse("retry: 10\nretry: 1x\nretry:\nretry: -1\nretry: 1.5\nretry: ٣\nretry:7\n");

  assert.deepEqual(retries, [10, 7]);
});

test("what is not UTF-8 is replaced, and costs nothing else", () => {
  const bytes = [...new TextEncoder().encode("data: a"), 0xff, ...new TextEncoder().encode("b\n\n")];

  assert.deepEqual(brief(parse(Uint8Array.from(bytes)).events), [["message", "a\ufffdb", ""]]);
});

test("an event knows whether it has an id of its own", () => {
  const { events } = parse("id: 1\ndata: a\n\ndata: b\n\nid: 1\ndata: c\n\n");

  assert.deepEqual(events.map((e) => e.hasId), [true, false, true]);
});

test("a long line in small pieces is looked through once", () => {
  const text = `data: ${"x".repeat(4_000_000)}`;
  const pieces = text.match(/.{1,1000}/g)!;
  const begun = performance.now();

  const { events } = parse(...pieces, "\r", "\n\r\n");

  assert.equal(events[0]!.data.length, 4_000_000);
  // Not ten seconds, in which a page would answer nobody.
  assert.ok(performance.now() - begun < 2_000);
});

test("random streams in random pieces give what another parser gives", () => {
  let seed = Number(process.env.SEED ?? Date.now() % 1e6);
  const first = seed;
  const random = (below: number): number => {
    seed = (seed * 1103515245 + 12345) % 2147483648;
    return Math.floor((seed / 2147483648) * below);
  };
  const words = ["data", "data: x", "data:", "data:  é✓", "event: e", "event", "id: 1", "id: c:2", ": c", "retry: 5", "foo: y", "", "", "data: 𝄞:\t"];
  const ends = ["\n", "\r", "\r\n"];
  for (let round = 0; round < 2_000; round += 1) {
    let text = "";
    for (let line = random(30); line >= 0; line -= 1) text += words[random(words.length)]! + ends[random(3)]!;
    // So that no line end is the beginning of another, which the other parser waits for.
    text += "\n\n";
    const bytes = new TextEncoder().encode(text);
    const pieces: Uint8Array[] = [];
    for (let at = 0; at < bytes.length; ) {
      const size = 1 + random(9);
      pieces.push(bytes.slice(at, at + size));
      at += size;
    }
    const expected: string[][] = [];
    let lastId = "";
    const other = createParser({
      onEvent: (e) => {
        lastId = e.id ?? lastId;
        expected.push([e.event ?? "message", e.data]);
      },
    });
    other.feed(text);

    const actual = parse(...pieces).events.map((e) => [e.type, e.data]);
    assert.deepEqual(actual, expected, `SEED=${first}, round ${round}: ${JSON.stringify(text)}`);
  }
});
