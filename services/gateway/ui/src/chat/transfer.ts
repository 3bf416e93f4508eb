/** Conversations to a file and back. What comes in is checked field by field: files come from anywhere. */

import type { Conversation, Figures, Message, ToolCall } from "./conversation";

const FORMAT = "rhizome.conversations.v1";

export function exported(conversations: Conversation[]): string {
  return JSON.stringify({ format: FORMAT, conversations }, null, 1);
}

/** Raises SyntaxError for a file that is no export. */
export function imported(text: string): Conversation[] {
  const file: unknown = JSON.parse(text);
  if (!isObject(file) || file.format !== FORMAT || !Array.isArray(file.conversations))
    throw new SyntaxError(FORMAT);
  return file.conversations.map(conversationOf);
}

function conversationOf(value: unknown): Conversation {
  if (!isObject(value) || !isObject(value.messages)) throw new SyntaxError("conversations");
  const entries = Object.values(value.messages).map(messageOf);
  const messages = Object.fromEntries(entries.map((message) => [message.id, message]));
  const head = typeof value.head === "string" && Object.hasOwn(messages, value.head) ? value.head : null;
  return {
    id: text(value.id), title: text(value.title), head, messages,
    created: moment(value.created), updated: moment(value.updated),
  };
}

function messageOf(value: unknown): Message {
  if (!isObject(value)) throw new SyntaxError("messages");
  const { role } = value;
  if (role !== "user" && role !== "assistant" && role !== "tool") throw new SyntaxError("role");
  const message: Message = {
    id: text(value.id), parent: value.parent === null ? null : text(value.parent),
    role, content: text(value.content), created: moment(value.created),
  };
  for (const name of ["reasoning", "callId", "model", "finish", "error"] as const)
    if (typeof value[name] === "string") message[name] = value[name];
  if (Array.isArray(value.calls))
    message.calls = value.calls.filter(isObject).map(
      (call): ToolCall => ({ id: text(call.id), name: text(call.name), arguments: text(call.arguments) }),
    );
  if (isObject(value.figures)) message.figures = figuresOf(value.figures);
  return message;
}

function figuresOf(value: Record<string, unknown>): Figures {
  const figures: Figures = {};
  if (hasNumbers<NonNullable<Figures["usage"]>>(value.usage, "prompt_tokens", "completion_tokens")) {
    const { prompt_tokens, completion_tokens, prompt_tokens_details: details } = value.usage;
    figures.usage = { prompt_tokens, completion_tokens };
    if (typeof details?.cached_tokens === "number") figures.usage.prompt_tokens_details = { cached_tokens: details.cached_tokens };
  }
  const times = ["queue_time_ms", "prefill_time_ms", "decode_time_ms", "time_to_first_token_ms", "tokens_per_second"] as const;
  if (hasNumbers<NonNullable<Figures["performance"]>>(value.performance, ...times)) figures.performance = value.performance;
  if (typeof value.firstSeenMs === "number") figures.firstSeenMs = value.firstSeenMs;
  if (typeof value.totalMs === "number") figures.totalMs = value.totalMs;
  if (typeof value.traceId === "string" && /^[0-9a-f]{32}$/.test(value.traceId)) figures.traceId = value.traceId;
  return figures;
}

const hasNumbers = <T,>(value: unknown, ...names: (keyof T & string)[]): value is T =>
  isObject(value) && names.every((name) => typeof value[name] === "number");

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function text(value: unknown): string {
  if (typeof value !== "string") throw new SyntaxError("text");
  return value;
}

const moment = (value: unknown): number => (typeof value === "number" && Number.isFinite(value) ? value : Date.now());
