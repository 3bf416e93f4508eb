/** The page: conversations, the middle, the pulse. */

import { useEffect } from "preact/hooks";
import { keyNeeded, keyWanted } from "./api/client";
import { Chat } from "./chat/chat";
import { ConversationList, begin } from "./chat/list";
import { stopIn } from "./chat/running";
import { current, currentId } from "./chat/store";
import { ConnectionLight, PulsePanel } from "./pulse/pulse";
import { RadixView } from "./radix/radix";
import { KeyForm, ModelSelect, SettingsSheet } from "./settings/sheet";
import { IconButton, Sheet } from "./shell/controls";
import { Icon, type IconName } from "./shell/icons";
import { listShown, narrowPart, pulseShown, settingsOpen, view } from "./shell/view";
import { t } from "./text";

export function App() {
  useEffect(() => {
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
  const parts = `${listShown.value ? "" : " no-list"}${pulseShown.value ? "" : " no-pulse"}`;
  return (
    <div class={`app part-${narrowPart.value}${parts}`}>
      <a class="skip" href="#main" onClick={skip}>{t("skip")}</a>
      <ConversationList />
      <main id="main" tabindex={-1}>
        <TopBar />
        {view.value === "chat" ? <Chat /> : <RadixView />}
      </main>
      <PulsePanel />
      <NarrowTabs />
      <SettingsSheet />
      <Sheet open={keyWanted.value && !settingsOpen.value} title={t("keyTitle")} onClose={() => (keyWanted.value = false)} class="key-sheet">
        <p>{t("keyText")}</p>
        <KeyForm />
      </Sheet>
    </div>
  );
}

function skip(event: MouseEvent): void {
  event.preventDefault();
  (document.querySelector<HTMLElement>(".composer textarea") ?? document.getElementById("main"))?.focus();
}

function TopBar() {
  return (
    <div class="top-bar">
      <IconButton icon="menu" label={t("menu")} class="only-wide" pressed={listShown.value} onClick={() => (listShown.value = !listShown.value)} />
      <ModelSelect />
      {keyNeeded.value && <button type="button" class="quiet key-needed" onClick={() => (keyWanted.value = true)}>{t("apiKey")}</button>}
      <span class="top-title">{view.value === "chat" ? (current.value?.title ?? "") : ""}</span>
      <span class="only-narrow"><ConnectionLight /></span>
      <IconButton icon={view.value === "chat" ? "tree" : "chat"} label={view.value === "chat" ? t("showCache") : t("showChat")} class="only-wide"
        onClick={() => (view.value = view.value === "chat" ? "cache" : "chat")} />
      <IconButton icon="sliders" label={t("settings")} onClick={() => (settingsOpen.value = true)} />
      <IconButton icon="pulse" label={t("pulse")} class="only-wide" pressed={pulseShown.value} onClick={() => (pulseShown.value = !pulseShown.value)} />
    </div>
  );
}

function NarrowTabs() {
  const tab = (icon: IconName, label: string, shown: boolean, show: () => void) => (
    <button type="button" class={shown ? "tab shown" : "tab"} aria-current={shown ? "page" : undefined} onClick={show}>
      <Icon name={icon} size={20} /> {label}
    </button>
  );
  const main = narrowPart.value === "main";
  const show = (part: typeof narrowPart.value, middle?: typeof view.value) => (): void => {
    narrowPart.value = part;
    if (middle) view.value = middle;
  };
  return (
    <nav class="tabs" aria-label={t("show")}>
      {tab("menu", t("conversations"), narrowPart.value === "list", show("list"))}
      {tab("chat", t("chat"), main && view.value === "chat", show("main", "chat"))}
      {tab("pulse", t("pulse"), narrowPart.value === "pulse", show("pulse"))}
      {tab("tree", t("cache"), main && view.value === "cache", show("main", "cache"))}
    </nav>
  );
}

/** On a Mac Alt writes letters: there fields keep it to themselves. */
const ALT_WRITES = /^(Mac|iP)/.test(navigator.platform);

function onKey(event: KeyboardEvent): void {
  if (event.isComposing) return;
  const field = event.target instanceof Element ? event.target.closest("input, textarea") : null;
  // Escape in another field is meant for that field.
  if (event.key === "Escape" && !document.querySelector("dialog[open]") && (!field || field.closest(".composer"))) {
    stopIn(currentId.value);
    return;
  }
  if (!event.altKey || event.ctrlKey || event.metaKey || (ALT_WRITES && field)) return;
  const done = { KeyN: begin, KeyC: () => (view.value = view.value === "chat" ? "cache" : "chat"), KeyP: () => (pulseShown.value = !pulseShown.value), Comma: () => (settingsOpen.value = true) }[event.code];
  if (done) {
    event.preventDefault();
    done();
  }
}
