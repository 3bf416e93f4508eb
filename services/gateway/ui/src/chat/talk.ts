/** What a reader can do in a conversation: ask, stop, ask again, edit, change branch. */

import { signal } from "@preact/signals";
import { chosenModel, samplingFields, systemPrompt } from "../settings/sampling";
import { keyNeeded, keyWanted } from "../api/client";
import { models } from "../api/models";
import { t } from "../text";
import { Answer } from "./answer";
import { branch, newestEnd, newId, withMessage, type Message } from "./conversation";
import { begun, ended, stopIn } from "./running";
import { change, conversations, ensureCurrent, loaded } from "./store";

const KEEP_EVERY_MS = 2000;
/** What keeps a question from being sent, for people. */
export const problem = signal("");

/** Tells whether it was sent. */
export function ask(content: string, parent?: string | null): boolean {
  if (!usable() || !loaded.value) return false;
  const conversation = ensureCurrent();
  const question: Message = {
    id: newId(),
    parent: parent === undefined ? conversation.head : parent,
    role: "user",
    content,
    created: Date.now(),
  };
  void change(conversation.id, (one) => withMessage(one, question));
  void answer(conversation.id, question.id);
  return true;
}

/** The result of a tool that the model called, typed by the reader. */
export function reply(conversationId: string, call: Message, results: { id: string; content: string }[]): void {
  if (!usable()) return;
  let parent = call.id;
  for (const { id, content } of results) {
    const result: Message = { id: newId(), parent, role: "tool", content, callId: id, created: Date.now() };
    void change(conversationId, (one) => withMessage(one, result));
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
  void change(conversationId, (one) => ({ ...one, head: newestEnd(one, message.id) }));
}

function usable(): boolean {
  try {
    samplingFields();
    problem.value = missing();
    return !problem.value;
  } catch (error) {
    problem.value = t("errorSettings", { what: error instanceof Error ? error.message : "" });
    return false;
  }
}

async function answer(conversationId: string, parent: string): Promise<void> {
  const conversation = conversations.value.find(({ id }) => id === conversationId);
  if (!conversation) return;
  // One at a time: another, on a branch that is no longer shown, would go on without anybody who reads it.
  stopIn(conversationId);
  const model = chosenModel.value || models.value[0]?.id || "";
  const empty: Message = { id: newId(), parent, role: "assistant", content: "", created: Date.now(), model };
  const messages = branch(conversation, parent).filter(saysSomething).map(asSent);
  if (systemPrompt.value.trim()) messages.unshift({ role: "system", content: systemPrompt.value });
  void change(conversationId, (one) => withMessage(one, empty), empty.id);
  const running = new Answer(conversationId, empty);
  begun(empty.id, running);
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...samplingFields() };
  // A tab may be closed under an answer: what was written so far is kept now and then.
  const keep = (writing: string): Promise<void> => {
    const { message } = running;
    return change(conversationId, (one) => withMessage(one, message, false), writing);
  };
  const keeping = setInterval(() => void keep(empty.id), KEEP_EVERY_MS);
  await running.run(body);
  clearInterval(keeping);
  await keep("");
  ended(empty.id);
}

/** What keeps everybody from asking: there is no model, or none without a key. */
function missing(): string {
  if (chosenModel.value || models.value.length) return "";
  keyWanted.value = keyNeeded.value;
  return keyNeeded.value ? t("errorNoKey") : t("errorNoModel");
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

/** An answer that failed or was stopped before its first word is none; models are not made for empty ones. */
const saysSomething = ({ role, content, calls }: Message): boolean =>
  role !== "assistant" || content !== "" || Boolean(calls?.length);
