/**
 * How long to wait before the next attempt, in milliseconds.
 *
 * Never less than `retry`, which is the server's word, and at most as much again or `cap`,
 * whichever is more: with retry 2000 and cap 30000 the first wait is 2 to 4 s, then 2 to 6,
 * 2 to 10, 2 to 18, 2 to 30. A random part from the first on: when a proxy restarts, its
 * ten thousand clients must not come back in one second.
 */
export function backoff(
  attempt: number,
  retry: number,
  cap: number,
  random: () => number = Math.random,
): number {
  const spread = Math.min(retry * 2 ** attempt || 2 ** attempt, Math.max(cap - retry, retry));
  return retry + random() * spread;
}

/** Returns milliseconds for a Retry-After header, which has seconds or a date; 0 for none. */
export function retryAfter(header: string | null, now: number = Date.now()): number {
  if (!header) return 0;
  const text = header.trim();
  if (/^\d+$/.test(text)) return Number(text) * 1000;
  return Math.max(0, Date.parse(text) - now) || 0;
}
