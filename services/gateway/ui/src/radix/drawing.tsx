/** The tree as a drawing: roots that fork, thick where much hangs on them, glowing where they were just used. */

import { useSignal } from "@preact/signals";
import type { CacheNamespace, CacheNode } from "../api/types";
import { number, t } from "../text";
import { hasRoom, neighbour, place, type Placed, type Spacing } from "./layout";

interface DrawingProps {
  namespace: CacheNamespace;
  spacing: Spacing;
  labels: boolean;
  chosen?: number | null;
  onChoose?: (id: number) => void;
}

const MARGIN = 14;
/** Forks of fewer tokens have a number only where there is room, or numbers would be all that one sees. */
const LABELLED = 48;
/** Engines count uses no further. */
const MOST_USES = 255;

export function Drawing({ namespace, spacing, labels, chosen, onChoose }: DrawingProps) {
  const { nodes, width, height, rootY } = place(namespace, spacing);
  const room = labels ? 150 : 12;
  const [left, top, right, bottom] = [-MARGIN, -4, width + room, height + 4];
  const most = Math.max(1, ...nodes.map(({ below }) => below));
  // One stop for the Tab key; arrows lead on from there.
  const visited = useSignal<number | null>(null);
  const stop = (nodes.find(({ node }) => node.id === (visited.value ?? chosen)) ?? nodes[0])?.node.id;
  const onKeyDown = (event: KeyboardEvent & { currentTarget: SVGSVGElement }): void => {
    const from = nodes.find(({ node }) => node.id === stop);
    const next = from && neighbour(nodes, from, event.key);
    if (!next) return;
    event.preventDefault();
    visited.value = next.node.id;
    event.currentTarget.querySelector<SVGGElement>(`[data-id="${next.node.id}"]`)?.focus();
  };
  return (
    <svg class="roots" width={right - left} height={bottom - top} viewBox={`${left} ${top} ${right - left} ${bottom - top}`}
      role={onChoose ? "group" : "img"} aria-label={t("cacheNodes", { count: nodes.length })} {...(onChoose ? { onKeyDown } : {})}>
      <g class="links">
        {nodes.map((placed) => (
          <path key={placed.key} class={`link ${look(placed.node)}`} d={curve(placed)} style={{ strokeWidth: String(1 + 6 * Math.sqrt(placed.below / most)) }} />
        ))}
      </g>
      <circle class="root" r={5} style={{ transform: `translateY(${rootY}px)` }} />
      {nodes.map((placed) => (
        <Node key={placed.key} placed={placed} chosen={chosen === placed.node.id} reached={stop === placed.node.id} onFocus={() => (visited.value = placed.node.id)}
          numbered={labels && (placed.leaf || placed.node.tokens >= LABELLED || hasRoom(placed, nodes))} onChoose={onChoose} />
      ))}
    </svg>
  );
}

/** A root leaves its parent level and turns towards its row, then runs straight for the rest of its tokens. */
function curve({ x, y, fromX, fromY }: Placed): string {
  const turn = Math.min(x - fromX, 34 + Math.abs(y - fromY) / 4);
  const bend = fromX + turn / 2;
  return `M${fromX} ${fromY}C${bend} ${fromY} ${bend} ${y} ${fromX + turn} ${y}H${x}`;
}

export function look({ uses, idle, locks, pinned, tier }: CacheNode): string {
  const heat = uses >= 16 ? "heat-3" : uses >= 6 ? "heat-2" : uses >= 3 ? "heat-1" : "heat-0";
  const age = idle <= 1 ? "fresh" : idle < 20 ? "" : idle < 100 ? "old" : "oldest";
  if (tier === "host") return age.startsWith("old") ? `host ${age}` : "host";
  return [heat, age, locks ? "locked" : "", pinned ? "pinned" : ""].filter(Boolean).join(" ");
}

export function describe(node: CacheNode): string {
  return [
    t("cacheTokens", { count: number(node.tokens) }),
    t("cacheUses", { count: node.uses >= MOST_USES ? `${MOST_USES}+` : node.uses }),
    node.idle ? t("cacheIdle", { count: number(node.idle) }) : t("cacheNow"),
    node.tier === "host" ? t("cacheOnHost") : node.pinned ? t("cachePinned") : node.locks ? t("cacheLocked", { count: node.locks }) : t("cacheEvictable"),
    ...(node.tier === "both" ? [t("cacheCopied")] : []),
  ].join(" · ");
}

interface NodeProps {
  placed: Placed;
  numbered: boolean;
  chosen: boolean;
  /** It is where the Tab key comes to. */
  reached: boolean;
  onFocus: () => void;
  onChoose: ((id: number) => void) | undefined;
}

function Node({ placed, numbered, chosen, reached, onFocus, onChoose }: NodeProps) {
  const { node, x, y, leaf } = placed;
  const radius = Math.min(8, 2.5 + Math.sqrt(node.tokens) / 8);
  const choose = onChoose && ((): void => onChoose(node.id));
  const onKey = (event: KeyboardEvent): void => {
    if (choose && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      choose();
    }
  };
  const text = node.text ?? number(node.tokens);
  return (
    <g class={`node ${look(node)}${chosen ? " chosen" : ""}`} data-id={node.id} {...(choose ? { tabindex: reached ? 0 : -1, onFocus, role: "button", "aria-pressed": chosen, onClick: choose, onKeyDown: onKey } : {})}
      aria-label={choose ? describe(node) : undefined} style={{ transform: `translate(${x}px, ${y}px)` }}>
      <title>{describe(node)}</title>
      <circle class="halo" r={radius + 5} />
      <circle class="tip" r={radius} />
      {numbered && leaf && <text x={radius + 7}>{cut(text)}</text>}
      {!leaf && (numbered || chosen) && <text class="inner" y={-radius - 6}>{number(node.tokens)}</text>}
    </g>
  );
}

const cut = (text: string): string => {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > 22 ? `…${line.slice(-21)}` : line;
};
