let slept = 0;
let ahead = Date.now() - performance.now();

/**
 * Milliseconds since some time, to measure how long something takes.
 *
 * By a clock that nobody sets, but that one may stand still while a laptop sleeps: where the
 * other has gone ahead by more than a second, it has slept. One that is set back counts for nothing.
 */
export function now(): number {
  const steady = performance.now();
  const jump = Date.now() - steady - ahead;
  ahead += jump;
  if (jump > 1_000) slept += jump;
  return steady + slept;
}
