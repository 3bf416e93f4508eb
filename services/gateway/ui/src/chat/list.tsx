/** All conversations: search, rename, delete, export, import. */

import { useLayoutEffect, useRef } from "preact/hooks";
import { signal, useSignal } from "@preact/signals";
import { theme } from "../settings/appearance";
import { IconButton, download } from "../shell/controls";
import { Icon, Mark } from "../shell/icons";
import { narrowPart, settingsOpen, view } from "../shell/view";
import { language, t } from "../text";
import { focusWanted } from "./composer";
import type { Conversation } from "./conversation";
import { found, searchText } from "./search";
import { conversations, currentId, forget, rename, startNew, takeIn } from "./store";
import { exported, imported } from "./transfer";

const notice = signal("");

export function begin(): void {
  startNew();
  view.value = "chat";
  narrowPart.value = "main";
  focusWanted.value++;
}

export function ConversationList() {
  return (
    <nav class="list" aria-label={t("conversations")}>
      <h1 class="brand"><Mark />rhizome</h1>
      <button type="button" class="new" onClick={begin}><Icon name="plus" /> {t("newChat")} <kbd>Alt N</kbd></button>
      <label class="search">
        <Icon name="search" size={16} />
        <input type="search" value={searchText.value} placeholder={t("search")} aria-label={t("search")}
          onInput={(event) => (searchText.value = event.currentTarget.value)} />
      </label>
      <ol class="conversations">
        {found.value.map((one) => <Entry key={one.id} conversation={one} />)}
        {!found.value.length && <li class="nothing">{searchText.value ? t("nothingFound") : t("nothingYet")}</li>}
      </ol>
      {notice.value && <p class="notice" role="status">{notice.value}</p>}
      <Foot />
    </nav>
  );
}

function Entry({ conversation }: { conversation: Conversation }) {
  const editing = useSignal(false);
  const opener = useRef<HTMLButtonElement>(null);
  const field = useRef<HTMLInputElement>(null);
  const byKey = useRef(false);
  useLayoutEffect(() => { // at once: a name may be given before the next frame
    if (editing.value) field.current?.select();
    else if (byKey.current) opener.current?.focus();
    byKey.current = false;
  }, [editing.value]);
  const { id, title } = conversation;
  const shown = currentId.value === id;
  const open = (): void => {
    currentId.value = id;
    view.value = "chat";
    narrowPart.value = "main";
  };
  if (editing.value) {
    const done = (event: FocusEvent & { currentTarget: HTMLInputElement }): void => {
      rename(id, event.currentTarget.value);
      editing.value = false;
    };
    return (
      <li class="entry">
        <input
          class="title-input" defaultValue={title} aria-label={t("rename")} onBlur={done} ref={field}
          onKeyDown={(event) => {
            if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
            event.stopPropagation();
            if (event.key === "Escape") event.currentTarget.value = title; // going away takes what is typed
            byKey.current = true;
            event.currentTarget.blur();
          }}
        />
      </li>
    );
  }
  return (
    <li class={shown ? "entry shown" : "entry"}>
      <button type="button" class="entry-open" ref={opener} onClick={open} aria-current={shown ? "true" : undefined} title={title}>{title || t("untitled")}</button>
      <span class="entry-actions">
        <IconButton icon="edit" label={t("rename")} onClick={() => (editing.value = true)} size={15} />
        <IconButton icon="save" label={t("export")} onClick={() => download("rhizome-chat.json", exported([conversation]))} size={15} />
        <IconButton icon="trash" label={t("delete")} onClick={() => { if (confirm(t("deleteSure", { title }))) forget(id); }} size={15} />
      </span>
    </li>
  );
}

function Foot() {
  const file = useRef<HTMLInputElement>(null);
  const read = async (input: HTMLInputElement): Promise<void> => {
    try {
      const text = await input.files?.[0]?.text();
      if (text === undefined) return;
      const taken = imported(text);
      takeIn(taken);
      notice.value = t("importedCount", { count: taken.length });
    } catch {
      notice.value = t("importFailed");
    }
    input.value = "";
  };
  return (
    <div class="list-foot">
      <IconButton icon="save" label={t("exportAll")} disabled={!conversations.value.length}
        onClick={() => download("rhizome-chats.json", exported(conversations.value))} />
      <IconButton icon="open" label={t("import")} onClick={() => file.current?.click()} />
      <input ref={file} type="file" accept=".json,application/json" hidden aria-label={t("import")}
        onChange={(event) => void read(event.currentTarget)} />
      <IconButton icon={theme.value === "dark" ? "sun" : "moon"} label={theme.value === "dark" ? t("light") : t("dark")}
        onClick={() => (theme.value = theme.value === "dark" ? "light" : "dark")} />
      <button type="button" class="icon-button word" onClick={() => (language.value = language.value === "en" ? "zh" : "en")}
        aria-label={language.value === "en" ? "中文" : "English"} lang={language.value === "en" ? "zh" : "en"}>
        {language.value === "en" ? "中" : "En"}
      </button>
      <IconButton icon="sliders" label={t("settings")} onClick={() => (settingsOpen.value = true)} />
    </div>
  );
}
