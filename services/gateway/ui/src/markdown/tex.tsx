/**
 * A parser of the TeX that models write: fractions, roots, scripts, sums with limits, brackets that grow,
 * matrices, cases, aligned lines, alphabets and accents. What it does not know it gives up on as a whole, and
 * the reader sees the TeX.
 */

import type { ComponentChild } from "preact";
import {
  ACCENTS, ARROWS, FUNCTIONS, INTEGRALS, LARGE, LETTERS, OPERATORS, SPACES, UNDER, WITH_LIMITS, inAlphabet, isAlphabet, table,
} from "./symbols";

const TOKEN = /\\[A-Za-z]+\*?|\\[\s\S]|[\s\S]/gu;
const LONGEST = 10_000;
/** Things within things: a group counts, and so does what a command stands before. */
const DEEPEST = 100;
const BRACKETS = table<[string, string]>({
  matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], Bmatrix: ["{", "}"], vmatrix: ["|", "|"],
  Vmatrix: ["‖", "‖"], cases: ["{", ""], array: ["", ""], smallmatrix: ["", ""],
});
const LINES = new Set(["aligned", "align", "align*", "gathered", "gather", "gather*", "split", "equation", "equation*", "alignedat", "alignat", "alignat*"]);
/** Environments with an argument that says how the columns stand. */
const WITH_COLUMNS = /^array$|^align(ed)?at/;
const MOST_COLUMNS = 64;
const COLOUR = /^(#[\da-f]{3}|#[\da-f]{6}|[a-z]{3,20})$/i;
const WIDTH = /^\s*-?\d{0,2}(\.\d{1,4})?\s*(em|ex|pt|px|cm|mm|in)\s*$/;

// "false" is a value in MathML, so these are texts.
const RIGID: object = { stretchy: "false" };
const GROWING: object = { stretchy: "true", fence: "true" };
const BIG: object = { largeop: "true" };
const ACCENT: object = { accent: "true" };
const DISPLAYED: object = { displaystyle: "true" };

class Unknown extends Error {}

/** MathML's elements, or null for what is no TeX that is known here. */
export function texToMathml(tex: string): ComponentChild[] | null {
  if (tex.length > LONGEST) return null;
  try {
    return new Tex(tex).all();
  } catch {
    // A formula must not take the message with it, whatever is wrong with it.
    return null;
  }
}

class Tex {
  private readonly tokens: string[];
  private at = 0;
  private deep = 0;
  /** What ends the row that is being read. */
  private ends: (token: string) => boolean = () => false;

  constructor(source: string) {
    this.tokens = source.replace(/(^|[^\\])%[^\n]*/g, "$1").match(TOKEN) ?? [];
  }

  all(): ComponentChild[] {
    const found = this.row(() => false);
    if (this.at < this.tokens.length) throw new Unknown();
    return found;
  }

  /** Everything up to a token at which `ends` says so, which is not taken. */
  private row(ends: (token: string) => boolean): ComponentChild[] {
    const outer = this.ends;
    this.ends = ends;
    const found: ComponentChild[] = [];
    while (this.at < this.tokens.length && !ends(this.peek())) {
      if (/^\s$/.test(this.peek())) this.at++;
      else if (this.peek() === "\\\\") {
        this.at++;
        found.push(<mspace width="1em" />);
      } else if (this.peek() === "}") throw new Unknown();
      else found.push(this.scripted());
    }
    this.ends = outer;
    return found;
  }

  private peek(): string {
    return this.tokens[this.at] ?? "";
  }

  private take(): string {
    const token = this.tokens[this.at++];
    if (token === undefined) throw new Unknown();
    return token;
  }

  private skipSpace(): void {
    while (/^\s$/.test(this.peek())) this.at++;
  }

  /** One thing with what stands above and below it. */
  private scripted(): ComponentChild {
    const name = this.peek().slice(1);
    const base = this.thing();
    let limits = name in LARGE || WITH_LIMITS.has(name) || name === "underbrace" || name === "overbrace";
    let [below, above]: [ComponentChild, ComponentChild] = [undefined, undefined];
    let primes = "";
    for (;;) {
      this.skipSpace();
      const token = this.peek();
      if (token === "\\limits" || token === "\\nolimits") {
        limits = token === "\\limits";
        this.at++;
      } else if (token === "_" && below === undefined) {
        this.at++;
        below = this.argument();
      } else if (token === "^" && above === undefined) {
        this.at++;
        above = this.argument();
      } else if (token === "'" && above === undefined) {
        primes += "′";
        this.at++;
      } else break;
    }
    if (primes) above = above === undefined ? <mo>{primes}</mo> : <mrow><mo>{primes}</mo>{above}</mrow>;
    if (below !== undefined && above !== undefined)
      return limits ? <munderover>{base}{below}{above}</munderover> : <msubsup>{base}{below}{above}</msubsup>;
    if (below !== undefined) return limits ? <munder>{base}{below}</munder> : <msub>{base}{below}</msub>;
    if (above !== undefined) return limits ? <mover>{base}{above}</mover> : <msup>{base}{above}</msup>;
    return base;
  }

  /** What follows a command: a group, or a single thing. */
  private argument(): ComponentChild {
    this.skipSpace();
    return this.thing();
  }

  private group(): ComponentChild {
    const content = this.row((token) => token === "}");
    this.take();
    return <mrow>{content}</mrow>;
  }

  private thing(): ComponentChild {
    if (++this.deep > DEEPEST) throw new Unknown();
    const found = this.read(this.take());
    this.deep--;
    return found;
  }

  private read(token: string): ComponentChild {
    if (token === "{") return this.group();
    if (token.startsWith("\\")) return this.command(token.slice(1));
    if (/^\d$/.test(token)) {
      let digits = token;
      while (/^\d$/.test(this.peek()) || (/^[.,]$/.test(this.peek()) && /^\d$/.test(this.tokens[this.at + 1] ?? "")))
        digits += this.take();
      return <mn>{digits}</mn>;
    }
    if (/^\p{L}$/u.test(token)) return <mi>{token}</mi>;
    if (token === "&" || token === "#" || token === "$" || token === "^" || token === "_") throw new Unknown();
    if (token === "~") return <mspace width="0.25em" />;
    return <mo {...(/[()[\]|]/.test(token) ? RIGID : {})}>{token === "-" ? "−" : token === "*" ? "∗" : token}</mo>;
  }

  private command(name: string): ComponentChild {
    if (LETTERS[name]) return <mi mathvariant={/^[A-Z]|^(infty|emptyset)/.test(name) ? "normal" : undefined}>{LETTERS[name]}</mi>;
    if (OPERATORS[name]) return <mo {...(/^[lr]vert$/i.test(name) ? RIGID : {})}>{OPERATORS[name]}</mo>;
    if (LARGE[name]) return <mo {...BIG}>{LARGE[name]}</mo>;
    if (INTEGRALS[name]) return <mo {...BIG}>{INTEGRALS[name]}</mo>;
    if (FUNCTIONS.has(name)) return <mi mathvariant="normal">{name.replace(/^arg(?=m)/, "arg ").replace(/^lim(?=[si])/, "lim ")}</mi>;
    if (SPACES[name] !== undefined) return <mspace width={`${SPACES[name]}em`} />;
    if (ACCENTS[name]) return <mover {...ACCENT}>{this.argument()}<mo>{ACCENTS[name]}</mo></mover>;
    if (ARROWS[name]) return this.arrow(ARROWS[name]);
    if (UNDER[name]) return <munder>{this.argument()}<mo>{UNDER[name]}</mo></munder>;
    if (isAlphabet(name)) return <mi mathvariant="normal">{inAlphabet(name, this.text())}</mi>;
    if ("{}%$&#_".includes(name)) return <mo {...RIGID}>{name}</mo>;
    switch (name) {
      case "frac":
      case "dfrac":
      case "tfrac":
      case "cfrac":
        return <mfrac>{this.argument()}{this.argument()}</mfrac>;
      case "binom":
        return <mrow><mo>(</mo><mfrac linethickness="0">{this.argument()}{this.argument()}</mfrac><mo>)</mo></mrow>;
      case "sqrt":
        return this.root();
      case "text":
      case "textbf":
      case "textit":
      case "textrm":
      case "mbox":
        return <mtext>{this.text().replace(/ /g, "\u00a0")}</mtext>;
      case "mathrm":
      case "operatorname":
      case "operatorname*":
      case "mathsf":
      case "mathit":
        return <mi mathvariant="normal">{this.text()}</mi>;
      case "left":
        return this.fence();
      case "begin":
        return this.environment();
      case "boxed":
        return <menclose notation="box">{this.argument()}</menclose>;
      case "cancel":
        return <menclose notation="updiagonalstrike">{this.argument()}</menclose>;
      case "phantom":
        return <mphantom>{this.argument()}</mphantom>;
      case "color":
      case "textcolor":
        return this.coloured(name === "color");
      case "substack":
        return this.substack();
      case "hspace":
      case "hspace*": {
        const width = this.text();
        if (!WIDTH.test(width)) throw new Unknown();
        return <mspace width={width.replace(/\s/g, "")} />;
      }
      case "overset":
      case "stackrel": {
        const above = this.argument();
        return <mover>{this.argument()}{above}</mover>;
      }
      case "underset": {
        const below = this.argument();
        return <munder>{this.argument()}{below}</munder>;
      }
      case "pmod":
        return <mrow><mspace width="0.5em" /><mo>(</mo><mi>mod</mi><mspace width="0.3em" />{this.argument()}<mo>)</mo></mrow>;
      case "bmod":
      case "mod":
        return <mo>mod</mo>;
      case "not":
        return <mrow>{this.argument()}<mo≯</mo></mrow>;
      case "tag":
        return <mtext>{` (${this.text()})`}</mtext>;
      case "displaystyle":
      case "textstyle":
      case "scriptstyle":
      case "nonumber":
      case "notag":
      case "limits":
        return null;
    }
    if (/^([bB]igg?[lrm]?|middle)$/.test(name)) return this.bracket();
    throw new Unknown();
  }

  /** `\color{red} …` goes on to the end of the group; with a group behind it, that group is meant. */
  private coloured(mayGoOn: boolean): ComponentChild {
    const colour = this.text();
    if (!COLOUR.test(colour)) throw new Unknown();
    this.skipSpace();
    const group = !mayGoOn || this.peek() === "{";
    return <mrow {...{ mathcolor: colour }}>{group ? this.argument() : this.row(this.ends)}</mrow>;
  }

  private arrow(sign: string): ComponentChild {
    this.skipSpace();
    let below: ComponentChild;
    if (this.peek() === "[") {
      this.take();
      below = <mrow>{this.row((token) => token === "]")}</mrow>;
      this.take();
    }
    const shaft = <mo {...GROWING}>{sign}</mo>;
    const above = <mrow><mspace width="0.6em" />{this.argument()}<mspace width="0.6em" /></mrow>;
    return below ? <munderover>{shaft}{below}{above}</munderover> : <mover>{shaft}{above}</mover>;
  }

  /** Lines below each other, as below a sum. */
  private substack(): ComponentChild {
    this.skipSpace();
    if (this.take() !== "{") throw new Unknown();
    const lines: ComponentChild[][] = [];
    do lines.push(this.row((token) => token === "\\\\" || token === "}"));
    while (this.take() !== "}");
    return <mtable>{lines.map((line) => <mtr><mtd>{line}</mtd></mtr>)}</mtable>;
  }

  private root(): ComponentChild {
    this.skipSpace();
    if (this.peek() !== "[") return <msqrt>{this.argument()}</msqrt>;
    this.take();
    const degree = this.row((token) => token === "]");
    this.take();
    return <mroot>{this.argument()}<mrow>{degree}</mrow></mroot>;
  }

  private text(): string {
    this.skipSpace();
    if (this.peek() !== "{") return this.take();
    this.take();
    let [text, open] = ["", 1];
    for (;;) {
      const token = this.take();
      if (token === "{") open++;
      if (token === "}" && --open === 0) return text;
      text += token.length === 2 && token.startsWith("\\") ? token[1] : token;
    }
  }

  /** A single character, or the one that a command stands for. */
  private sign(): string {
    this.skipSpace();
    const token = this.take();
    const name = token.slice(1);
    return token.startsWith("\\") ? (OPERATORS[name] ?? ("{}".includes(name) ? name : "")) : token;
  }

  private bracketSign(): string {
    const sign = this.sign();
    return sign === "." ? "" : sign;
  }

  private bracket(): ComponentChild {
    return <mo {...GROWING} minsize="1.2em">{this.bracketSign()}</mo>;
  }

  private fence(): ComponentChild {
    const left = this.bracketSign();
    const content = this.row((token) => token === "\\right");
    this.take();
    const right = this.bracketSign();
    return (
      <mrow>
        {left && <mo {...GROWING}>{left}</mo>}
        {content}
        {right && <mo {...GROWING}>{right}</mo>}
      </mrow>
    );
  }

  private environment(): ComponentChild {
    const name = this.text();
    const brackets = BRACKETS[name];
    if (!brackets && !LINES.has(name)) throw new Unknown();
    if (WITH_COLUMNS.test(name)) this.text();
    const rows: ComponentChild[][][] = [[[]]];
    const ruled = new Set<ComponentChild[][]>();
    const ends = (token: string): boolean => token === "&" || token === "\\\\" || token === "\\end";
    for (;;) {
      this.skipSpace();
      if (this.peek() === "\\hline") {
        this.take();
        ruled.add(rows.at(-1)!);
        continue;
      }
      rows.at(-1)!.splice(-1, 1, this.row(ends));
      const token = this.take();
      if (token === "&") {
        if (rows.at(-1)!.push([]) > MOST_COLUMNS) throw new Unknown();
      } else if (token === "\\\\") rows.push([[]]);
      else break;
    }
    if (this.text() !== name) throw new Unknown();
    const filled = rows.filter((row) => row.some((cell) => cell.length));
    const kind = brackets ? (name === "cases" ? "cases" : "matrix") : "lines";
    const table = (
      <mtable class={ruled.has(rows.at(-1)!) ? `${kind} closed` : kind} {...(brackets ? {} : DISPLAYED)}>
        {filled.map((row) => <mtr class={ruled.has(row) ? "ruled" : undefined}>{row.map((cell) => <mtd>{cell}</mtd>)}</mtr>)}
      </mtable>
    );
    if (!brackets) return table;
    const [left, right] = brackets;
    return <mrow>{left && <mo {...GROWING}>{left}</mo>}{table}{right && <mo {...GROWING}>{right}</mo>}</mrow>;
  }
}
