/**
 * Markdown as a list of blocks.
 *
 * More text can only change the last block (or begin new ones), so while an answer is written every block but
 * the last keeps its `raw` text, and what shows it need not look again. A block that contains others (a quote,
 * the items of a list) holds their raw text, which is split when it is shown.
 */

export type Align = "left" | "right" | "center" | undefined;

export type Block =
  | { kind: "paragraph" | "quote" | "math"; raw: string }
  | { kind: "heading"; raw: string; level: number }
  | { kind: "code"; raw: string; language: string; closed: boolean }
  | { kind: "list"; raw: string; ordered: boolean; start: number; loose: boolean; items: string[] }
  | { kind: "table"; raw: string; head: string[]; aligns: Align[]; rows: string[][] }
  | { kind: "rule"; raw: string };

// In all of these what is read can be read in one way only: a long line takes no more time than short ones.
const FENCE = /^( {0,3})(`{3,}(?!`)|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*)|[ \t]*)$/s;
/** A formula has no more lines; so many open ones take no more time than few. */
const MOST_LINES = 200;
/** Wider ones are no tables: a browser's time for one goes by rows times columns. */
const MOST_COLUMNS = 64;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*(?:\|[ \t]*)?$/;

/** Split a text; raw texts of paragraphs, headings, code and math are their contents without the marks. */
export function splitBlocks(text: string): Block[] {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
  const blocks: Block[] = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at] as string;
    if (!line.trim()) at++;
    else {
      const [block, next] =
        code(lines, at) ?? math(lines, at) ?? heading(line, at) ?? rule(line, at) ?? quote(lines, at) ??
        list(lines, at) ?? table(lines, at) ?? paragraph(lines, at);
      blocks.push(block);
      at = next;
    }
  }
  return blocks;
}

type Found = [Block, number] | undefined;

function code(lines: string[], at: number): Found {
  const open = FENCE.exec(lines[at] as string);
  if (!open) return undefined;
  const [, indent = "", fence = "", info = ""] = open;
  const content: string[] = [];
  let next = at + 1;
  let closed = false;
  for (; next < lines.length; next++) {
    const line = lines[next] as string;
    const mark = line.trim();
    if (mark.length >= fence.length && mark === fence[0]!.repeat(mark.length) && !/^ {4}/.test(line)) {
      closed = true;
      next++;
      break;
    }
    content.push(line.startsWith(indent) ? line.slice(indent.length) : line.trimStart());
  }
  const language = info.trim().split(/[\s{,:]/)[0]!.toLowerCase();
  return [{ kind: "code", raw: content.join("\n"), language, closed }, next];
}

/** `$$ … $$` and `\[ … \]`, closed; open ones are a paragraph until they are. */
function math(lines: string[], at: number): Found {
  const first = (lines[at] as string).trim();
  const [open, close] = first.startsWith("$$") ? ["$$", "$$"] : first.startsWith("\\[") ? ["\\[", "\\]"] : ["", ""];
  if (!open || !close) return undefined;
  const content: string[] = [];
  for (let next = at; next < Math.min(lines.length, at + MOST_LINES); next++) {
    const line = next === at ? first.slice(2) : (lines[next] as string).trimEnd();
    if (line.trimEnd().endsWith(close)) {
      content.push(line.trimEnd().slice(0, -2));
      return [{ kind: "math", raw: content.join("\n") }, next + 1];
    }
    if (!line.trim() && next > at) return undefined;
    content.push(line);
  }
  return undefined;
}

function heading(line: string, at: number): Found {
  const match = HEADING.exec(line);
  if (!match) return undefined;
  const raw = line.slice(match[0].length).trim();
  let marks = 0;
  while (raw[raw.length - 1 - marks] === "#") marks++;
  const closed = marks > 0 && (marks === raw.length || raw[raw.length - marks - 1] === " ");
  return [{ kind: "heading", raw: closed ? raw.slice(0, -marks).trim() : raw, level: match[1]!.length }, at + 1];
}

const rule = (line: string, at: number): Found => (RULE.test(line) ? [{ kind: "rule", raw: line }, at + 1] : undefined);

function quote(lines: string[], at: number): Found {
  if (!/^ {0,3}>/.test(lines[at] as string)) return undefined;
  const content: string[] = [];
  let next = at;
  for (; next < lines.length && /^ {0,3}>/.test(lines[next] as string); next++)
    content.push((lines[next] as string).replace(/^ {0,3}> ?/, ""));
  return [{ kind: "quote", raw: content.join("\n") }, next];
}

function list(lines: string[], at: number): Found {
  const first = ITEM.exec(lines[at] as string);
  if (!first) return undefined;
  const mark = first[2]!.slice(-1);
  const items: string[] = [];
  let item: string[] = [];
  let inside = 0;
  let loose = false;
  let next = at;
  for (; next < lines.length; next++) {
    const line = lines[next] as string;
    const begins = ITEM.exec(line);
    const indent = line.length - line.trimStart().length;
    const blank = !line.trim();
    if (begins && begins[2]!.slice(-1) === mark && (indent < inside || next === at) && !RULE.test(line)) {
      if (item.length) {
        if (item.at(-1) === "") loose = true;
        items.push(item.join("\n"));
      }
      const padding = begins[3]?.length ?? 1;
      inside = begins[1]!.length + begins[2]!.length + (padding > 4 ? 1 : padding);
      item = [begins[4] ?? ""];
    } else if (blank) {
      let after = next + 1;
      while (after < lines.length && !lines[after]!.trim()) after++;
      const following = lines[after];
      if (following === undefined) break;
      const further = following.length - following.trimStart().length;
      if (further < inside && ITEM.exec(following)?.[2]!.slice(-1) !== mark) break;
      for (; next < after; next++) item.push("");
      next--;
    } else if (indent >= inside) {
      item.push(line.slice(inside));
    } else if (item.at(-1) !== "" && !begins && !FENCE.test(line) && !HEADING.test(line) && !RULE.test(line)) {
      item.push(line.trimStart());
    } else break;
  }
  items.push(item.join("\n"));
  const ordered = /\d/.test(first[2]!);
  const raw = lines.slice(at, next).join("\n");
  return [{ kind: "list", raw, ordered, start: ordered ? parseInt(first[2]!, 10) : 1, loose, items }, next];
}

function table(lines: string[], at: number): Found {
  const [head, delimiters] = [lines[at] as string, lines[at + 1]];
  if (!head.includes("|") || delimiters === undefined || !DELIMITERS.test(delimiters)) return undefined;
  const names = cells(head);
  const aligns = cells(delimiters).map((cell): Align => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : left ? "left" : undefined;
  });
  if (names.length !== aligns.length || names.length > MOST_COLUMNS) return undefined;
  const rows: string[][] = [];
  let next = at + 2;
  for (; next < lines.length && (lines[next] as string).includes("|"); next++) {
    rows.push(cells(lines[next] as string).slice(0, names.length));
  }
  return [{ kind: "table", raw: lines.slice(at, next).join("\n"), head: names, aligns, rows }, next];
}

/** Cells of a row: `\|` is no border, nor is `|` inside of a code span. */
function cells(line: string): string[] {
  const found: string[] = [];
  let cell = "";
  let coded = false;
  for (let at = 0; at < line.length; at++) {
    const char = line[at] as string;
    if (char === "\\" && line[at + 1] === "|") {
      cell += "|";
      at++;
    } else if (char === "|" && !coded) {
      found.push(cell.trim());
      cell = "";
    } else {
      if (char === "`") coded = !coded && line.indexOf("`", at + 1) >= 0;
      cell += char;
    }
  }
  if (cell.trim() || !line.trimEnd().endsWith("|")) found.push(cell.trim());
  if (line.trimStart().startsWith("|")) found.shift();
  return found;
}

function paragraph(lines: string[], at: number): [Block, number] {
  let next = at + 1;
  for (; next < lines.length; next++) {
    const line = lines[next] as string;
    const begins = ITEM.exec(line);
    if (
      !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || /^ {0,3}>/.test(line) ||
      (begins && begins[4]) || /^ {0,3}(\$\$|\\\[)/.test(line) ||
      (DELIMITERS.test(lines[next + 1] ?? "") && line.includes("|"))
    )
      break;
  }
  return [{ kind: "paragraph", raw: lines.slice(at, next).map((line) => line.trimStart()).join("\n") }, next];
}
