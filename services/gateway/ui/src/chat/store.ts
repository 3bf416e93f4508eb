/**
 * All conversations, newest first, and the one that is shown.
 *
 * Other tabs show and change the same ones. Each change is made here at once, and in the database to what is
 * stored there by then; the other tabs are told to read it again.
 */

import { computed, signal } from "@preact/signals";
import { branch, emptyConversation, type Conversation } from "./conversation";
import { read, readAll, remove, update } from "./database";
import { hear } from "./elsewhere";
import { followed, gathered, merged, newestFirst, union } from "./merge";
import { stopIn } from "./running";
import { ofTab } from "./tab";

export const conversations = signal<Conversation[]>([]);
/** Empty where none is shown. */
export const currentId = ofTab("conversation");
export const loaded = signal(false);

export const current = computed(() => conversations.value.find(({ id }) => id === currentId.value) ?? null);
export const shownBranch = computed(() => (current.value ? branch(current.value) : []));

/** Those that the database has ever had; where one of them is missing, it was deleted. */
const stored = new Set<string>();
const unreadable = signal(false);
const unwritten = signal<ReadonlySet<string>>(new Set());
/** The browser does not keep everything that is shown. */
export const notKept = computed(() => unreadable.value || unwritten.value.size > 0);

const tabs = new BroadcastChannel("rhizome.conversations");
/** What tabs tell each other: a conversation that has changed, and the message in it that is being written. */
interface News {
  id: string;
  writing: string;
}
tabs.onmessage = ({ data: { id, writing } }: MessageEvent<News>) => void readAgain(id).then(() => hear(writing));

const byId = (id: string): Conversation | undefined => conversations.value.find((one) => one.id === id);

function show(after: Conversation): void {
  conversations.value = newestFirst([after, ...conversations.value.filter(({ id }) => id !== after.id)]);
}

function drop(id: string): void {
  stopIn(id);
  conversations.value = conversations.value.filter((one) => one.id !== id);
  if (currentId.value === id) currentId.value = "";
}

export async function loadConversations(): Promise<void> {
  try {
    const known = await readAll();
    for (const { id } of known) stored.add(id);
    conversations.value = gathered(known, conversations.value);
  } catch {
    unreadable.value = true;
  }
  if (!current.value) currentId.value = "";
  loaded.value = true;
}

async function readAgain(id: string): Promise<void> {
  const before = byId(id);
  try {
    const now = await read(id);
    if (byId(id) !== before) return readAgain(id); // it was changed here meanwhile
    if (now) {
      stored.add(id);
      show(followed(before, now, currentId.value === id));
    } else if (stored.has(id)) drop(id);
  } catch {
    // It stays as it is known here.
  }
}

/** Waits for what is written: then the other tabs are told or, where it failed, the reader is. */
async function keep(id: string, done: Promise<unknown>, writing = ""): Promise<void> {
  const failed = await done.then(() => false, () => true);
  if (!failed) tabs.postMessage({ id, writing } satisfies News);
  if (failed === unwritten.value.has(id)) return;
  const ids = new Set(unwritten.value);
  if (failed) ids.add(id);
  else ids.delete(id);
  unwritten.value = ids;
}

async function write(id: string, work: Parameters<typeof update>[1]): Promise<void> {
  if (await update(id, work)) stored.add(id);
  else drop(id);
}

/**
 * Change one conversation; returns when that is kept. Nothing happens where it was deleted meanwhile. `writing`
 * names the message that is going to change further.
 */
export async function change(id: string, work: (conversation: Conversation) => Conversation, writing = ""): Promise<void> {
  const before = byId(id);
  if (!before) return;
  show(work(before));
  const again = (now: Conversation | undefined): Conversation | null => {
    if (now) return work({ ...now, messages: union(now.messages, before.messages) });
    return stored.has(id) ? null : work(before);
  };
  await keep(id, write(id, again), writing);
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
  currentId.value = "";
}

export function rename(id: string, title: string): void {
  void change(id, (conversation) => ({ ...conversation, title: title.trim() || conversation.title }));
}

export function forget(id: string): void {
  drop(id);
  void keep(id, remove(id));
}

/** Conversations of a file, each beside what there is of it already. */
export function takeIn(imported: Conversation[]): void {
  conversations.value = gathered(conversations.value, imported);
  for (const one of imported) void keep(one.id, write(one.id, (now) => (now ? merged(now, one) : one)));
}
