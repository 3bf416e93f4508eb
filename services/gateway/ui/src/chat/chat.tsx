/** The conversation that is shown, or what to begin one with. */

import { useEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { IconButton } from "../shell/controls";
import { t } from "../text";
import { Composer, focusWanted } from "./composer";
import { Beginning } from "./beginning";
import { MessageView } from "./message";
import { current, currentId, shownBranch } from "./store";
import { answers } from "./running";

/** So near to the end counts as being there, in pixels. */
const NEAR = 60;

export function Chat() {
  const conversation = current.value;
  const messages = shownBranch.value;
  return (
    <section class="chat" aria-label={t("chat")}>
      {conversation && messages.length ? (
        <Scroll key={conversation.id}>
          <div class="messages">
            {messages.map((message, index) => (
              <MessageView key={message.id} conversation={conversation} message={message} last={index === messages.length - 1} />
            ))}
          </div>
        </Scroll>
      ) : (
        <Beginning />
      )}
      <Voice />
      <Composer />
    </section>
  );
}

/** Tells those who cannot see it when an answer begins and ends; the text itself would be read out in pieces. */
function Voice() {
  const id = currentId.value;
  const writing = shownBranch.value.some((message) => answers.value.has(message.id));
  const before = useRef({ id, writing, text: "" });
  if (id !== before.current.id) before.current = { id, writing: false, text: "" };
  if (writing !== before.current.writing) before.current = { id, writing, text: t(writing ? "answerBegun" : "answerEnded") };
  useEffect(() => {
    // The button that stops an answer goes with it.
    if (!writing && (document.activeElement ?? document.body).matches("body, .send")) focusWanted.value++;
  }, [writing]);
  return <p class="unseen" role="status">{before.current.text}</p>;
}

/** Follows what is written, until the reader scrolls away; new questions bring it back. */
function Scroll({ children }: { children: preact.ComponentChildren }) {
  const box = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const before = useRef(0);
  const away = useSignal(false);
  const toEnd = (): void => {
    const element = box.current;
    if (element) element.scrollTop = element.scrollHeight;
  };
  const onScroll = (): void => {
    const element = box.current;
    if (!element) return;
    const { scrollTop, scrollHeight, clientHeight } = element;
    // Text may have come since the last scroll to the end; only who scrolls back wants to stay.
    if (scrollHeight - scrollTop - clientHeight < NEAR) follows.current = true;
    else if (scrollTop < before.current - 1) follows.current = false;
    before.current = scrollTop;
    away.value = !follows.current;
  };
  useEffect(() => {
    const element = box.current;
    const content = element?.firstElementChild;
    if (!element || !content) return undefined;
    const observer = new ResizeObserver(() => {
      if (follows.current) toEnd();
      else onScroll();
    });
    observer.observe(content);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const running = answers.value.size;
  useEffect(() => {
    if (running) {
      follows.current = true;
      toEnd();
    }
  }, [running]);
  return (
    <div class="scroll-frame">
      <div class="scroll" ref={box} onScroll={onScroll} tabIndex={0} role="log" aria-live="off" aria-label={t("conversation")}>
        {children}
      </div>
      {away.value && <IconButton icon="down" label={t("toEnd")} class="to-end" onClick={() => { follows.current = true; toEnd(); }} />}
    </div>
  );
}
