/** One message, and what can be done with it. */

import { useLayoutEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { Guard } from "../shell/guard";
import { memo } from "../shell/memo";
import { CopyButton, IconButton } from "../shell/controls";
import { Icon, Mark } from "../shell/icons";
import { Markdown } from "../markdown/markdown";
import { t, type TextKey } from "../text";
import { focusWanted } from "./composer";
import { alternatives, type Conversation, type Message, type ToolCall } from "./conversation";
import { writtenElsewhere } from "./elsewhere";
import { FiguresLine } from "./figures";
import { ended } from "./merge";
import { answers } from "./running";
import { edit, regenerate, reply, showBranch } from "./talk";

interface MessageProps {
  conversation: Conversation;
  message: Message;
  last: boolean;
}

/** A message that cannot be drawn is shown as it was written, and the others live on. */
export function MessageView(props: MessageProps) {
  return <Guard text={props.message.content}><MessageOfRole {...props} /></Guard>;
}

function MessageOfRole(props: MessageProps) {
  const { message } = props;
  if (message.role === "user") return <Question {...props} />;
  if (message.role === "tool") return <ToolResult message={message} />;
  return <AnswerView {...props} />;
}

function Question({ conversation, message }: MessageProps) {
  const draft = useSignal<string | null>(null);
  const article = useRef<HTMLElement>(null);
  const cancelled = useRef(false);
  useLayoutEffect(() => {
    if (cancelled.current) article.current?.querySelector<HTMLElement>(".edit")?.focus();
    cancelled.current = false;
  }, [draft.value === null]);
  if (draft.value !== null)
    return (
      <EditBox
        text={draft.value}
        onCancel={() => {
          cancelled.current = true;
          draft.value = null;
        }}
        onDone={(text) => {
          draft.value = null;
          focusWanted.value++;
          if (text.trim()) edit(message, text);
        }}
      />
    );
  return (
    <article class="question" aria-label={t("you")} ref={article}>
      <div class="bubble">{message.content}</div>
      <div class="actions">
        <Branches conversation={conversation} message={message} />
        <IconButton icon="edit" label={t("edit")} class="edit" onClick={() => (draft.value = message.content)} />
        <CopyButton text={() => message.content} />
      </div>
    </article>
  );
}

function EditBox({ text, onDone, onCancel }: { text: string; onDone: (text: string) => void; onCancel: () => void }) {
  const draft = useSignal(text);
  const area = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => area.current?.focus(), []);
  const onKey = (event: KeyboardEvent): void => {
    // Escape ends a word of Chinese input before it ends the edit, and an edit before an answer.
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      onCancel();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onDone(draft.value);
  };
  return (
    <div class="edit-box">
      <textarea
        aria-label={t("edit")} value={draft.value} rows={Math.min(12, text.split("\n").length + 1)}
        onInput={(event) => (draft.value = event.currentTarget.value)} onKeyDown={onKey}
        ref={area}
      />
      <div class="row end">
        <button type="button" class="quiet" onClick={onCancel}>{t("cancel")}</button>
        <button type="button" class="primary" onClick={() => onDone(draft.value)}>{t("askAgain")}</button>
      </div>
    </div>
  );
}

function AnswerView({ conversation, message, last }: MessageProps) {
  const running = answers.value.get(message.id);
  running?.version.value; // drawn again as it grows
  const shown = running ? running.message : message;
  const again = (): void => {
    focusWanted.value++; // this button goes away
    regenerate(conversation.id, message);
  };
  const writing = running !== undefined || (!ended(message) && writtenElsewhere.value.has(message.id));
  const waiting = writing && !shown.content && !shown.reasoning && !shown.calls?.length;
  return (
    <article class={writing ? "answer writing" : "answer"} aria-label={shown.model ?? t("model")} aria-busy={writing}>
      <div class="answer-mark"><Mark size={24} /></div>
      <div class="answer-body">
        {shown.reasoning && <Reasoning text={shown.reasoning} thinking={writing && !shown.content} />}
        {waiting && <div class="waiting" role="img" aria-label={t("waiting")}><i /><i /><i /></div>}
        {shown.content && <Text text={shown.content} />}
        {shown.calls?.map((call) => <Call key={call.id} call={call} />)}
        {shown.error && <p class="failure" role="alert">{shown.error}</p>}
        <Ending finish={shown.finish ?? (writing || shown.error ? undefined : "cut")} />
        {!writing && last && shown.calls?.length ? <ToolReply conversationId={conversation.id} message={shown} calls={shown.calls} /> : null}
        <div class="foot">
          <FiguresLine figures={shown.figures ?? {}} writing={writing} />
          {!writing && (
            <div class="actions">
              <Branches conversation={conversation} message={message} />
              <IconButton icon="again" label={t("regenerate")} onClick={again} />
              <CopyButton text={() => message.content} />
            </div>
          )}
        </div>
      </div>
    </article>
  );
}

const Text = memo(({ text }: { text: string }) => <Guard text={text}><Markdown text={text} /></Guard>);

const ENDINGS = new Map<string | undefined, TextKey>([
  ["length", "endLength"], ["stopped", "endStopped"], ["cut", "endCut"], ["content_filter", "endCut"],
]);

function Ending({ finish }: { finish: string | undefined }) {
  const key = ENDINGS.get(finish);
  return key ? <p class="ending">{t(key)}</p> : null;
}

/** While the model thinks its last lines are shown; so little folds away when the answer begins. */
function Reasoning({ text, thinking }: { text: string; thinking: boolean }) {
  return (
    <details class={thinking ? "reasoning thinking" : "reasoning"} open={thinking}>
      <summary><Icon name="thought" size={15} /> {thinking ? t("thinking") : t("thought")}</summary>
      <div class="thoughts" tabIndex={0} role="group" aria-label={t("thought")}><Text text={text} /></div>
    </details>
  );
}

function Call({ call }: { call: ToolCall }) {
  let shown = call.arguments;
  try {
    shown = JSON.stringify(JSON.parse(call.arguments), null, 2);
  } catch {
    // It is still being written.
  }
  return (
    <details class="call" open>
      <summary><Icon name="tool" size={15} /> {t("calls")} <code>{call.name}</code></summary>
      <pre tabIndex={0}>{shown}</pre>
    </details>
  );
}

function ToolReply({ conversationId, message, calls }: { conversationId: string; message: Message; calls: ToolCall[] }) {
  const results = useSignal<Record<string, string>>({});
  const send = (event: Event): void => {
    event.preventDefault();
    reply(conversationId, message, calls.map(({ id }) => ({ id, content: results.value[id] ?? "" })));
  };
  return (
    <form class="tool-reply" onSubmit={send}>
      {calls.map(({ id, name }) => (
        <label key={id}>
          {t("resultOf", { name })}
          <textarea
            rows={2} value={results.value[id] ?? ""} placeholder='{"weather": "sunny", "temperature": 21}'
            onInput={(event) => (results.value = { ...results.value, [id]: event.currentTarget.value })}
          />
        </label>
      ))}
      <div class="row end"><button class="primary">{t("sendResult")}</button></div>
    </form>
  );
}

function ToolResult({ message }: { message: Message }) {
  return (
    <article class="tool-result" aria-label={t("toolResult")}>
      <Icon name="tool" size={15} /> <pre tabIndex={0}>{message.content}</pre>
    </article>
  );
}

/** Steps through the messages that could stand here. */
function Branches({ conversation, message }: { conversation: Conversation; message: Message }) {
  const all = alternatives(conversation, message);
  if (all.length < 2) return null;
  const index = all.findIndex(({ id }) => id === message.id);
  const show = (step: number): void => {
    const other = all[index + step];
    if (other) showBranch(conversation.id, other);
  };
  return (
    <span class="branches" role="group" aria-label={t("versions")}>
      <IconButton icon="left" label={t("previousVersion")} disabled={index === 0} onClick={() => show(-1)} size={15} />
      <span>{index + 1}/{all.length}</span>
      <IconButton icon="right" label={t("nextVersion")} disabled={index === all.length - 1} onClick={() => show(1)} size={15} />
    </span>
  );
}
