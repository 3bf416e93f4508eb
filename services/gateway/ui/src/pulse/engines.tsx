/** The engines, and what happened to them. */

import { keyNeeded } from "../api/client";
import type { EngineEntry, EngineState, FleetEvent } from "../api/types";
import { clockTime, number, short, t, type TextKey } from "../text";
import { engines, pulse } from "./poll";

const STATES: Record<EngineState, TextKey> = {
  ready: "stateReady", unknown: "stateUnknown", down: "stateDown", ejected: "stateEjected", draining: "stateDraining",
};

export function Engines() {
  if (!engines.value.length) return <p class="nothing">{t(keyNeeded.value ? "needsKey" : "noEngines")}</p>;
  return <ul class="engines">{engines.value.map((engine) => <Engine key={engine.name} engine={engine} />)}</ul>;
}

function Engine({ engine }: { engine: EngineEntry }) {
  const open = engine.in_flight_requests ?? engine.running_requests;
  const facts = [
    open === null ? "" : t("inFlight", { count: open }),
    engine.tokens_per_second === null ? "" : `${number(engine.tokens_per_second)} ${t("tokensPerSecond")}`,
    engine.hit_rate === null ? "" : `${number(100 * engine.hit_rate)} % ${t("hitRate")}`,
    engine.served_requests === null ? "" : t("served", { count: short(engine.served_requests) }),
  ].filter(Boolean);
  return (
    <li class={`engine engine-${engine.state}`}>
      <span class="engine-light" aria-hidden="true" />
      <b>{engine.name}</b>
      <span class="engine-state">{t(STATES[engine.state])}</span>
      <small title={engine.reason}>{engine.reason || facts.join(" · ")}</small>
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
  ready: "eventReady", unreachable: "eventUnreachable", down: "eventDown", ejected: "eventEjected", draining: "eventDraining",
  added: "eventAdded", removed: "eventRemoved", restarted: "eventRestarted", resumed: "eventResumed",
};

export function Events() {
  const events = pulse.value?.events ?? [];
  if (!events.length) return <p class="nothing">{t(keyNeeded.value && !pulse.value ? "needsKey" : "noEvents")}</p>;
  return (
    <ol class="events" aria-live="polite">
      {[...events].reverse().slice(0, 30).map((event) => (
        <li key={`${event.at}${event.engine}${event.kind}`} class={`event event-${event.kind}`}>
          <time>{clockTime.value(event.at)}</time>
          <span title={event.reason}><b>{event.engine}</b> {t(KINDS[event.kind], { count: event.requests })}{event.reason && <small> – {event.reason}</small>}</span>
        </li>
      ))}
    </ol>
  );
}
