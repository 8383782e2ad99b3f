import assert from "node:assert/strict";
import { test } from "node:test";

import { backoff, retryAfter } from "../src/backoff.ts";
import { now } from "../src/clock.ts";
import { canonical, isWithin, parsePosition, tidy } from "../src/position.ts";

test("a position has a number for each channel, and names stay as they come", () => {
  assert.deepEqual([...parsePosition("a:12,caf%C3%A9%2F:0")!], [["a", 12], ["caf%C3%A9%2F", 0]]);
  assert.deepEqual([...parsePosition("user:7:3")!], [["user:7", 3]]);
});

for (const text of ["", "error", "42", "a:", ":1", "a:1,", "a:-1", "a:1x"]) {
  test(`${JSON.stringify(text)} is no position`, () => assert.equal(parsePosition(text), null));
}

test("equal positions are equal in whatever order", () => {
  assert.equal(canonical("b:1, a:2"), canonical("a:2,b:1"));
  assert.notEqual(canonical("b:1,a:2"), canonical("a:1,b:2"));
});

test("of a channel that comes twice the last entry counts", () => {
  assert.deepEqual([...parsePosition("a:4,b:2,a:5")!], [["a", 5], ["b", 2]]);
  assert.equal(tidy("a:4,b:2,a:5"), "a:5,b:2");
  assert.equal(tidy("user:7:3, user:7:4"), "user:7:4");
  assert.equal(canonical("b:2,a:4,a:5"), canonical("a:5,a:5,b:2"));
  assert.notEqual(canonical("a:4,a:5"), canonical("a:5,a:4"));
});

for (const text of ["", "error", "42,42", "b:1, a:9223372036854775807"]) {
  test(`${JSON.stringify(text)} stays as it is, but for spaces`, () => {
    assert.equal(tidy(text), text.replace(" ", ""));
  });
}

const WITHIN: [string, string, boolean][] = [
  ["a:1", "a:1", true],
  ["a:1", "a:2", true],
  ["a:2", "a:1", false],
  ["a:1,b:5", "a:9,b:5", true],
  ["a:1,b:6", "a:9,b:5", false],
  ["a:1,b:0", "a:9", false],
  ["a:1", "a:9,b:3", true],
  ["a:10", "a:9", false],
  ["a:9,a:1", "a:1", true],
  ["a:1", "a:9,a:1", true],
  ["a:0,a:2", "a:1", false],
  ["a:1", "a:1,a:0", false],
  ["error", "a:1", false],
  ["7", "9", false],
];
for (const [text, base, expected] of WITHIN) {
  test(`${text} is ${expected ? "" : "not "}within ${base}`, () => assert.equal(isWithin(text, base), expected));
}

const CLOCKS: [string, wall: number, steady: number, passed: number][] = [
  ["both clocks go on", 5_000, 5_000, 5_000],
  ["it sleeps, and one of them as well", 3_600_000, 20, 3_600_000],
  ["one is set back", -3_600_000, 20, 20],
  ["one is corrected by a little", 900, 20, 20],
];
for (const [name, wall, steady, passed] of CLOCKS) {
  test(`time that passes while ${name}`, (t) => {
    const [date, monotonic] = [Date.now(), performance.now()];
    const mocks = [t.mock.method(Date, "now", () => date), t.mock.method(performance, "now", () => monotonic)];
    const before = now();

    mocks[0]!.mock.mockImplementation(() => date + wall);
    mocks[1]!.mock.mockImplementation(() => monotonic + steady);

    assert.equal(Math.round(now() - before), passed);
  });
}

test("waits grow from retry to the cap, and have a random part from the first on", () => {
  const least = [0, 1, 2, 3, 4, 9].map((n) => backoff(n, 2_000, 30_000, () => 0));
  const most = [0, 1, 2, 3, 4, 9].map((n) => backoff(n, 2_000, 30_000, () => 1));

  assert.deepEqual(least, [2_000, 2_000, 2_000, 2_000, 2_000, 2_000]);
  assert.deepEqual(most, [4_000, 6_000, 10_000, 18_000, 30_000, 30_000]);
});

test("the server's retry is kept to, though it is above the cap; and 0 still grows", () => {
  assert.equal(backoff(9, 60_000, 30_000, () => 0), 60_000);
  assert.equal(backoff(9, 60_000, 30_000, () => 1), 120_000);
  assert.equal(backoff(0, 0, 30_000, () => 0), 0);
  assert.ok(backoff(12, 0, 30_000, () => 1) > 4_000);
});

test("Retry-After has seconds or a date", () => {
  const now = Date.parse("2026-01-01T00:00:00Z");

  assert.equal(retryAfter("120", now), 120_000);
  assert.equal(retryAfter("Thu, 01 Jan 2026 00:00:30 GMT", now), 30_000);
  assert.equal(retryAfter("Wed, 31 Dec 2025 00:00:00 GMT", now), 0);
  assert.equal(retryAfter("soon", now), 0);
  assert.equal(retryAfter(null, now), 0);
});
