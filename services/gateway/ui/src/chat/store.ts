/** All conversations, newest first, and the one that is shown. */

import { computed, signal } from "@preact/signals";
import { readAll, remove, write } from "./database";
import { branch, emptyConversation, type Conversation } from "./conversation";

export const conversations = signal<Conversation[]>([]);
export const currentId = signal<string | null>(null);
export const searchText = signal("");
export const loaded = signal(false);

export const current = computed(() => conversations.value.find(({ id }) => id === currentId.value) ?? null);
export const shownBranch = computed(() => (current.value ? branch(current.value) : []));

/** Titles and every message of every branch are searched; all words must be there. */
export const found = computed(() => {
  const words = searchText.value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return conversations.value;
  return conversations.value.filter((conversation) => {
    const texts = Object.values(conversation.messages).map(({ content }) => content);
    const all = [conversation.title, ...texts].join("\n").toLowerCase();
    return words.every((word) => all.includes(word));
  });
});

export async function loadConversations(): Promise<void> {
  const known = await readAll().catch(() => []);
  conversations.value = known.sort((left, right) => right.updated - left.updated);
  loaded.value = true;
}

const byId = (id: string): Conversation | undefined => conversations.value.find((one) => one.id === id);

/** Change one conversation; it is written at once. Nothing happens where it was deleted meanwhile. */
export function change(id: string, work: (conversation: Conversation) => Conversation): void {
  const before = byId(id);
  if (!before) return;
  const after = work(before);
  const others = conversations.value.filter((one) => one.id !== id);
  conversations.value = [after, ...others].sort((left, right) => right.updated - left.updated);
  void write(after).catch(() => undefined);
}

/** The shown conversation, made where there is none. */
export function ensureCurrent(): Conversation {
  if (current.value) return current.value;
  const fresh = emptyConversation();
  conversations.value = [fresh, ...conversations.value];
  currentId.value = fresh.id;
  return fresh;
}

export function startNew(): void {
  currentId.value = null;
}

export function rename(id: string, title: string): void {
  change(id, (conversation) => ({ ...conversation, title: title.trim() || conversation.title }));
}

export function forget(id: string): void {
  conversations.value = conversations.value.filter((one) => one.id !== id);
  if (currentId.value === id) currentId.value = null;
  void remove(id).catch(() => undefined);
}

export function takeIn(imported: Conversation[]): void {
  const ids = new Set(imported.map(({ id }) => id));
  conversations.value = [...imported, ...conversations.value.filter(({ id }) => !ids.has(id))].sort(
    (left, right) => right.updated - left.updated,
  );
  for (const one of imported) void write(one).catch(() => undefined);
}
