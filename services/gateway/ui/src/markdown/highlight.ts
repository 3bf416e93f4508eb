/**
 * Colours for code: one regular expression per family of languages, good enough to read by.
 *
 * Code that grows is read on from where it was: finished lines are kept in pieces that do not change.
 */

import { table } from "./symbols";

export type Kind = "comment" | "string" | "number" | "keyword" | "name" | "tag" | "plain";
export type Token = readonly [Kind, string];

interface Family {
  pattern: RegExp;
  keywords: ReadonlySet<string>;
}

const C_COMMENT = String.raw`\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`;
const HASH_COMMENT = String.raw`#[^\n]*`;
const DASH_COMMENT = String.raw`--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`;
const QUOTED = String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?`;
const TEMPLATE = "`(?:\\\\[\\s\\S]|[^`\\\\])*`?";
const TRIPLE = String.raw`[rbfuRBFU]{0,2}(?:"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$))`;
const NUMBER = String.raw`\b(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)\w*\b`;
const WORD = String.raw`[A-Za-z_$][\w$]*`;

function family(comment: string, text: string, keywords: string): Family {
  const source = `(?<comment>${comment})|(?<string>${text})|(?<number>${NUMBER})|(?<word>${WORD})|(?<plain>\\s+|[^\\sA-Za-z_$])`;
  return { pattern: new RegExp(source, "gy"), keywords: new Set(keywords.split(" ")) };
}

const SCRIPT = family(
  C_COMMENT, `${TEMPLATE}|${QUOTED}`,
  "abstract any as async await boolean break case catch class const continue debugger declare default delete do else enum " +
    "export extends false finally for from function get if implements import in infer instanceof interface is keyof let never " +
    "new null number of private protected public readonly return satisfies set static string super switch symbol this throw " +
    "true try type typeof undefined unknown var void while with yield",
);
const PYTHON = family(
  HASH_COMMENT, `${TRIPLE}|[rbfuRBFU]{0,2}(?:${QUOTED})`,
  "False None True and as assert async await break case class continue def del elif else except finally for from global if " +
    "import in is lambda match nonlocal not or pass raise return self try type while with yield",
);
const SHELL = family(
  HASH_COMMENT, String.raw`"(?:\\.|[^"\\])*"?|'[^']*'?`,
  "if then else elif fi for while until do done case esac in function return export local set unset echo cd exit source sudo",
);
const C_LIKE = family(
  C_COMMENT, `${QUOTED}|${TEMPLATE}`,
  "abstract alignas as async auto await bool boolean break byte case catch chan char class const constexpr continue crate " +
    "default defer delete do double dyn else enum explicit export extends extern false final finally float fn for friend func " +
    "go goto if impl implements import in inline int interface internal let long loop map match mod module move mut namespace " +
    "new nil noexcept null nullptr operator override package private protected pub public range ref return select self Self " +
    "short signed sizeof static string struct super switch template this throw throws trait true try type typedef typename " +
    "union unsafe unsigned use using var virtual void volatile where while yield i8 i16 i32 i64 u8 u16 u32 u64 usize f32 f64 " +
    "str String Vec Option Result include define ifdef ifndef endif val fun object when data sealed guard func let",
);
const SQL = family(
  DASH_COMMENT, QUOTED,
  "select from where and or not null is in as on join left right inner outer full cross group by order having limit offset " +
    "insert into values update set delete create table view index drop alter add primary key foreign references unique default " +
    "union all distinct case when then else end exists between like asc desc with recursive begin commit rollback true false",
);
const DATA = family(HASH_COMMENT, QUOTED, "true false null yes no on off");
const MARKUP: Family = {
  pattern: /(?<comment><!--[\s\S]*?(?:-->|$))|(?<tag><\/?[A-Za-z][\w:-]*|\/?>)|(?<string>"[^"]*"?|'[^'\n]*'?)|(?<word>[\w:-]+(?==))|(?<plain>\s+|[^<>"'\s]+|[<>])/gy,
  keywords: new Set(),
};
const STYLE: Family = {
  pattern: /(?<comment>\/\*[\s\S]*?(?:\*\/|$))|(?<string>"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|(?<number>#[\da-fA-F]{3,8}\b|-?\d[\d.]*(?:%|[a-z]+)?)|(?<tag>[@.#&]?[A-Za-z_-][\w-]*(?=[^;{}]{0,200}\{))|(?<word>[A-Za-z_-][\w-]*)|(?<plain>\s+|[^\sA-Za-z_-])/gy,
  keywords: new Set(["important", "auto", "none", "inherit", "initial"]),
};
const DIFF: Family = {
  pattern: /(?<string>^\+[^\n]*)|(?<comment>^-[^\n]*)|(?<keyword>^@@[^\n]*)|(?<plain>[^\n]*\n?)/gmy,
  keywords: new Set(),
};

const FAMILIES = table<Family>({ diff: DIFF, patch: DIFF, sql: SQL, css: STYLE, scss: STYLE, less: STYLE });
for (const name of ["js", "javascript", "jsx", "ts", "typescript", "tsx", "mjs", "json", "json5", "jsonc"]) FAMILIES[name] = SCRIPT;
for (const name of ["py", "python", "python3", "pycon"]) FAMILIES[name] = PYTHON;
for (const name of ["sh", "bash", "shell", "zsh", "console", "dockerfile", "make", "makefile"]) FAMILIES[name] = SHELL;
for (const name of ["yaml", "yml", "toml", "ini", "conf", "properties"]) FAMILIES[name] = DATA;
for (const name of ["html", "xml", "svg", "vue", "svelte"]) FAMILIES[name] = MARKUP;
for (const name of "c h cc cpp c++ cuda cu cs csharp java kotlin kt rust rs go swift scala dart php proto protobuf zig objc".split(" "))
  FAMILIES[name] = C_LIKE;

const LINES_OF_PIECE = 40;

/** The tokens of a code that grows. */
export class Highlighter {
  private readonly family: Family | undefined;
  private finished: Token[][] = [];
  private finishedText = "";

  constructor(language: string) {
    this.family = FAMILIES[language];
  }

  /** Pieces of the code, in order; those that were finished before are the same arrays as before. */
  pieces(code: string): Token[][] {
    if (!code.startsWith(this.finishedText)) {
      this.finished = [];
      this.finishedText = "";
    }
    let piece: Token[] = [];
    let lines = 0;
    let from = this.finishedText.length;
    let at = from;
    for (const token of this.tokens(code, from)) {
      piece.push(token);
      at += token[1].length;
      lines += countLines(token[1]);
      // The last token may go on with the text that comes next, so a piece never ends with it.
      if (lines >= LINES_OF_PIECE && token[1].endsWith("\n") && at < code.length) {
        this.finished = [...this.finished, piece];
        this.finishedText = code.slice(0, at);
        piece = [];
        lines = 0;
        from = at;
      }
    }
    return [...this.finished, piece];
  }

  private *tokens(code: string, from: number): Generator<Token> {
    if (!this.family) {
      for (const line of code.slice(from).match(/[^\n]*\n|[^\n]+$/g) ?? []) yield ["plain", line];
      return;
    }
    const { pattern, keywords } = this.family;
    pattern.lastIndex = from;
    let at = from;
    for (let match = pattern.exec(code); match && match[0]; match = pattern.exec(code)) {
      const text = match[0];
      at += text.length;
      const groups = match.groups as Record<string, string | undefined>;
      if (groups.word !== undefined) yield [this.kindOfWord(text, code[at], keywords), text];
      else yield [(Object.keys(groups).find((name) => groups[name] !== undefined) ?? "plain") as Kind, text];
      pattern.lastIndex = at;
    }
    if (at < code.length) yield ["plain", code.slice(at)];
  }

  private kindOfWord(word: string, next: string | undefined, keywords: ReadonlySet<string>): Kind {
    if (keywords.has(this.family === SQL ? word.toLowerCase() : word)) return "keyword";
    return next === "(" || this.family === MARKUP ? "name" : "plain";
  }
}

function countLines(text: string): number {
  let count = 0;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) count++;
  return count;
}
