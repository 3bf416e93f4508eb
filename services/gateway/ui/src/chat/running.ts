/** The answers that this tab is writing; one at a time in each conversation. */

import { signal } from "@preact/signals";
import type { Answer } from "./answer";

/** By the id of their message. */
export const answers = signal<ReadonlyMap<string, Answer>>(new Map());

export function begun(id: string, answer: Answer): void {
  answers.value = new Map(answers.value).set(id, answer);
}

export function ended(id: string): void {
  const others = new Map(answers.value);
  others.delete(id);
  answers.value = others;
}

export function stopIn(conversationId: string): void {
  for (const one of answers.value.values()) if (one.conversationId === conversationId) one.stop();
}
