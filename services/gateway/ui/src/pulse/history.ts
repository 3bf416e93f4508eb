/** Ten minutes of every figure, as the gateway remembers them whether or not a page is open. */

import { signal } from "@preact/signals";
import type { Pulse } from "../api/types";

export const SPAN_S = 600;

/** What the gateway calls each figure. */
const NAMES = {
  requestRate: "requests_per_second",
  running: "running",
  waiting: "waiting",
  tokenRate: "tokens_per_second",
  kvUse: "kv_percent",
  hitRate: "hit_percent",
  ttft: "first_token_p50_ms",
  ttft95: "first_token_p95_ms",
  itl: "gap_p50_ms",
  itl95: "gap_p95_ms",
} as const;

export type Figure = keyof typeof NAMES;

/** Values of one moment; null where nobody could tell. */
export type Sample = Record<Figure, number | null> & { at: number };

export const history = signal<Sample[]>([]);

/** What is newer than the last sample is added; samples that come again replace those that are here. */
export function remember(told: Pulse["history"]): void {
  const times = told?.at ?? [];
  if (!times.length) return;
  const added = times.map((at, index) => {
    const values = Object.entries(NAMES).map(([figure, name]) => [figure, told![name]?.[index] ?? null]);
    return { at, ...Object.fromEntries(values) } as Sample;
  });
  const [begin, end] = [added[0]!.at, added.at(-1)!.at];
  history.value = [...history.value.filter(({ at }) => at < begin), ...added].filter(({ at }) => at >= end - SPAN_S);
}
