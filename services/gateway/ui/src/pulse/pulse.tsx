/** The stack alive: rings, tiles, engines, events. */

import type { ComponentChild, ComponentChildren } from "preact";
import { model } from "../api/models";
import type { EngineEntry, EngineState, FleetEvent } from "../api/types";
import { RadixPreview, toggleCache } from "../radix/radix";
import { IconButton } from "../shell/controls";
import { view } from "../shell/view";
import { clockTime, duration, number, short, t, type TextKey } from "../text";
import { history, type Figure } from "./history";
import { light, metrics, pulse } from "./poll";
import { Spark } from "./spark";

export function PulsePanel() {
  return (
    <aside class="pulse" aria-label={t("pulse")}>
      <Head />
      <Rings />
      <div class="tiles">
        <Tile label="tokenRate" figure="tokenRate" format={(value) => number(value, value < 100 ? 1 : 0)} wide />
        <Tile label="requestRate" figure="requestRate" format={(value) => number(value, 2)} />
        <Tile label="running" figure="running" second="waiting" secondLabel={t("waitingRequests")} format={(value) => number(value)} />
        <Tile label="hitRate" figure="hitRate" format={(value) => `${number(value, 1)} %`} least={100} warm />
        <Tile label="kvUse" figure="kvUse" format={(value) => `${number(value, 1)} %`} least={10} />
        <Tile label="ttft" figure="ttft" second="ttft95" format={duration} least={5} />
        <Tile label="itl" figure="itl" second="itl95" format={duration} least={1} />
      </div>
      <Part title={t("cache")} button={<IconButton icon={view.value === "cache" ? "chat" : "tree"} label={view.value === "cache" ? t("showChat") : t("showCache")} onClick={toggleCache} />}>
        <RadixPreview />
      </Part>
      <Part title={t("engines")}><Engines /></Part>
      <Part title={t("events")}><Events /></Part>
    </aside>
  );
}

function Part({ title, button, children }: { title: string; button?: ComponentChild; children: ComponentChildren }) {
  return (
    <section class="part" aria-label={title}>
      <div class="row"><h2>{title}</h2>{button}</div>
      {children}
    </section>
  );
}

export function ConnectionLight() {
  return (
    <span class={`light light-${light.value}`} role="status" title={t(light.value)}>
      <i /> <span>{t(light.value)}</span>
    </span>
  );
}

function Head() {
  const served = model.value;
  return (
    <header class="pulse-head">
      <h2>{t("pulse")}</h2>
      <ConnectionLight />
      {served && (
        <p>
          <b>{served.root}</b> · {served.architecture.replace("ForCausalLM", "")} · {short(served.parameters)} · {served.dtype} · {short(served.max_model_len)}
        </p>
      )}
    </header>
  );
}

function Rings() {
  const now = metrics.value;
  const memory = now?.memory;
  const gpu = now?.gpu;
  return (
    <div class="rings">
      <Ring label={t("cpu")} percent={now?.cpu.utilization_percent ?? null} note={now ? t("cores", { count: now.cpu.core_count }) : ""} />
      <Ring label={t("memory")} percent={memory?.utilization_percent ?? null} note={memory ? `${gib(memory.used_mb)} / ${gib(memory.total_mb)} GiB` : ""} />
      <Ring label={t("gpu")} percent={gpu?.utilization_percent ?? null}
        note={gpu ? (gpu.memory_used_mb !== null && gpu.memory_total_mb !== null ? `${gib(gpu.memory_used_mb)} / ${gib(gpu.memory_total_mb)} GiB` : gpu.name) : now ? t("noGpu") : ""} />
    </div>
  );
}

const gib = (mib: number): string => number(mib / 1024, mib < 10240 ? 1 : 0);

function Ring({ label, percent, note }: { label: string; percent: number | null; note: string }) {
  const text = percent === null ? "–" : `${Math.round(percent)}`;
  const heat = percent !== null && percent >= 90 ? " hot" : "";
  return (
    <div class={`ring${heat}`} role="img" aria-label={`${label} ${percent === null ? t("noGpu") : `${text} %`} ${note}`}>
      <svg viewBox="0 0 64 64" aria-hidden="true">
        <circle class="ring-track" cx="32" cy="32" r="27" pathLength="100" />
        <circle class="ring-value" cx="32" cy="32" r="27" pathLength="100" style={{ strokeDashoffset: String(100 - (percent ?? 0)) }} />
        <text x="32" y="32">{text}</text>
      </svg>
      <b>{label}</b>
      <small>{note}</small>
    </div>
  );
}

interface TileProps {
  label: TextKey;
  figure: Figure;
  second?: Figure;
  secondLabel?: string;
  format: (value: number) => string;
  least?: number;
  wide?: boolean;
  warm?: boolean;
}

function Tile({ label, figure, second, secondLabel = "p95", format, least = 1, wide = false, warm = false }: TileProps) {
  const now = history.value.at(-1);
  const [value, other] = [now?.[figure] ?? null, second ? (now?.[second] ?? null) : null];
  return (
    <div class={`tile${wide ? " wide" : ""}${warm ? " warm" : ""}`} data-figure={figure}>
      <span class="tile-label">{t(label)}</span>
      <span class="tile-value">{value === null ? "–" : format(value)}</span>
      {second && <span class="tile-second">{secondLabel} {other === null ? "–" : format(other)}</span>}
      <Spark figure={figure} {...(second ? { second } : {})} format={format} label={t(label)} least={least} />
    </div>
  );
}

const STATES: Record<EngineState, TextKey> = {
  ready: "stateReady", unknown: "stateUnknown", down: "stateDown", ejected: "stateEjected", draining: "stateDraining",
};

function Engines() {
  const engines = pulse.value?.engines ?? [];
  if (!engines.length) return <p class="nothing">{t("noEngines")}</p>;
  return <ul class="engines">{engines.map((engine) => <Engine key={engine.name} engine={engine} />)}</ul>;
}

function Engine({ engine }: { engine: EngineEntry }) {
  const open = engine.in_flight_requests ?? engine.running_requests;
  const facts = [
    open === null ? "" : t("inFlight", { count: open }),
    engine.tokens_per_second === null ? "" : `${number(engine.tokens_per_second)} ${t("tokensPerSecond")}`,
    engine.hit_rate === null ? "" : `${number(100 * engine.hit_rate)} % ${t("hitRate")}`,
    engine.total_requests === null ? "" : t("served", { count: short(engine.total_requests) }),
  ].filter(Boolean);
  return (
    <li class={`engine engine-${engine.state}`}>
      <span class="engine-light" aria-hidden="true" />
      <b>{engine.name}</b>
      <span class="engine-state">{t(STATES[engine.state])}</span>
      <small>{engine.reason || facts.join(" · ")}</small>
      <Meter used={engine.kv_utilization_percent} cached={engine.cached_percent} />
    </li>
  );
}

/** The KV pool: what requests hold, and what the cache keeps. */
function Meter({ used, cached }: { used: number | null; cached: number | null }) {
  if (used === null) return null;
  const label = `${t("ofKv")}: ${number(used, 1)} % ${t("kvUse")}${cached === null ? "" : `, ${number(cached, 1)} % ${t("cacheHeld")}`}`;
  return (
    <span class="meter" role="img" aria-label={label} title={label}>
      <i class="meter-used" style={{ width: `${used}%` }} />
      <i class="meter-cached" style={{ width: `${cached ?? 0}%` }} />
    </span>
  );
}

const KINDS: Record<FleetEvent["kind"], TextKey> = {
  ready: "eventReady", down: "eventDown", ejected: "eventEjected", draining: "eventDraining", added: "eventAdded",
  removed: "eventRemoved", restarted: "eventRestarted", resumed: "eventResumed",
};

function Events() {
  const events = pulse.value?.events ?? [];
  if (!events.length) return <p class="nothing">{t("noEvents")}</p>;
  return (
    <ol class="events" aria-live="polite">
      {[...events].reverse().slice(0, 30).map((event) => (
        <li key={`${event.at}${event.engine}${event.kind}`} class={`event event-${event.kind}`}>
          <time>{clockTime.value(event.at)}</time>
          <span><b>{event.engine}</b> {t(KINDS[event.kind], { count: event.requests })}{event.reason && <small> – {event.reason}</small>}</span>
        </li>
      ))}
    </ol>
  );
}
