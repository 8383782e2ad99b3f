/**
 * Positions: `chanA:12,chanB:7`, with the names percent-encoded. Names stay as they come:
 * the client compares and sends them back, and never needs to know what they mean. Behind a
 * proxy an id names the channel of its event twice: the last entry counts.
 */

export type Position = Map<string, number>;

/** Returns null for an id that is not a position: another server's, or "error". */
export function parsePosition(text: string): Position | null {
  const position: Position = new Map();
  for (const part of text.split(",")) {
    const match = /^\s*(.+):(\d{1,19})\s*$/.exec(part);
    if (!match) return null;
    position.set(match[1]!, Number(match[2]));
  }
  return position;
}

/** Returns a position without the entries that later ones replace; any other text as it is. */
export function tidy(text: string): string {
  if (!parsePosition(text)) return text;
  const entries = new Map<string, string>();
  for (const part of text.split(",")) {
    const entry = part.trim();
    entries.set(entry.slice(0, entry.lastIndexOf(":")), entry);
  }
  return [...entries.values()].join(",");
}

/** Equal positions give equal texts, in whatever order their channels came. */
export function canonical(text: string): string {
  return tidy(text).split(",").sort().join(",");
}

/** Says whether `text` has nothing that `base` has not; false if either is no position. */
export function isWithin(text: string, base: string): boolean {
  const inner = parsePosition(text);
  const outer = parsePosition(base);
  if (!inner || !outer) return false;
  for (const [channel, number] of inner) {
    if (number > (outer.get(channel) ?? -1)) return false;
  }
  return true;
}
