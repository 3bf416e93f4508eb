/**
 * Where the nodes of a radix tree are drawn.
 *
 * Prompts grow from left to right. Each leaf has a row of its own, a parent is in the middle of its children;
 * an edge is as long as its tokens are many (by their square root: a system prompt of 2,000 tokens must not
 * push a question of 20 out of sight).
 */

import type { CacheNode, CacheNamespace } from "../api/types";

export interface Placed {
  node: CacheNode;
  key: string;
  x: number;
  y: number;
  fromX: number;
  fromY: number;
  /** Tokens of the node and of everything below it. */
  below: number;
  depth: number;
  leaf: boolean;
}

export interface Layout {
  nodes: Placed[];
  width: number;
  height: number;
  rootY: number;
}

export interface Spacing {
  row: number;
  /** Pixels for each square root of a token. */
  stretch: number;
  shortest: number;
}

export function place(namespace: CacheNamespace, spacing: Spacing): Layout {
  const children = new Map<number | null, CacheNode[]>();
  const known = new Set(namespace.nodes.map(({ id }) => id));
  for (const node of namespace.nodes) {
    const parent = node.parent !== null && known.has(node.parent) ? node.parent : null;
    children.set(parent, [...(children.get(parent) ?? []), node]);
  }
  // Branches keep their order from one look to the next: by the smallest id in them, which hardly ever changes.
  const first = new Map<CacheNode, number>();
  const smallest = (node: CacheNode): number => {
    const known = first.get(node);
    if (known !== undefined) return known;
    const found = Math.min(node.id, ...(children.get(node.id) ?? []).map(smallest));
    first.set(node, found);
    return found;
  };
  for (const siblings of children.values()) siblings.sort((left, right) => smallest(left) - smallest(right));
  const nodes: Placed[] = [];
  let row = 0;
  let width = 0;
  const visit = (node: CacheNode, fromX: number, depth: number): Placed => {
    const x = fromX + Math.max(spacing.shortest, spacing.stretch * Math.sqrt(node.tokens));
    width = Math.max(width, x);
    const placed: Placed = { node, key: String(node.id), x, y: 0, fromX, fromY: 0, below: node.tokens, depth, leaf: false };
    nodes.push(placed);
    const below = (children.get(node.id) ?? []).map((child) => visit(child, x, depth + 1));
    placed.leaf = below.length === 0;
    placed.y = placed.leaf ? (row++ + 0.5) * spacing.row : middle(below);
    for (const child of below) {
      child.fromY = placed.y;
      placed.below += child.below;
    }
    return placed;
  };
  const begins = (children.get(null) ?? []).map((node) => visit(node, 0, 0));
  const rootY = begins.length ? middle(begins) : spacing.row / 2;
  for (const child of begins) child.fromY = rootY;
  return { nodes, width, height: Math.max(1, row) * spacing.row, rootY };
}

/** The node that an arrow key leads to. Every node is reached: to and from the root, and along all that are as deep. */
export function neighbour(nodes: Placed[], from: Placed, key: string): Placed | undefined {
  const level = nodes.filter(({ depth }) => depth === from.depth).sort((left, right) => left.y - right.y);
  const at = level.indexOf(from);
  switch (key) {
    case "ArrowLeft": return nodes.find(({ node }) => node.id === from.node.parent);
    case "ArrowRight": return nodes.find(({ node }) => node.parent === from.node.id);
    case "ArrowUp": return level[at - 1];
    case "ArrowDown": return level[at + 1];
    case "Home": return nodes[0];
    case "End": return nodes.at(-1);
    default: return undefined;
  }
}

/** Whether a number above an inner node would touch no other root. They run straight along their rows; its own children leave it sideways. */
export function hasRoom({ x, y }: Placed, nodes: Placed[]): boolean {
  return !nodes.some((other) =>
    other.y > y - 28 && other.y < y - 2 && other.fromX < x - 2 && other.x + (other.leaf ? 60 : 14) > x - 14,
  );
}

const middle = (nodes: Placed[]): number => (nodes[0]!.y + nodes.at(-1)!.y) / 2;
