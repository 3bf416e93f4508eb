/** Signals that survive a reload. */

import { effect, signal, type Signal } from "@preact/signals";

export function stored<T>(name: string, initial: T): Signal<T> {
  const key = `rhizome.${name}`;
  let value = initial;
  try {
    const text = localStorage.getItem(key);
    const found: unknown = text === null ? initial : JSON.parse(text);
    // Others of this address may have written there.
    if (found !== null && typeof found === typeof initial) value = found as T;
  } catch {
    // Unreadable or forbidden: as on the first visit.
  }
  const kept = signal(value);
  effect(() => {
    const text = JSON.stringify(kept.value);
    try {
      localStorage.setItem(key, text);
    } catch {
      // The choice lasts until the page is closed.
    }
  });
  return kept;
}
