/** Requests to the gateway that served the page, with the key where there is one. */

import { signal } from "@preact/signals";
import { failureOf } from "./errors";
import { apiKey } from "./key";
import type { CacheTrees, Metrics, ModelEntry, Pulse } from "./types";

/** The gateway asked for a key, or did not take the one that it got. */
export const keyWanted = signal(false);

function headers(): Record<string, string> {
  return apiKey.value ? { Authorization: `Bearer ${apiKey.value}` } : {};
}

/** Raises ApiFailure for a status that is no success, TypeError where nobody answers. */
async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const response = await fetch(path, {
    ...init,
    cache: "no-store",
    credentials: "omit",
    referrerPolicy: "no-referrer",
    headers: { ...headers(), ...(init.headers as Record<string, string> | undefined) },
  });
  if (response.ok) {
    keyWanted.value = false;
    return response;
  }
  if (response.status === 401) keyWanted.value = true;
  throw await failureOf(response);
}

async function json<T>(path: string): Promise<T> {
  const response = await request(path, { signal: AbortSignal.timeout(5000) });
  return (await response.json()) as T;
}

export const readMetrics = (): Promise<Metrics> => json("/v1/metrics");
export const readPulse = (): Promise<Pulse> => json("/v1/rhizome/pulse");
export const readCache = (text: boolean): Promise<CacheTrees> =>
  json(`/v1/rhizome/cache${text ? "?text=true" : ""}`);

export async function readModels(): Promise<ModelEntry[]> {
  return (await json<{ data: ModelEntry[] }>("/v1/models")).data;
}

export function postChat(body: unknown, abort: AbortSignal): Promise<Response> {
  return request("/v1/chat/completions", {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json" },
    signal: abort,
  });
}
