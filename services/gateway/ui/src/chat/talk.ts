/** What a reader can do in a conversation: ask, stop, ask again, edit, change branch. */

import { signal } from "@preact/signals";
import { chosenModel, samplingFields, systemPrompt } from "../settings/sampling";
import { models } from "../api/models";
import { t } from "../text";
import { Answer } from "./answer";
import { branch, newestEnd, newId, withMessage, type Message } from "./conversation";
import { change, conversations, ensureCurrent } from "./store";

/** Answers being written, by the id of their message. */
export const answers = signal<ReadonlyMap<string, Answer>>(new Map());
const KEEP_EVERY_MS = 2000;
/** What keeps a question from being sent, for people. */
export const problem = signal("");

export function ask(content: string, parent?: string | null): void {
  if (!usable()) return;
  const conversation = ensureCurrent();
  const question: Message = {
    id: newId(),
    parent: parent === undefined ? conversation.head : parent,
    role: "user",
    content,
    created: Date.now(),
  };
  change(conversation.id, (one) => withMessage(one, question));
  void answer(conversation.id, question.id);
}

/** The result of a tool that the model called, typed by the reader. */
export function reply(conversationId: string, call: Message, results: { id: string; content: string }[]): void {
  if (!usable()) return;
  let parent = call.id;
  for (const { id, content } of results) {
    const result: Message = { id: newId(), parent, role: "tool", content, callId: id, created: Date.now() };
    change(conversationId, (one) => withMessage(one, result));
    parent = result.id;
  }
  void answer(conversationId, parent);
}

/** Another answer to the same question, beside those that there are. */
export function regenerate(conversationId: string, message: Message): void {
  if (message.parent !== null && usable()) void answer(conversationId, message.parent);
}

/** The same place in the conversation with another question; its answers so far stay. */
export function edit(message: Message, content: string): void {
  ask(content, message.parent);
}

export function showBranch(conversationId: string, message: Message): void {
  change(conversationId, (one) => ({ ...one, head: newestEnd(one, message.id) }));
}

export function stopAll(): void {
  for (const one of answers.value.values()) one.stop();
}

function usable(): boolean {
  try {
    samplingFields();
    problem.value = "";
    return true;
  } catch (error) {
    problem.value = t("errorSettings", { what: error instanceof Error ? error.message : "" });
    return false;
  }
}

async function answer(conversationId: string, parent: string): Promise<void> {
  const conversation = conversations.value.find(({ id }) => id === conversationId);
  if (!conversation) return;
  const model = chosenModel.value || models.value[0]?.id || "";
  const begun: Message = { id: newId(), parent, role: "assistant", content: "", created: Date.now(), model };
  const messages = branch(conversation, parent).map(asSent);
  if (systemPrompt.value.trim()) messages.unshift({ role: "system", content: systemPrompt.value });
  change(conversationId, (one) => withMessage(one, begun));
  const running = new Answer(begun);
  answers.value = new Map(answers.value).set(begun.id, running);
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...samplingFields() };
  // A tab may be closed under an answer: what was written so far is kept now and then.
  const keeping = setInterval(() => change(conversationId, (one) => withMessage(one, running.message, false)), KEEP_EVERY_MS);
  const ended = await running.run(body);
  clearInterval(keeping);
  change(conversationId, (one) => withMessage(one, ended, one.head === begun.id));
  const others = new Map(answers.value);
  others.delete(begun.id);
  answers.value = others;
}

function asSent(message: Message): Record<string, unknown> {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.callId, content: message.content };
  if (message.role === "assistant" && message.calls?.length) {
    const calls = message.calls.map(({ id, name, arguments: text }) => ({
      id, type: "function", function: { name, arguments: text },
    }));
    return { role: "assistant", content: message.content || null, tool_calls: calls };
  }
  return { role: message.role, content: message.content };
}
