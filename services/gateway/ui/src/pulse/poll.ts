/** Asks the gateway every two seconds, and not while nobody looks. */

import { computed, signal } from "@preact/signals";
import { keyNeeded, readMetrics, readPulse } from "../api/client";
import { ApiFailure } from "../api/errors";
import { lastBytes } from "../api/sse";
import { models, refreshModels } from "../api/models";
import type { EngineEntry, Metrics, Pulse } from "../api/types";
import { history, remember } from "./history";

export const EVERY_MS = 2000;
/** Figures of a gateway that was silent so long are dimmed, and then no longer shown. */
const STALE_MS = 4500;
const GONE_MS = 6000;

const reach = signal<"connecting" | "reached" | "unreachable">("connecting");
export const metrics = signal<Metrics | null>(null);
export const pulse = signal<Pulse | null>(null);

/** How far figures can be trusted. */
export const age = signal<"fresh" | "stale" | "gone">("fresh");
/** What is true now, so nothing once it is too old. */
export const figures = computed(() => (age.value === "gone" ? null : metrics.value));
export const engines = computed<EngineEntry[]>(() => {
  const known = pulse.value?.engines ?? [];
  return age.value === "gone" ? known.map(forgotten) : known;
});
export const readyEngines = computed(() => engines.value.filter(({ state }) => state === "ready").length);

export type Light = "connecting" | "connected" | "partly" | "notReady" | "unreachable" | "keyNeeded";
export const light = computed<Light>(() => {
  if (reach.value === "unreachable") return "unreachable";
  if (keyNeeded.value) return "keyNeeded";
  if (reach.value !== "reached") return "connecting";
  if (!metrics.value?.gateway.ready) return "notReady";
  return readyEngines.value > 0 && readyEngines.value < engines.value.length ? "partly" : "connected";
});

let timer = 0;
let heardAt = 0;

export function startPolling(): void {
  const begin = (): void => {
    clearTimeout(timer);
    heardAt = performance.now();
    if (!document.hidden) void poll();
  };
  document.addEventListener("visibilitychange", begin);
  window.setInterval(judge, 500);
  begin();
}

/** A gateway that is frozen does not even refuse, so a clock decides. */
function judge(): void {
  if (document.hidden) return;
  const silent = performance.now() - heardAt;
  age.value = silent > GONE_MS ? "gone" : silent > STALE_MS || reach.value === "unreachable" ? "stale" : "fresh";
}

/** The next round begins two seconds after this one did, however long it took. */
async function poll(): Promise<void> {
  const started = performance.now();
  // After a silence all of the history is asked for: it may be another gateway's.
  const since = age.value === "fresh" ? (history.value.at(-1)?.at ?? 0) : 0;
  const [told, stack] = await Promise.allSettled([readMetrics(), readPulse(since)]);
  if (told.status === "fulfilled") {
    metrics.value = told.value;
    reach.value = "reached";
    const served = told.value.gateway.model;
    if (served !== null && !models.value.some(({ root }) => root === served)) void refreshModels();
  } else {
    reach.value = told.reason instanceof ApiFailure ? "connecting" : queued(told.reason) ? "reached" : "unreachable";
  }
  if (stack.status === "fulfilled") {
    pulse.value = stack.value;
    remember(stack.value.history);
    if (told.status === "fulfilled") heardAt = performance.now();
  }
  judge();
  clearTimeout(timer);
  if (!document.hidden) timer = window.setTimeout(() => void poll(), Math.max(250, EVERY_MS - (performance.now() - started)));
}

/** Browsers open six connections to a host; where answers take all of them, nobody asked the gateway yet. */
function queued(reason: unknown): boolean {
  return reason instanceof DOMException && reason.name === "TimeoutError" && performance.now() - lastBytes.at < EVERY_MS;
}

/** An engine of which nobody can tell any more how it is. */
function forgotten({ name, address, kind, total_requests, served_requests }: EngineEntry): EngineEntry {
  return {
    name, address, kind, total_requests, served_requests, state: "unknown", reason: "", in_flight_requests: null, failed_requests: null,
    running_requests: null, waiting_requests: null, tokens_per_second: null, kv_utilization_percent: null, cached_percent: null, hit_rate: null,
  };
}
