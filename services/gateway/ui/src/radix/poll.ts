/** The cache's tree, asked for every two seconds while somebody sees it. */

import { signal } from "@preact/signals";
import { readCache } from "../api/client";
import type { CacheTree } from "../api/types";
import { EVERY_MS, figures, pulse } from "../pulse/poll";

export const trees = signal<CacheTree[]>([]);
/** Whether the engine shows its cache at all; null before it was asked. */
export const cacheShown = signal<boolean | null>(null);
export const textWanted = signal(false);

let timer = 0;
let watchers = 0;

/** Ask while what is returned was not called. */
export function watchCache(): () => void {
  watchers++;
  if (watchers === 1) {
    document.addEventListener("visibilitychange", onVisibility);
    void poll();
  }
  return () => {
    watchers--;
    if (!watchers) {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", onVisibility);
    }
  };
}

function onVisibility(): void {
  clearTimeout(timer);
  if (!document.hidden) void poll();
}

export function refreshCache(): void {
  clearTimeout(timer);
  void poll();
}

async function poll(): Promise<void> {
  try {
    const answer = await readCache(textWanted.value && (pulse.peek()?.cache_text ?? false));
    trees.value = answer.trees ?? [];
    cacheShown.value = answer.trees !== null;
  } catch {
    // The light says that nobody answers; the picture stays as it was.
  }
  clearTimeout(timer);
  if (watchers && !document.hidden) timer = window.setTimeout(() => void poll(), cacheShown.value === false ? 30_000 : EVERY_MS);
}

/** What the pool and its hits come to, over all engines. */
export const cacheSums = (): { saved: number | null; held: number | null } => {
  const cache = figures.value?.cache as (null | { hit_tokens?: number; pages_cached: number | null; page_size_tokens: number | null }) | undefined;
  const held = cache?.pages_cached != null && cache.page_size_tokens != null ? cache.pages_cached * cache.page_size_tokens : null;
  return { saved: cache?.hit_tokens ?? null, held };
};
