/** The API key: kept for this tab, or on this device where its owner says so. */

import { signal } from "@preact/signals";

const NAME = "rhizome.key";

function kept(): { key: string; remembered: boolean } {
  try {
    const here = localStorage.getItem(NAME);
    return here ? { key: here, remembered: true } : { key: sessionStorage.getItem(NAME) ?? "", remembered: false };
  } catch {
    return { key: "", remembered: false };
  }
}

const start = kept();
export const apiKey = signal(start.key);
export const keyRemembered = signal(start.remembered);

export function setKey(key: string, remember: boolean): void {
  apiKey.value = key.trim();
  keyRemembered.value = remember;
  try {
    localStorage.removeItem(NAME);
    sessionStorage.removeItem(NAME);
    if (apiKey.value) (remember ? localStorage : sessionStorage).setItem(NAME, apiKey.value);
  } catch {
    // A browser that keeps nothing keeps it for as long as the page is open.
  }
}
