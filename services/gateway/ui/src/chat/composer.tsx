/** Where questions are written. */

import { useEffect, useRef } from "preact/hooks";
import { signal, useSignalEffect } from "@preact/signals";
import { answerSchema, tools } from "../settings/sampling";
import { settingsOpen } from "../shell/view";
import { Icon } from "../shell/icons";
import { t } from "../text";
import { answers, stopIn } from "./running";
import { currentId, loaded, notKept } from "./store";
import { ofTab } from "./tab";
import { ask, problem } from "./talk";

export const draft = ofTab("draft");
/** Raised by whoever wants the cursor in the composer. */
export const focusWanted = signal(0);

export function Composer() {
  const area = useRef<HTMLTextAreaElement>(null);
  const writing = [...answers.value.values()].some((one) => one.conversationId === currentId.value);
  const fit = (): void => {
    const element = area.current;
    if (!element) return;
    element.style.height = "auto";
    element.style.height = `${Math.min(element.scrollHeight, 240)}px`;
  };
  useEffect(fit, [draft.value]);
  useSignalEffect(() => {
    focusWanted.value;
    currentId.value;
    if (matchMedia("(hover: hover)").matches) area.current?.focus();
  });
  const send = (): void => {
    const text = draft.value;
    if (!text.trim() || writing) return;
    if (ask(text)) draft.value = "";
  };
  const onKey = (event: KeyboardEvent): void => {
    // Enter ends a word of Chinese input before it may send.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send();
  };
  return (
    <form class="composer" onSubmit={(event) => { event.preventDefault(); send(); }}>
      {problem.value && <p class="failure" role="alert">{problem.value}</p>}
      {notKept.value && <p class="notice" role="status">{t("notKept")}</p>}
      <div class="composer-box">
        <textarea
          ref={area} rows={1} value={draft.value} placeholder={t("ask")} aria-label={t("ask")}
          onInput={(event) => (draft.value = event.currentTarget.value)} onKeyDown={onKey} spellcheck={false}
        />
        <div class="composer-row">
          {answerSchema.value.trim() && <Badge text="JSON" />}
          {tools.value.trim() && <Badge text={t("tools")} />}
          <span class="hint">{t("enterHint")}</span>
          {writing ? (
            <button type="button" class="send stop" onClick={() => stopIn(currentId.value)} aria-label={t("stop")} title={t("stop")}>
              <Icon name="stop" size={20} />
            </button>
          ) : (
            <button class="send" disabled={!draft.value.trim() || !loaded.value} aria-label={t("send")} title={t("send")}>
              <Icon name="send" size={20} />
            </button>
          )}
        </div>
      </div>
    </form>
  );
}

function Badge({ text }: { text: string }) {
  return <button type="button" class="badge" onClick={() => (settingsOpen.value = true)}>{text}</button>;
}
