/** The stack alive: rings, tiles, engines, events. */

import type { ComponentChild, ComponentChildren } from "preact";
import { model } from "../api/models";
import { RadixPreview, toggleCache } from "../radix/radix";
import { IconButton } from "../shell/controls";
import { view } from "../shell/view";
import { short, t } from "../text";
import { Engines, Events } from "./engines";
import { age, engines, light, readyEngines } from "./poll";
import { Rings } from "./rings";
import { Tiles } from "./tiles";

export function PulsePanel() {
  return (
    <aside class={`pulse${age.value === "fresh" ? "" : " stale"}`} aria-label={t("pulse")}>
      <Head />
      <Rings />
      <Tiles />
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
    <section class="panel-part" aria-label={title}>
      <div class="row"><h2>{title}</h2>{button}</div>
      {children}
    </section>
  );
}

export function ConnectionLight() {
  const text = t(light.value, { ready: readyEngines.value, count: engines.value.length });
  return (
    <span class={`light light-${light.value}`} role="status" title={text}>
      <i /> <span>{text}</span>
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
