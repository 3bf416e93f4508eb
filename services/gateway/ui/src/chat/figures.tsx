/** What an answer cost: a line of numbers, and a bar of where the time went. */

import { pulse } from "../pulse/poll";
import { duration, number, t } from "../text";
import type { Figures } from "./conversation";

export function FiguresLine({ figures, writing }: { figures: Figures; writing: boolean }) {
  const { usage, performance: times, firstSeenMs, totalMs } = figures;
  if (writing) return <p class="figures" aria-hidden="true">{t("writing")}</p>;
  const cached = usage?.prompt_tokens_details?.cached_tokens ?? 0;
  return (
    <div class="figures">
      {times ? (
        <Figure label={t("firstToken")} value={duration(times.time_to_first_token_ms)} name="ttft" />
      ) : firstSeenMs !== undefined && (
        // The server tells its figures with the end, which a stopped answer has not.
        <Figure label={t("firstToken")} value={duration(firstSeenMs)} name="seen" />
      )}
      {times && <Figure label={t("tokensPerSecond")} value={number(times.tokens_per_second, times.tokens_per_second < 100 ? 1 : 0)} name="rate" />}
      {usage && <Figure label={t("promptTokens")} value={number(usage.prompt_tokens)} name="prompt" />}
      {usage && <Figure label={t("cachedTokens")} value={number(cached)} name="cached" highlight={cached > 0} />}
      {usage && <Figure label={t("outputTokens")} value={number(usage.completion_tokens)} name="output" />}
      {totalMs !== undefined && <Figure label={t("inAll")} value={duration(totalMs)} name="total" />}
      {times && <TimeBar queue={times.queue_time_ms} prefill={times.prefill_time_ms} decode={times.decode_time_ms} />}
      {figures.traceId && <Trace id={figures.traceId} />}
    </div>
  );
}

function Figure({ label, value, name, highlight = false }: { label: string; value: string; name: string; highlight?: boolean }) {
  return (
    <span class={highlight ? "figure highlight" : "figure"} data-figure={name}>
      <b>{value}</b> {label}
    </span>
  );
}

function TimeBar({ queue, prefill, decode }: { queue: number; prefill: number; decode: number }) {
  const all = Math.max(queue + prefill + decode, 0.001);
  const parts = [
    ["queue", queue, t("queue")],
    ["prefill", prefill, t("prefill")],
    ["decode", decode, t("decode")],
  ] as const;
  const label = parts.map(([, ms, name]) => `${name} ${duration(ms)}`).join(" · ");
  return (
    <span class="time-bar" role="img" aria-label={label} title={label}>
      {parts.map(([name, ms]) => <span key={name} class={`time-${name}`} style={{ flexGrow: ms / all }} />)}
    </span>
  );
}

function Trace({ id }: { id: string }) {
  const address = pulse.value?.trace_url;
  const shown = id.slice(0, 8);
  if (!address) return <span class="trace" title={`${t("trace")} ${id}`}>{shown}</span>;
  return (
    <a class="trace" href={address.replace("{trace_id}", id)} target="_blank" rel="noopener noreferrer" title={`${t("trace")} ${id}`}>
      {shown}
    </a>
  );
}
