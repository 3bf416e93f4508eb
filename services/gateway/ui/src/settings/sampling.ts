/** Every setting of a request, as the API has them: one table for the form, its help and the request. */

import { t, type TextKey } from "../text";
import { stored } from "./stored";

export interface NumberSetting {
  name: string;
  kind: "number" | "whole";
  least: number;
  most: number;
  step: number;
  slider: boolean;
  help: TextKey;
}

export interface TextSetting {
  name: string;
  kind: "lines" | "numbers" | "biases" | "word" | "tool" | "flag";
  help: TextKey;
}

export type Setting = NumberSetting | TextSetting;

const slider = (name: string, least: number, most: number, step: number, help: TextKey): NumberSetting => ({
  name, kind: "number", least, most, step, slider: true, help,
});
const whole = (name: string, least: number, most: number, help: TextKey): NumberSetting => ({
  name, kind: "whole", least, most, step: 1, slider: false, help,
});

export const COMMON: Setting[] = [
  slider("temperature", 0, 2, 0.05, "helpTemperature"),
  slider("top_p", 0.01, 1, 0.01, "helpTopP"),
  whole("max_tokens", 1, 2 ** 31 - 1, "helpMaxTokens"),
];

export const FURTHER: Setting[] = [
  whole("top_k", -1, 2 ** 31 - 1, "helpTopK"),
  slider("min_p", 0, 1, 0.01, "helpMinP"),
  slider("repetition_penalty", 0.05, 3, 0.05, "helpRepetition"),
  slider("frequency_penalty", -2, 2, 0.1, "helpFrequency"),
  slider("presence_penalty", -2, 2, 0.1, "helpPresence"),
  whole("seed", -Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, "helpSeed"),
  whole("min_tokens", 0, 2 ** 31 - 1, "helpMinTokens"),
  { name: "stop", kind: "lines", help: "helpStop" },
  { name: "stop_token_ids", kind: "numbers", help: "helpStopIds" },
  { name: "logit_bias", kind: "biases", help: "helpBias" },
  { name: "reasoning_effort", kind: "word", help: "helpEffort" },
  { name: "cache_salt", kind: "word", help: "helpSalt" },
  { name: "ignore_eos", kind: "flag", help: "helpIgnoreEos" },
  { name: "include_stop_str_in_output", kind: "flag", help: "helpIncludeStop" },
  { name: "skip_special_tokens", kind: "flag", help: "helpSpecial" },
  { name: "tool_choice", kind: "tool", help: "helpToolChoice" },
  { name: "parallel_tool_calls", kind: "flag", help: "helpParallel" },
];
const OF_TOOLS = ["tool_choice", "parallel_tool_calls"];

/** What the user typed, by setting; an absent or empty one is left to the model. */
export const chosen = stored<Record<string, string>>("sampling", {});
export const systemPrompt = stored<string>("system", "");
/** A JSON schema that answers must follow; empty for free text. */
export const answerSchema = stored<string>("schema", "");
/** Tools in OpenAI's form, as a JSON list. */
export const tools = stored<string>("tools", "");
export const chosenModel = stored<string>("model", "");

export function choose(name: string, value: string): void {
  const { [name]: _, ...others } = chosen.value;
  chosen.value = value === "" ? others : { ...others, [name]: value };
}

/** A setting's value for the request. Raises SyntaxError for what cannot be meant. */
function valueOf(setting: Setting, text: string): unknown {
  switch (setting.kind) {
    case "number":
    case "whole": {
      const value = Number(text);
      if (!Number.isFinite(value) || (setting.kind === "whole" && !Number.isInteger(value)))
        throw new SyntaxError(`${setting.name}: ${text}`);
      return value;
    }
    case "lines":
      return text.split("\n").filter((line) => line !== "");
    case "numbers":
      return text.split(/[\s,]+/).filter(Boolean).map((part) => {
        if (!/^\d+$/.test(part)) throw new SyntaxError(`${setting.name}: ${part}`);
        return Number(part);
      });
    case "biases":
      return Object.fromEntries(
        text.split(/[\n,]+/).filter((part) => part.trim()).map((part) => {
          const match = /^\s*(\d+)\s*[:=]\s*(-?\d+(?:\.\d+)?)\s*$/.exec(part);
          if (!match) throw new SyntaxError(`${setting.name}: ${part}`);
          return [match[1], Number(match[2])];
        }),
      );
    case "word":
      return text;
    case "tool": {
      const word = text.trim();
      return /^(auto|none|required)$/.test(word) ? word : { type: "function", function: { name: word } };
    }
    case "flag":
      return text === "true";
  }
}

function parsed(name: TextKey, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(`${t(name)}: ${error instanceof Error ? error.message : ""}`);
  }
}

/** The fields of a request. Raises SyntaxError where something typed is not usable. */
export function samplingFields(): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  for (const setting of [...COMMON, ...FURTHER]) {
    const text = chosen.value[setting.name];
    if (text !== undefined && text.trim() !== "") fields[setting.name] = valueOf(setting, text);
  }
  if (answerSchema.value.trim()) {
    const schema = parsed("schema", answerSchema.value);
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  }
  if (tools.value.trim()) fields.tools = parsed("tools", tools.value);
  // The gateway refuses to hear of tools where there are none.
  else for (const name of OF_TOOLS) delete fields[name];
  return fields;
}
