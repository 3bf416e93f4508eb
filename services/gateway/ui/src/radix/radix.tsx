/** The prefix cache: a small picture beside the chat, and a large one in its place. */

import { useRef } from "preact/hooks";
import { signal } from "@preact/signals";
import type { CacheNamespace, CacheNode, CacheTree } from "../api/types";
import { keyNeeded } from "../api/client";
import { age, pulse } from "../pulse/poll";
import { Icon } from "../shell/icons";
import { narrowPart, view } from "../shell/view";
import { number, short, t, type TextKey } from "../text";
import { Drawing, describe } from "./drawing";
import { cacheShown, cacheSums, refreshCache, textWanted, trees } from "./poll";
import { useCacheWhileSeen } from "./seen";

const SMALL = { row: 13, stretch: 7, shortest: 18 };
const LARGE = { row: 26, stretch: 14, shortest: 44 };
/** The small picture shows so many branches. */
const ROWS = 12;

const chosen = signal<{ engine: string; namespace: string; id: number } | null>(null);

export function RadixPreview() {
  const place = useRef<HTMLDivElement>(null);
  useCacheWhileSeen(place);
  const fullest = trees.value
    .flatMap(({ namespaces }) => namespaces)
    .reduce<CacheNamespace | null>((best, one) => (!best || one.cached_tokens > best.cached_tokens ? one : best), null);
  return (
    <div class="radix-preview" ref={place} onClick={toggleCache}>
      {fullest ? <Drawing namespace={newest(fullest)} spacing={SMALL} labels={false} /> : <span class="nothing">{t(whyNothing())}</span>}
      <CacheSums />
    </div>
  );
}

function whyNothing(): TextKey {
  if (keyNeeded.value) return "needsKey";
  return cacheShown.value === null ? "unknown" : cacheShown.value ? "cacheEmpty" : "cacheAbsent";
}

/** Between the cache and the chat; the picture does it for the mouse, a button for everybody. */
export function toggleCache(): void {
  view.value = view.value === "cache" ? "chat" : "cache";
  narrowPart.value = "main";
}

/** As much of a namespace as has room: the branches used last, whole. */
function newest(namespace: CacheNamespace): CacheNamespace {
  const parents = new Set(namespace.nodes.map(({ parent }) => parent));
  const byId = new Map(namespace.nodes.map((node) => [node.id, node]));
  const shown = new Set<CacheNode>();
  const leaves = namespace.nodes.filter(({ id }) => !parents.has(id)).sort((left, right) => left.idle - right.idle);
  for (const leaf of leaves.slice(0, ROWS))
    for (let node: CacheNode | undefined = leaf; node && !shown.has(node); node = node.parent === null ? undefined : byId.get(node.parent))
      shown.add(node);
  return { ...namespace, nodes: namespace.nodes.filter((node) => shown.has(node)) };
}

function CacheSums() {
  const { saved, held } = cacheSums();
  return (
    <span class="cache-sums">
      <span><b>{held === null ? "–" : short(held)}</b> {t("cacheHeld")}</span>
      <span class="warm"><b>{saved === null ? "–" : short(saved)}</b> {t("cacheSaved")}</span>
    </span>
  );
}

export function RadixView() {
  const place = useRef<HTMLElement>(null);
  useCacheWhileSeen(place);
  return (
    <section class={`radix${age.value === "fresh" ? "" : " stale"}`} ref={place} aria-label={t("cache")}>
      <header class="radix-head">
        <h2>{t("cache")}</h2>
        <p>{t("cacheAbout")}</p>
        <CacheSums />
        {pulse.value?.admin && !pulse.value.cache_text && <small class="texts-hidden">{t("textsHidden")}</small>}
        {pulse.value?.cache_text && (
          <label class="check">
            <input type="checkbox" checked={textWanted.value} onChange={(event) => { textWanted.value = event.currentTarget.checked; refreshCache(); }} /> {t("showText")}
          </label>
        )}
        <button type="button" class="quiet" onClick={() => (view.value = "chat")}><Icon name="chat" size={16} /> {t("showChat")}</button>
      </header>
      <div class="radix-trees" tabIndex={0} role="region" aria-label={t("cacheTrees")}>
        {trees.value.map((tree) => <Tree key={tree.engine} tree={tree} />)}
        {!trees.value.some(({ namespaces }) => namespaces.length) && (
          <p class="nothing">{t(whyNothing())}</p>
        )}
      </div>
      <Legend />
      <Chosen />
    </section>
  );
}

function Tree({ tree }: { tree: CacheTree }) {
  return (
    <>
      {tree.namespaces.map((namespace) => (
        <figure key={namespace.name} class="tree">
          <figcaption>
            <b>{tree.engine}</b> · {namespace.name ? `${t("namespace")} ${namespace.name}` : t("namespaceDefault")} ·{" "}
            {t("cacheTokens", { count: number(namespace.cached_tokens) })}{onHost(namespace)} · {t("cacheNodes", { count: namespace.nodes.length })}
            {tree.truncated && ` (${t("cacheTruncated")})`}
          </figcaption>
          <Drawing
            namespace={namespace} spacing={LARGE} labels
            chosen={chosen.value?.engine === tree.engine && chosen.value.namespace === namespace.name ? chosen.value.id : null}
            onChoose={(id) => (chosen.value = { engine: tree.engine, namespace: namespace.name, id })}
          />
        </figure>
      ))}
    </>
  );
}

/** How much of it is in the host's memory only. */
function onHost({ nodes }: CacheNamespace): string {
  const tokens = nodes.reduce((sum, node) => sum + (node.tier === "host" ? node.tokens : 0), 0);
  return tokens ? ` (${t("cacheHostTokens", { count: number(tokens) })})` : "";
}

function Legend() {
  return (
    <p class="legend">
      <span class="key key-fresh">{t("cacheNow")}</span>
      <span class="key key-hot">{t("hot")}</span>
      <span class="key key-locked">{t("locked")}</span>
      <span class="key key-pinned">{t("pinned")}</span>
      <span class="key key-old">{t("leavesFirst")}</span>
      {trees.value.some(({ host_pages_total }) => host_pages_total) && <span class="key key-host">{t("onHost")}</span>}
      <span>{t("evictable")}</span>
    </p>
  );
}

function Chosen() {
  const { engine, namespace, id } = chosen.value ?? {};
  const nodes = trees.value.find((tree) => tree.engine === engine)?.namespaces.find(({ name }) => name === namespace)?.nodes ?? [];
  const node = nodes.find((one) => one.id === id);
  if (!node) return null;
  const path: CacheNode[] = [];
  for (let one: CacheNode | undefined = node; one; one = nodes.find((other) => other.id === one!.parent)) path.unshift(one);
  return (
    <div class="chosen-node" role="status">
      <p>{describe(node)} · Σ {number(path.reduce((sum, one) => sum + one.tokens, 0))}</p>
      {node.text !== undefined ? <pre tabIndex={0}>{path.map((one) => <span key={one.id} class={one === node ? "this" : ""}>{one.text}</span>)}</pre> : null}
    </div>
  );
}
