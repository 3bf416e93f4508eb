/** Asks the gateway every two seconds, and not while nobody looks. */

import { signal } from "@preact/signals";
import { readMetrics, readPulse } from "../api/client";
import { ApiFailure } from "../api/errors";
import { models, refreshModels } from "../api/models";
import type { Metrics, Pulse } from "../api/types";
import { remember } from "./history";

export const EVERY_MS = 2000;

export type Light = "connecting" | "connected" | "notReady" | "unreachable";
export const light = signal<Light>("connecting");
export const metrics = signal<Metrics | null>(null);
export const pulse = signal<Pulse | null>(null);

let timer = 0;

export function startPolling(): void {
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden) void poll();
  });
  if (!document.hidden) void poll();
}

/** The next round begins two seconds after this one did, however long it took. */
async function poll(): Promise<void> {
  const started = performance.now();
  const [figures, stack] = await Promise.allSettled([readMetrics(), readPulse()]);
  if (figures.status === "fulfilled") {
    metrics.value = figures.value;
    remember(figures.value);
    light.value = figures.value.gateway.ready ? "connected" : "notReady";
    const served = figures.value.gateway.model;
    if (served !== null && !models.value.some(({ root }) => root === served)) void refreshModels();
  } else {
    light.value = figures.reason instanceof ApiFailure ? "connecting" : "unreachable";
  }
  if (stack.status === "fulfilled") pulse.value = stack.value;
  clearTimeout(timer);
  if (!document.hidden) timer = window.setTimeout(() => void poll(), Math.max(250, EVERY_MS - (performance.now() - started)));
}
