/** Figures with the ten minutes behind them. */

import { duration, number, t, type TextKey } from "../text";
import { history, type Figure } from "./history";
import { age } from "./poll";
import { Spark } from "./spark";

const percent = (value: number): string => `${number(value, 1)} %`;

export function Tiles() {
  return (
    <div class="tiles">
      <Tile figure="tokenRate" format={(value) => number(value, value < 100 ? 1 : 0)} wide />
      <Tile figure="requestRate" format={(value) => number(value, 2)} wide />
      <Tile figure="running" format={(value) => number(value)} />
      <Tile figure="waiting" label="waitingRequests" format={(value) => number(value)} warm />
      <Tile figure="hitRate" help="helpHitRate" format={percent} least={100} warm />
      <Tile figure="kvUse" format={percent} least={10} />
      <Tile figure="ttft" help="helpTtft" second="ttft95" format={duration} least={5} wide />
      <Tile figure="itl" help="helpItl" second="itl95" format={duration} least={1} wide />
    </div>
  );
}

interface TileProps {
  figure: Figure & TextKey | "waiting";
  label?: TextKey;
  help?: TextKey;
  /** A figure's p95. */
  second?: Figure;
  format: (value: number) => string;
  least?: number;
  wide?: boolean;
  warm?: boolean;
}

function Tile({ figure, label = figure, help, second, format, least = 1, wide = false, warm = false }: TileProps) {
  const now = age.value === "gone" ? undefined : history.value.at(-1);
  const [value, other] = [now?.[figure] ?? null, second ? (now?.[second] ?? null) : null];
  return (
    <div class={`tile${wide ? " wide" : ""}${warm ? " warm" : ""}`} data-figure={figure} title={help && t(help)}>
      <span class="tile-label">{t(label)}</span>
      <span class="tile-value">{value === null ? "–" : format(value)}</span>
      {second && <span class="tile-second">p95 {other === null ? "–" : format(other)}</span>}
      <Spark figure={figure} {...(second ? { second } : {})} format={format} label={t(label)} least={least} />
    </div>
  );
}
