/** Search over titles and every message of every branch; all words must be there. */

import { computed, signal } from "@preact/signals";
import type { Conversation } from "./conversation";
import { conversations } from "./store";

export const searchText = signal("");

// Conversations are never changed in place, and an answer that is written changes one of hundreds every two
// seconds: what is known of the others stays true.
const texts = new WeakMap<Conversation, string>();
const query = computed(() => ({
  words: searchText.value.toLowerCase().split(/\s+/).filter(Boolean),
  known: new WeakMap<Conversation, boolean>(),
}));

export const found = computed(() => {
  const { words, known } = query.value;
  if (!words.length) return conversations.value;
  return conversations.value.filter((conversation) => {
    let hit = known.get(conversation);
    if (hit === undefined) {
      const text = textOf(conversation);
      hit = words.every((word) => text.includes(word));
      known.set(conversation, hit);
    }
    return hit;
  });
});

function textOf(conversation: Conversation): string {
  let text = texts.get(conversation);
  if (text === undefined) {
    const contents = Object.values(conversation.messages).map(({ content }) => content);
    text = [conversation.title, ...contents].join("\n").toLowerCase();
    texts.set(conversation, text);
  }
  return text;
}
