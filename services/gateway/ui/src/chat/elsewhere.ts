/** Answers that other tabs are writing: they tell of each every two seconds. */

import { signal } from "@preact/signals";

/** Of an answer that nobody has told of for so long, nothing more comes. A hidden tab may be late. */
const SILENT_MS = 8000;
const timers = new Map<string, number>();

/** Ids of messages; of one that has ended the message itself says so. */
export const writtenElsewhere = signal<ReadonlySet<string>>(new Set());

/** Another tab says that it is writing a message; empty for none. */
export function hear(id: string): void {
  if (!id) return;
  clearTimeout(timers.get(id));
  timers.set(id, window.setTimeout(() => forget(id), SILENT_MS));
  if (!writtenElsewhere.value.has(id)) writtenElsewhere.value = new Set(writtenElsewhere.value).add(id);
}

function forget(id: string): void {
  timers.delete(id);
  const others = new Set(writtenElsewhere.value);
  others.delete(id);
  writtenElsewhere.value = others;
}
