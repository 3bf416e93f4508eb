/** Ten minutes of every figure. Survives a reload of the tab. */

import { signal } from "@preact/signals";
import type { Metrics } from "../api/types";

export const SPAN_S = 600;
const NAME = "rhizome.history";

/** Values of one moment; null where nobody could tell. */
export interface Sample {
  at: number;
  requestRate: number | null;
  running: number | null;
  waiting: number | null;
  tokenRate: number | null;
  kvUse: number | null;
  hitRate: number | null;
  ttft: number | null;
  ttft95: number | null;
  itl: number | null;
  itl95: number | null;
}

export type Figure = Exclude<keyof Sample, "at">;

export const history = signal<Sample[]>(kept());

export function remember(metrics: Metrics): void {
  const { gateway, engine, cache, queue } = metrics;
  const sample: Sample = {
    at: Date.now() / 1000,
    requestRate: gateway.requests_per_second ?? null,
    running: engine?.running_requests ?? null,
    waiting: queue?.waiting_requests ?? null,
    tokenRate: gateway.tokens_per_second ?? null,
    kvUse: cache?.kv_utilization_percent ?? null,
    hitRate: cache?.hit_rate == null ? null : 100 * cache.hit_rate,
    ttft: gateway.time_to_first_token_ms?.p50 ?? null,
    ttft95: gateway.time_to_first_token_ms?.p95 ?? null,
    itl: gateway.inter_token_latency_ms?.p50 ?? null,
    itl95: gateway.inter_token_latency_ms?.p95 ?? null,
  };
  history.value = [...history.value.filter(({ at }) => at > sample.at - SPAN_S), sample];
}

function kept(): Sample[] {
  try {
    const samples = JSON.parse(sessionStorage.getItem(NAME) ?? "[]") as Sample[];
    return samples.filter(({ at }) => at > Date.now() / 1000 - SPAN_S);
  } catch {
    return [];
  }
}

addEventListener("pagehide", () => {
  try {
    sessionStorage.setItem(NAME, JSON.stringify(history.value));
  } catch {
    // Ten minutes later it is all there again.
  }
});
