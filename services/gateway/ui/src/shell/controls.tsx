/** Small things that many parts of the page use. */

import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { t } from "../text";
import { Icon, type IconName } from "./icons";

interface IconButtonProps {
  icon: IconName;
  label: string;
  onClick: () => void;
  disabled?: boolean;
  pressed?: boolean;
  class?: string;
  size?: number;
}

export function IconButton({ icon, label, onClick, disabled = false, pressed, class: extra = "", size = 17 }: IconButtonProps) {
  return (
    <button
      type="button" class={`icon-button ${extra}`} title={label} aria-label={label}
      onClick={onClick} disabled={disabled} aria-pressed={pressed}
    >
      <Icon name={icon} size={size} />
    </button>
  );
}

export function CopyButton({ text }: { text: () => string }) {
  const done = useSignal(false);
  const copy = (): void => {
    void copyText(text()).then(() => {
      done.value = true;
      window.setTimeout(() => (done.value = false), 1500);
    });
  };
  return <IconButton icon={done.value ? "check" : "copy"} label={done.value ? t("copied") : t("copy")} onClick={copy} />;
}

/** The clipboard is only there for https and loopback; elsewhere the old way does it. */
async function copyText(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

interface SheetProps {
  open: boolean;
  title: string;
  onClose: () => void;
  class?: string;
  children: ComponentChildren;
}

/** A modal dialog; the browser keeps the focus in it and closes it on Escape. */
export function Sheet({ open, title, onClose, class: extra = "", children }: SheetProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const element = dialog.current;
    if (!element || element.open === open) return;
    if (open) element.showModal();
    else element.close();
  }, [open]);
  const onPointer = (event: MouseEvent): void => {
    if (event.target === dialog.current) onClose();
  };
  return (
    <dialog ref={dialog} class={`sheet ${extra}`} aria-label={title} onClose={onClose} onClick={onPointer}>
      {open && (
        <div class="sheet-body">
          <header>
            <h2>{title}</h2>
            <IconButton icon="close" label={t("close")} onClick={onClose} />
          </header>
          {children}
        </div>
      )}
    </dialog>
  );
}

export function download(name: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  URL.revokeObjectURL(url);
}
