/** The page's words, in the reader's language. */

import { computed, effect, signal } from "@preact/signals";
import { stored } from "../settings/stored";
import { english } from "./english";
import { chinese } from "./chinese";

export type Language = "en" | "zh";
export type TextKey = keyof typeof english;

const guess: Language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
export const language = stored<Language>("language", guess);
const words = computed(() => (language.value === "zh" ? chinese : english));

effect(() => {
  document.documentElement.lang = language.value === "zh" ? "zh-Hans" : "en";
});

/** A text, with its `{places}` filled in; `{count:token|tokens}` is the word for one, or for any other number. */
export function t(key: TextKey, places: Record<string, string | number> = {}): string {
  return words.value[key].replace(/\{(\w+)(?::([^|}]*)\|([^}]*))?\}/g, (_, name: string, one?: string, other?: string) => {
    const value = String(places[name] ?? "");
    return one === undefined ? value : value === "1" ? one : other!;
  });
}

const formats = new Map<string, Intl.NumberFormat>();

/** A number as people of this language write it. */
export function number(value: number, digits = 0): string {
  const name = `${language.value}${digits}`;
  let format = formats.get(name);
  if (!format) {
    format = new Intl.NumberFormat(language.value === "zh" ? "zh-CN" : "en", { maximumFractionDigits: digits });
    formats.set(name, format);
  }
  return format.format(value);
}

/** Milliseconds with as many digits as say something. */
export function duration(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds >= 60) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (ms >= 1000) return `${number(ms / 1000, ms < 10_000 ? 2 : 1)} s`;
  return `${number(ms, ms < 10 ? 1 : 0)} ms`;
}

/** A count in few characters: 12,345 is 12.3k. */
export function short(value: number): string {
  if (value >= 1e9) return `${number(value / 1e9, 1)}B`;
  if (value >= 1e6) return `${number(value / 1e6, 1)}M`;
  if (value >= 1e4) return `${number(value / 1e3, 1)}k`;
  return number(value, value < 10 ? 1 : 0);
}

export const clockTime = signal((seconds: number): string =>
  new Date(seconds * 1000).toLocaleTimeString(language.value === "zh" ? "zh-CN" : "en", { hour12: false }),
);
