/** What the gateway's host does. */

import { number, t } from "../text";
import { figures } from "./poll";

export function Rings() {
  const now = figures.value;
  const memory = now?.memory;
  const gpu = now?.gpu;
  const gpuMemory = gpu && gpu.memory_used_mb !== null && gpu.memory_total_mb !== null ? `${gib(gpu.memory_used_mb)} / ${gib(gpu.memory_total_mb)} GiB` : gpu?.name;
  return (
    <div class="rings">
      <Ring label={t("cpu")} percent={now?.cpu.utilization_percent ?? null} note={now ? t("cores", { count: now.cpu.core_count }) : ""} />
      <Ring label={t("memory")} percent={memory?.utilization_percent ?? null} note={memory ? `${gib(memory.used_mb)} / ${gib(memory.total_mb)} GiB` : ""} />
      <Ring label={t("gpu")} percent={gpu?.utilization_percent ?? null} absent={now !== null && !gpu} note={gpuMemory ?? (now ? t("noGpu") : "")} />
    </div>
  );
}

const gib = (mib: number): string => number(mib / 1024, mib < 10240 ? 1 : 0);

function Ring({ label, percent, note, absent = false }: { label: string; percent: number | null; note: string; absent?: boolean }) {
  const text = percent === null ? "–" : `${Math.round(percent)}`;
  const heat = percent !== null && percent >= 90 ? " hot" : "";
  const spoken = percent !== null ? `${text} %` : absent ? "" : t("unknown");
  return (
    <div class={`ring${heat}`} role="img" aria-label={[label, spoken, note].filter(Boolean).join(" ")}>
      <svg viewBox="0 0 64 64" aria-hidden="true">
        <circle class="ring-track" cx="32" cy="32" r="27" pathLength="100" />
        <circle class="ring-value" cx="32" cy="32" r="27" pathLength="100" style={{ strokeDashoffset: String(100 - (percent ?? 0)) }} />
        <text x="32" y="32">{text}</text>
      </svg>
      <b>{label}</b>
      <small>{note}</small>
    </div>
  );
}
