/**
 * A conversation is a tree: editing a question or asking for another answer adds a branch, nothing is lost.
 *
 * `head` names the last message of the branch that is shown. Values are never changed in place.
 */

import type { Performance, Usage } from "../api/types";

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

/** What an answer cost, as the server measured it and as the page saw it. */
export interface Figures {
  usage?: Usage;
  performance?: Performance;
  /** From sending the request to the first text, in this browser. */
  firstSeenMs?: number;
  totalMs?: number;
  traceId?: string;
}

export interface Message {
  id: string;
  parent: string | null;
  role: "user" | "assistant" | "tool";
  content: string;
  created: number;
  reasoning?: string;
  calls?: ToolCall[];
  callId?: string;
  model?: string;
  finish?: string;
  error?: string;
  figures?: Figures;
}

export interface Conversation {
  id: string;
  title: string;
  created: number;
  updated: number;
  head: string | null;
  messages: Record<string, Message>;
}

export const newId = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function emptyConversation(): Conversation {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, head: null, messages: {} };
}

/** The shown branch, from its first message to `head`. */
export function branch(conversation: Conversation, to: string | null = conversation.head): Message[] {
  const path: Message[] = [];
  const seen = new Set<string>();
  for (let id = to; id !== null && !seen.has(id); ) {
    // Ids may come from a file, where one can be "toString".
    const message: Message | undefined = Object.hasOwn(conversation.messages, id) ? conversation.messages[id] : undefined;
    if (!message) break;
    seen.add(id);
    path.push(message);
    id = message.parent;
  }
  return path.reverse();
}

/** The messages that could stand in a message's place, oldest first, itself among them. */
export function alternatives(conversation: Conversation, message: Message): Message[] {
  return Object.values(conversation.messages)
    .filter((other) => other.parent === message.parent && other.role === message.role)
    .sort((left, right) => left.created - right.created || (left.id < right.id ? -1 : 1));
}

/** The newest message at the end of the newest branch below a message; a file's messages may go in a circle. */
export function newestEnd(conversation: Conversation, id: string): string {
  const seen = new Set<string>();
  for (;;) {
    seen.add(id);
    const next = Object.values(conversation.messages)
      .filter((message) => message.parent === id && !seen.has(message.id))
      .sort((left, right) => right.created - left.created)[0];
    if (!next) return id;
    id = next.id;
  }
}

/** With a message added or replaced, and shown if `shown`. */
export function withMessage(conversation: Conversation, message: Message, shown = true): Conversation {
  return {
    ...conversation,
    messages: { ...conversation.messages, [message.id]: message },
    head: shown ? message.id : conversation.head,
    title: conversation.title || titleOf(message),
    updated: Date.now(),
  };
}

function titleOf(message: Message): string {
  const line = message.role === "user" ? message.content.trim().replace(/\s+/g, " ") : "";
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}
