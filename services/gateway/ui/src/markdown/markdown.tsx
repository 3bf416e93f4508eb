/**
 * Markdown that grows: each block is drawn again only when its own text changed.
 *
 * An answer is divided into parts, and the browser passes over those that are out of sight: what a frame costs
 * depends on the last part, not on the answer.
 */

import { Component, type ComponentChild } from "preact";
import { splitBlocks, type Block } from "./blocks";
import { CodeBlock } from "./code";
import { Formula } from "./formula";
import { inline } from "./inline";

/** Quotes and lists within each other up to here; what is further in is shown as it was written. */
const DEEPEST = 10;
/** Blocks in a part: about two screens. */
const PART = 24;

export function Markdown({ text }: { text: string }) {
  const blocks = splitBlocks(text);
  const parts = Array.from({ length: Math.ceil(blocks.length / PART) }, (_, index) => blocks.slice(index * PART, (index + 1) * PART));
  return <div class="markdown">{parts.map((part, index) => <Part key={index} blocks={part} />)}</div>;
}

class Part extends Component<{ blocks: Block[] }> {
  override shouldComponentUpdate({ blocks }: { blocks: Block[] }): boolean {
    const before = this.props.blocks;
    return blocks.length !== before.length || blocks.some((block, index) => !same(block, before[index]!));
  }

  render({ blocks }: { blocks: Block[] }): ComponentChild {
    return <div class="part">{blocks.map((block, index) => <Shown key={index} block={block} depth={0} />)}</div>;
  }
}

/** The same raw text looks the same. */
function same(block: Block, before: Block): boolean {
  const reopened = block.kind === "code" && before.kind === "code" && block.closed !== before.closed;
  return block.kind === before.kind && block.raw === before.raw && !reopened;
}

function Quote({ text, depth }: { text: string; depth: number }) {
  if (depth > DEEPEST) return <blockquote><pre>{text}</pre></blockquote>;
  return <blockquote>{splitBlocks(text).map((block, index) => <Shown key={index} block={block} depth={depth} />)}</blockquote>;
}

/** A block and everything in it. */
class Shown extends Component<{ block: Block; depth: number }> {
  override shouldComponentUpdate({ block }: { block: Block }): boolean {
    return !same(block, this.props.block);
  }

  render({ block, depth }: { block: Block; depth: number }): ComponentChild {
    switch (block.kind) {
      case "paragraph":
        return <p>{inline(block.raw)}</p>;
      case "heading":
        return heading(block.level, inline(block.raw));
      case "code":
        return <CodeBlock code={block.raw} language={block.language} />;
      case "math":
        return <Formula tex={block.raw} display />;
      case "quote":
        return <Quote text={block.raw} depth={depth + 1} />;
      case "list": {
        const items = block.items.map((item, index) => <Item key={index} text={item} loose={block.loose} depth={depth + 1} />);
        return block.ordered ? <ol start={block.start}>{items}</ol> : <ul>{items}</ul>;
      }
      case "table":
        return <Table block={block} />;
      case "rule":
        return <hr />;
    }
  }
}

class Item extends Component<{ text: string; loose: boolean; depth: number }> {
  override shouldComponentUpdate(next: { text: string; loose: boolean }): boolean {
    return next.text !== this.props.text || next.loose !== this.props.loose;
  }

  render({ text, loose, depth }: { text: string; loose: boolean; depth: number }): ComponentChild {
    if (depth > DEEPEST) return <li>{text}</li>;
    const task = /^\[([ xX])\] /.exec(text);
    const [first, ...others] = splitBlocks(task ? text.slice(4) : text);
    const tight = !loose && first?.kind === "paragraph";
    return (
      <li class={task ? "task" : undefined}>
        {task && <input type="checkbox" checked={task[1] !== " "} disabled aria-label={text.slice(4, 40)} />}
        {first && (tight ? inline(first.raw) : <Shown block={first} depth={depth} />)}
        {others.map((block, index) => <Shown key={index} block={block} depth={depth} />)}
      </li>
    );
  }
}

/** Headings of an answer are below those of the page. */
function heading(level: number, content: ComponentChild): ComponentChild {
  const Tag = `h${Math.min(level + 2, 6)}` as "h3" | "h4" | "h5" | "h6";
  return <Tag class={`heading-${level}`}>{content}</Tag>;
}

function Table({ block }: { block: Block & { kind: "table" } }) {
  const align = (column: number) => (block.aligns[column] ? `align-${block.aligns[column]}` : undefined);
  return (
    <div class="table-scroll" tabIndex={0} role="region" aria-label={block.head.join(", ")}>
      <table>
        <thead><tr>{block.head.map((cell, column) => <th key={column} class={align(column)}>{inline(cell)}</th>)}</tr></thead>
        <tbody>
          {block.rows.map((row, index) => <Row key={index} row={row} aligns={block.aligns} />)}
        </tbody>
      </table>
    </div>
  );
}

class Row extends Component<{ row: string[]; aligns: (string | undefined)[] }> {
  override shouldComponentUpdate(next: { row: string[] }): boolean {
    return next.row.length !== this.props.row.length || next.row.some((cell, column) => cell !== this.props.row[column]);
  }

  render({ row, aligns }: { row: string[]; aligns: (string | undefined)[] }): ComponentChild {
    return (
      <tr>
        {row.map((cell, column) => (
          <td key={column} class={aligns[column] ? `align-${aligns[column]}` : undefined}>{inline(cell)}</td>
        ))}
        {row.length < aligns.length && <td colSpan={aligns.length - row.length} />}
      </tr>
    );
  }
}
