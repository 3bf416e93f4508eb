/** Requests to the gateway that served the page, with the key where there is one. */

import { signal } from "@preact/signals";
import { failureOf } from "./errors";
import { apiKey } from "./key";
import type { CacheTrees, Metrics, ModelEntry, Pulse } from "./types";

/** The gateway answers nothing before it gets a key that it takes. */
export const keyNeeded = signal(false);
/** The key that it has was not accepted. */
export const keyRefused = signal(false);
/** The sheet that asks for a key is open: raised once by the page, and again by what the reader does. */
export const keyWanted = signal(false);
let raised = false;
/** With such characters in a header browsers send nothing, and it would seem that nobody answers. */
const UNSENDABLE = /[^\x20-\xff]/;

function accepted(): void {
  raised = keyNeeded.value = keyRefused.value = keyWanted.value = false;
}

function refused(key: string, asked: boolean): void {
  keyNeeded.value = true;
  keyRefused.value = key !== "";
  if (asked || !raised) keyWanted.value = true;
  raised = true;
}

/** Raises ApiFailure for a status that is no success, TypeError where nobody answers. */
async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const key = apiKey.value;
  const response = await fetch(path, {
    ...init,
    cache: "no-store",
    credentials: "omit",
    referrerPolicy: "no-referrer",
    headers: { ...(key && !UNSENDABLE.test(key) && { Authorization: `Bearer ${key}` }), ...(init.headers as Record<string, string> | undefined) },
  });
  // What comes late, of a request with the key before, says nothing of this one.
  if (key === apiKey.value) {
    if (response.ok) accepted();
    else if (response.status === 401) refused(key, init.method === "POST");
  }
  if (response.ok) return response;
  throw await failureOf(response);
}

async function json<T>(path: string): Promise<T> {
  const response = await request(path, { signal: AbortSignal.timeout(5000) });
  return (await response.json()) as T;
}

export const readMetrics = (): Promise<Metrics> => json("/v1/metrics");
export const readPulse = (since: number): Promise<Pulse> => json(`/v1/rhizome/pulse?since=${since}`);
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
