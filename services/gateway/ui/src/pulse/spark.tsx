/**
 * The last ten minutes of one or two figures as lines.
 *
 * Three hundred points every two seconds are nothing for SVG; a chart library would weigh more than the chat.
 */

import { useSignal } from "@preact/signals";
import { t } from "../text";
import { SPAN_S, history, type Figure, type Sample } from "./history";

const WIDTH = 300;
const HEIGHT = 40;
/** A longer silence is a gap in the line, in seconds. */
const GAP_S = 8;
const LEAST_SPAN_S = 60;

interface SparkProps {
  figure: Figure;
  second?: Figure;
  format: (value: number) => string;
  label: string;
  least: number;
}

export function Spark({ figure, second, format, label, least }: SparkProps) {
  const pointed = useSignal<Sample | null>(null);
  const samples = history.value;
  const now = samples.at(-1)?.at ?? 0;
  const top = Math.max(least, ...samples.map((sample) => Math.max(sample[figure] ?? 0, second ? (sample[second] ?? 0) : 0))) * 1.08;
  // A page just opened shows its first minute in full width, and grows to ten.
  const span = Math.min(SPAN_S, Math.max(LEAST_SPAN_S, now - (samples[0]?.at ?? now)));
  const x = (at: number): number => WIDTH * (1 - (now - at) / span);
  const y = (value: number): number => HEIGHT - 1 - (HEIGHT - 3) * (value / top);
  const onMove = (event: PointerEvent & { currentTarget: SVGSVGElement }): void => {
    const { left, width } = event.currentTarget.getBoundingClientRect();
    const at = now - span * (1 - (event.clientX - left) / width);
    const nearest = samples.reduce<Sample | null>(
      (best, one) => (!best || Math.abs(one.at - at) < Math.abs(best.at - at) ? one : best), null,
    );
    pointed.value = nearest && Math.abs(nearest.at - at) < 20 ? nearest : null;
  };
  const told = pointed.value;
  const value = told?.[figure];
  const other = second && told?.[second];
  return (
    <div class="spark">
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={`${label}, ${t("lastMinutes", { count: Math.ceil(span / 60) })}`}
        onPointerMove={onMove} onPointerLeave={() => (pointed.value = null)}>
        <path class="spark-area" d={area(samples, figure, x, y)} />
        {second && <path class="spark-second" d={line(samples, second, x, y)} />}
        <path class="spark-line" d={line(samples, figure, x, y)} />
        {told && <path class="spark-cursor" d={`M${x(told.at).toFixed(1)} 0V${HEIGHT}`} />}
      </svg>
      {told && (
        <span class="spark-value">
          {new Date(told.at * 1000).toLocaleTimeString([], { hour12: false })} · {value == null ? "–" : format(value)}
          {other != null && ` · p95 ${format(other)}`}
        </span>
      )}
    </div>
  );
}

type Scale = (value: number) => number;

function runs(samples: Sample[], figure: Figure): Sample[][] {
  const found: Sample[][] = [];
  let before: Sample | undefined;
  for (const sample of samples) {
    if (sample[figure] === null) before = undefined;
    else {
      if (before && sample.at - before.at < GAP_S) found.at(-1)!.push(sample);
      else found.push([sample]);
      before = sample;
    }
  }
  return found;
}

const points = (run: Sample[], figure: Figure, x: Scale, y: Scale): string =>
  run.map((sample) => `${x(sample.at).toFixed(1)} ${y(sample[figure] as number).toFixed(1)}`).join("L");

const line = (samples: Sample[], figure: Figure, x: Scale, y: Scale): string =>
  runs(samples, figure).map((run) => `M${points(run, figure, x, y)}`).join("");

const area = (samples: Sample[], figure: Figure, x: Scale, y: Scale): string =>
  runs(samples, figure)
    .map((run) => `M${x(run[0]!.at).toFixed(1)} ${HEIGHT}L${points(run, figure, x, y)}L${x(run.at(-1)!.at).toFixed(1)} ${HEIGHT}Z`)
    .join("");
