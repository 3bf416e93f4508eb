/** Signals that survive a reload, and end with the tab. */

import { effect, signal, type Signal } from "@preact/signals";

export function ofTab(name: string): Signal<string> {
  const key = `rhizome.${name}`;
  let value = "";
  try {
    value = sessionStorage.getItem(key) ?? "";
  } catch {
    // Forbidden: as in a new tab.
  }
  const kept = signal(value);
  effect(() => {
    const text = kept.value;
    try {
      if (text) sessionStorage.setItem(key, text);
      else sessionStorage.removeItem(key);
    } catch {
      // It lasts as long as the page is open.
    }
  });
  return kept;
}
