/**
 * An answer while it is written.
 *
 * Text may come a thousand times a second; the page draws at most once a frame. So pieces are gathered here
 * and shown by a signal that changes once a frame.
 */

import { signal, type ReadonlySignal } from "@preact/signals";
import { postChat } from "../api/client";
import { ApiFailure, inPlainWords } from "../api/errors";
import { eventData } from "../api/sse";
import type { Chunk, ToolCallDelta } from "../api/types";
import type { Figures, Message, ToolCall } from "./conversation";

export class Answer {
  private readonly abort = new AbortController();
  private readonly changed = signal(0);
  private frame = 0;
  private content = "";
  private reasoning = "";
  private calls: ToolCall[] = [];
  private finish = "";
  private error = "";
  private figures: Figures = {};

  constructor(readonly conversationId: string, private readonly begun: Message) {}

  /** Grows once a frame; read it, then `message`. */
  get version(): ReadonlySignal<number> {
    return this.changed;
  }

  /** As it stands. */
  get message(): Message {
    return {
      ...this.begun,
      content: this.content,
      ...(this.reasoning ? { reasoning: this.reasoning } : {}),
      ...(this.calls.length ? { calls: this.calls } : {}),
      ...(this.finish ? { finish: this.finish } : {}),
      ...(this.error ? { error: this.error } : {}),
      figures: this.figures,
    };
  }

  stop(): void {
    this.abort.abort();
  }

  /** Returns when it has ended, however it ended. */
  async run(body: Record<string, unknown>): Promise<void> {
    const started = performance.now();
    try {
      const response = await postChat(body, this.abort.signal);
      const traceId = response.headers.get("x-trace-id");
      if (traceId) this.figures = { ...this.figures, traceId };
      if (!response.body) throw new TypeError("no body");
      for await (const data of eventData(response.body)) {
        if (data === "[DONE]") break;
        this.take(JSON.parse(data) as Chunk, performance.now() - started);
      }
      if (!this.finish && !this.error) this.finish = "cut";
    } catch (error) {
      if (this.abort.signal.aborted) this.finish = "stopped";
      else this.error = inPlainWords(error);
      if (error instanceof ApiFailure && error.traceId) this.figures = { ...this.figures, traceId: error.traceId };
    }
    cancelAnimationFrame(this.frame);
    this.figures = { ...this.figures, totalMs: performance.now() - started };
    this.changed.value++;
  }

  private take(chunk: Chunk, atMs: number): void {
    if (chunk.error) throw new ApiFailure(200, chunk.error.code ?? "", chunk.error.message);
    const choice = chunk.choices?.[0];
    const { content, reasoning_content: reasoning, tool_calls: calls } = choice?.delta ?? {};
    if ((content || reasoning || calls) && this.figures.firstSeenMs === undefined)
      this.figures = { ...this.figures, firstSeenMs: atMs };
    if (content) this.content += content;
    if (reasoning) this.reasoning += reasoning;
    for (const call of calls ?? []) this.takeCall(call);
    if (choice?.finish_reason) this.finish = choice.finish_reason;
    if (chunk.usage) this.figures = { ...this.figures, usage: chunk.usage };
    if (chunk.performance) this.figures = { ...this.figures, performance: chunk.performance };
    this.draw();
  }

  private takeCall(delta: ToolCallDelta): void {
    const before = this.calls[delta.index] ?? { id: "", name: "", arguments: "" };
    const after = {
      id: delta.id ?? before.id,
      name: delta.function?.name ?? before.name,
      arguments: before.arguments + (delta.function?.arguments ?? ""),
    };
    this.calls = Object.assign([...this.calls], { [delta.index]: after });
  }

  private draw(): void {
    if (this.frame) return;
    const show = (): void => {
      this.frame = 0;
      this.changed.value++;
    };
    // Hidden pages get no frames; what they show does not matter, but it must not stand still for ever.
    this.frame = document.hidden ? window.setTimeout(show, 250) : requestAnimationFrame(show);
  }
}
