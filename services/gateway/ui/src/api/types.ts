/** What the gateway's routes return, as far as the page reads it. */

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number } | null;
  completion_tokens_details?: { reasoning_tokens?: number } | null;
}

export interface Performance {
  queue_time_ms: number;
  prefill_time_ms: number;
  decode_time_ms: number;
  time_to_first_token_ms: number;
  tokens_per_second: number;
}

export interface ToolCallDelta {
  index: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

export interface Chunk {
  model?: string;
  choices?: {
    index: number;
    delta?: { content?: string | null; reasoning_content?: string | null; tool_calls?: ToolCallDelta[] };
    finish_reason?: string | null;
  }[];
  usage?: Usage | null;
  performance?: Performance;
  error?: { message: string; type?: string; code?: string | null };
}

export interface ModelEntry {
  id: string;
  root: string;
  max_model_len: number;
  architecture: string;
  dtype: string;
  parameters: number;
  default_sampling: Record<string, number>;
}

/** Of so many values. */
export interface Quantiles {
  count?: number;
  p50: number | null;
  p95: number | null;
}

/** `GET /v1/metrics`; null means that nobody can tell. */
export interface Metrics {
  cpu: { utilization_percent: number | null; core_count: number };
  memory: { used_mb: number; total_mb: number; utilization_percent: number };
  gpu: null | {
    name: string;
    utilization_percent: number | null;
    memory_used_mb: number | null;
    memory_total_mb: number | null;
    temperature_celsius: number | null;
  };
  engine: null | {
    running_requests: number | null;
    aborted_requests: number | null;
    completed_requests: number | null;
    generated_tokens: number | null;
    tokens_per_second: number | null;
  };
  cache: null | {
    hit_rate: number | null;
    kv_utilization_percent: number | null;
    pages_total: number | null;
    pages_in_use: number | null;
    pages_cached: number | null;
    page_size_tokens: number | null;
  };
  queue: null | { waiting_requests: number | null; waiting_tokens: number | null };
  gateway: {
    ready: boolean;
    model: string | null;
    requests_per_second?: number | null;
    tokens_per_second?: number | null;
    time_to_first_token_ms?: Quantiles;
    inter_token_latency_ms?: Quantiles;
  };
  timestamp: number;
}

export type EngineState = "ready" | "unknown" | "down" | "ejected" | "draining";

export interface EngineEntry {
  name: string;
  address: string;
  kind: string;
  state: EngineState;
  reason: string;
  in_flight_requests: number | null;
  total_requests: number | null;
  failed_requests: number | null;
  served_requests: number | null;
  running_requests: number | null;
  waiting_requests: number | null;
  tokens_per_second: number | null;
  kv_utilization_percent: number | null;
  cached_percent: number | null;
  hit_rate: number | null;
}

export interface FleetEvent {
  at: number;
  kind: "ready" | "unreachable" | "down" | "ejected" | "draining" | "added" | "removed" | "restarted" | "resumed";
  engine: string;
  reason: string;
  requests: number;
}

/** `GET /v1/rhizome/pulse`. */
export interface Pulse {
  engines: EngineEntry[];
  events: FleetEvent[];
  trace_url: string | null;
  admin: boolean;
  /** Whether `cache?text=true` can show texts to this caller. */
  cache_text: boolean;
  /** The figures after a time, one list for each; only where it was asked for. */
  history?: Record<string, (number | null)[]>;
}

export interface CacheNode {
  id: number;
  parent: number | null;
  tokens: number;
  uses: number;
  idle: number;
  locks: number;
  pinned: boolean;
  /** Where it is: in the KV pool, there with a copy in the host's memory, or only there. */
  tier?: "device" | "both" | "host";
  text?: string;
}

export interface CacheNamespace {
  name: string;
  cached_tokens: number;
  nodes: CacheNode[];
}

export interface CacheTree {
  engine: string;
  page_size: number;
  pages_total: number;
  host_pages_total?: number;
  truncated: boolean;
  namespaces: CacheNamespace[];
}

/** `GET /v1/rhizome/cache`; null where the engine does not show its cache. */
export interface CacheTrees {
  trees: CacheTree[] | null;
}
