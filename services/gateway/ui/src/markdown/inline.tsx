/**
 * Text within a block: emphasis, code, links, maths.
 *
 * Everything becomes elements of known kinds with text in them, never markup that is parsed: what a model
 * writes cannot become a script. Nothing is loaded: an image is shown as a link to it.
 */

import type { ComponentChild } from "preact";
import { Formula } from "./formula";

const PLAIN = /[^\\`*_~[\]!$<h\n]+/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]*)>/y;
const BARE_LINK = /https?:\/\/[^\s<>"'`]*[^\s<>"'`.,:;!?)\]}*_~]/y;
const MARKS = ["***", "___", "**", "__", "~~", "*", "_"] as const;
const DEEPEST = 12;
/** So many marks are looked at for the one that closes another. */
const MOST_TRIED = 64;

export function inline(text: string, depth = 0): ComponentChild[] {
  return new Inline(text, depth).parts();
}

class Inline {
  private at = 0;
  private text = "";
  private found: ComponentChild[] = [];
  /** Marks that nothing closes from some place on; so that many open ones take no more time than few. */
  private readonly unclosed = new Map<string, number>();

  constructor(
    private readonly source: string,
    private readonly depth: number,
  ) {}

  parts(): ComponentChild[] {
    if (this.depth > DEEPEST) return [this.source];
    while (this.at < this.source.length) {
      const plain = this.match(PLAIN);
      if (plain) {
        this.at += plain[0].length;
        // Trimmed here: all of the text so far grows with every line, and looking at it takes as long as it is.
        this.text += this.source[this.at] === "\n" ? plain[0].trimEnd() : plain[0];
      } else if (!this.special()) this.text += this.source[this.at++];
    }
    this.flush();
    return this.found;
  }

  private special(): boolean {
    switch (this.source[this.at]) {
      case "\\":
        return this.escape();
      case "`":
        return this.code();
      case "*":
      case "_":
      case "~":
        return this.emphasis();
      case "!":
      case "[":
        return this.link();
      case "$":
        return this.formula("$", "$");
      case "<":
      case "h":
        return this.autolink();
      case "\n":
        return this.lineEnd();
      default:
        return false;
    }
  }

  private match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.at;
    return pattern.exec(this.source);
  }

  private flush(): void {
    if (this.text) this.found.push(this.text);
    this.text = "";
  }

  private add(part: ComponentChild, end: number): true {
    this.flush();
    this.found.push(part);
    this.at = end;
    return true;
  }

  /** Where a mark occurs next, or -1. */
  private next(mark: string, from: number): number {
    const known = this.unclosed.get(mark);
    if (known !== undefined && from >= known) return -1;
    const end = this.source.indexOf(mark, from);
    if (end < 0) this.unclosed.set(mark, from);
    return end;
  }

  private escape(): boolean {
    const next = this.source[this.at + 1] ?? "";
    if (next === "(") return this.formula("\\(", "\\)");
    if (next === "\n") return this.add(<br />, this.at + 2);
    if (!/[!-/:-@[-`{-~]/.test(next)) return false;
    this.text += next;
    this.at += 2;
    return true;
  }

  private code(): boolean {
    const ticks = /`+/y;
    const mark = this.match(ticks)![0];
    const start = this.at + mark.length;
    for (let end = this.next(mark, start); end >= 0; end = this.next(mark, end)) {
      let length = 0;
      while (this.source[end + length] === "`") length++;
      if (length === mark.length) {
        const raw = this.source.slice(start, end).replace(/\n/g, " ");
        const content = raw.startsWith(" ") && raw.endsWith(" ") && raw.trim() ? raw.slice(1, -1) : raw;
        return this.add(<code>{content}</code>, end + length);
      }
      end += length;
    }
    this.text += mark;
    this.at = start;
    return true;
  }

  private emphasis(): boolean {
    for (const mark of MARKS) {
      if (!this.source.startsWith(mark, this.at)) continue;
      const start = this.at + mark.length;
      const before = this.source[this.at - 1] ?? " ";
      if (/\s|^$/.test(this.source[start] ?? "") || (mark[0] === "_" && /[\p{L}\p{N}]/u.test(before))) continue;
      let tried = 0;
      for (let end = this.next(mark, start + 1); end >= 0 && tried < MOST_TRIED; end = this.next(mark, end + 1)) {
        tried++;
        const after = this.source[end + mark.length] ?? " ";
        if (/[\s\\]/.test(this.source[end - 1] as string)) continue;
        if (mark[0] === "_" && /[\p{L}\p{N}]/u.test(after)) continue;
        if (mark.length === 1 && (after === mark || this.source[end - 1] === mark)) {
          end++;
          continue;
        }
        const content = inline(this.source.slice(start, end), this.depth + 1);
        return this.add(emphasised(mark, content), end + mark.length);
      }
    }
    return false;
  }

  private link(): boolean {
    const image = this.source[this.at] === "!";
    const open = image ? this.at + 1 : this.at;
    if (this.source[open] !== "[") return false;
    const middle = closing(this.source, open);
    if (middle < 0 || this.source[middle + 1] !== "(") return false;
    const end = closing(this.source, middle + 1);
    if (end < 0) return false;
    const target = this.source.slice(middle + 2, end).trim().replace(/\s+["'(].*$/s, "").replace(/^<(.*)>$/, "$1");
    const label = this.source.slice(open + 1, middle);
    const href = safeAddress(target);
    const content = image ? [`▣ ${label || target}`] : inline(label, this.depth + 1);
    return this.add(href ? <Link href={href}>{content}</Link> : <span>{content}</span>, end + 1);
  }

  private autolink(): boolean {
    const marked = this.match(AUTOLINK);
    const found = marked ?? this.match(BARE_LINK);
    const href = found && safeAddress(marked ? marked[1]! : found[0]);
    return href ? this.add(<Link href={href}>{marked ? marked[1] : found[0]}</Link>, this.at + found[0].length) : false;
  }

  private formula(open: string, close: string): boolean {
    const double = this.source.startsWith("$$", this.at);
    const mark = double ? "$$" : close;
    const start = this.at + (double ? 2 : open.length);
    if (open === "$" && !double && /\s|^$/.test(this.source[start] ?? "")) return false;
    const end = this.next(mark, start);
    if (end <= start) return false;
    const tex = this.source.slice(start, end);
    if (open === "$" && !double) {
      // Prices are no formulas: "$5 and $6".
      if (/\s$/.test(tex) || /\d/.test(this.source[end + 1] ?? "") || tex.includes("\n\n")) return false;
    }
    return this.add(<Formula tex={tex} display={double} />, end + mark.length);
  }

  private lineEnd(): boolean {
    if (this.source.endsWith("  ", this.at)) return this.add(<br />, this.at + 1);
    this.text += "\n";
    this.at++;
    return true;
  }
}

function emphasised(mark: string, content: ComponentChild[]): ComponentChild {
  if (mark === "~~") return <del>{content}</del>;
  if (mark.length === 3) return <strong><em>{content}</em></strong>;
  return mark.length === 2 ? <strong>{content}</strong> : <em>{content}</em>;
}

/** Where the bracket at `open` is closed, or -1. Labels and addresses are short: the search is, too. */
function closing(source: string, open: number): number {
  const [left, right] = source[open] === "[" ? ["[", "]"] : ["(", ")"];
  let deep = 0;
  for (let at = open; at < source.length && at < open + 2048; at++) {
    const char = source[at];
    if (char === "\\") at++;
    else if (char === left) deep++;
    else if (char === right && --deep === 0) return at;
  }
  return -1;
}

/** An address that may be followed; anything but http, https and mailto is not. */
export function safeAddress(text: string): string | null {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function Link({ href, children }: { href: string; children: ComponentChild }) {
  return <a href={href} target="_blank" rel="noopener noreferrer nofollow">{children}</a>;
}
