/** Model, prompts, sampling, form of the answer and key, in one sheet. */

import { useSignal } from "@preact/signals";
import { apiKey, keyRemembered, setKey } from "../api/key";
import { keyNeeded, keyRefused, keyWanted } from "../api/client";
import { model, models, refreshModels } from "../api/models";
import { Sheet } from "../shell/controls";
import { settingsOpen } from "../shell/view";
import { number, t, type TextKey } from "../text";
import {
  COMMON, FURTHER, answerSchema, choose, chosen, chosenModel, systemPrompt, tools, type NumberSetting, type Setting,
} from "./sampling";

const EXAMPLE_SCHEMA = `{
  "type": "object",
  "properties": {
    "city": {"type": "string"},
    "population": {"type": "integer"}
  },
  "required": ["city", "population"],
  "additionalProperties": false
}`;
const EXAMPLE_TOOLS = `[{
  "type": "function",
  "function": {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {
      "type": "object",
      "properties": {"city": {"type": "string"}},
      "required": ["city"]
    }
  }
}]`;

export function SettingsSheet() {
  return (
    <Sheet open={settingsOpen.value} title={t("settings")} onClose={() => (settingsOpen.value = false)} class="settings">
      <label class="field">
        <span>{t("model")}</span>
        <ModelSelect />
      </label>
      <Area label="systemPrompt" help="helpSystem" value={systemPrompt.value} onInput={(text) => (systemPrompt.value = text)} rows={3} />
      <fieldset>
        <legend>{t("sampling")}</legend>
        {COMMON.map((setting) => <SettingField key={setting.name} setting={setting} />)}
        <details>
          <summary>{t("further")}</summary>
          {FURTHER.map((setting) => <SettingField key={setting.name} setting={setting} />)}
        </details>
        <button type="button" class="quiet" disabled={!Object.keys(chosen.value).length} onClick={() => (chosen.value = {})}>{t("reset")}</button>
      </fieldset>
      <fieldset>
        <legend>{t("output")}</legend>
        <Area label="schema" help="helpSchema" value={answerSchema.value} onInput={(text) => (answerSchema.value = text)} rows={5} example={EXAMPLE_SCHEMA} json />
        <Area label="tools" help="helpTools" value={tools.value} onInput={(text) => (tools.value = text)} rows={5} example={EXAMPLE_TOOLS} json />
      </fieldset>
      <KeyForm />
    </Sheet>
  );
}

export function ModelSelect() {
  return (
    <select aria-label={t("model")} value={model.value?.id ?? ""} onChange={(event) => (chosenModel.value = event.currentTarget.value)} disabled={!models.value.length}>
      {models.value.map(({ id }) => <option key={id} value={id}>{id}</option>)}
      {!models.value.length && <option value="">{keyNeeded.value ? t("keyMissing") : t("noModel")}</option>}
    </select>
  );
}

function SettingField({ setting }: { setting: Setting }) {
  const { name, kind } = setting;
  const text = chosen.value[name] ?? "";
  const fallback = model.value?.default_sampling[name];
  const placeholder = fallback === undefined ? t("modelDefault") : number(fallback, 3);
  const set = (value: string): void => choose(name, value);
  return (
    <div class="field">
      <label for={`setting-${name}`}><code>{name}</code></label>
      {kind === "flag" ? (
        <select id={`setting-${name}`} value={text} onChange={(event) => set(event.currentTarget.value)}>
          <option value="">{t("modelDefault")}</option>
          <option value="true">true</option>
          <option value="false">false</option>
        </select>
      ) : kind === "number" || kind === "whole" ? (
        <NumberField setting={setting as NumberSetting} text={text} placeholder={placeholder} fallback={fallback} onInput={set} />
      ) : kind === "word" || kind === "tool" ? (
        <input id={`setting-${name}`} value={text} placeholder={placeholder} onInput={(event) => set(event.currentTarget.value)} />
      ) : (
        <textarea id={`setting-${name}`} rows={2} value={text} placeholder={placeholder} onInput={(event) => set(event.currentTarget.value)} />
      )}
      <small>{t(setting.help)}</small>
    </div>
  );
}

interface NumberFieldProps {
  setting: NumberSetting;
  text: string;
  placeholder: string;
  fallback: number | undefined;
  onInput: (text: string) => void;
}

function NumberField({ setting, text, placeholder, fallback, onInput }: NumberFieldProps) {
  const { name, least, most, step, slider } = setting;
  const limits = { min: least, max: most, step };
  return (
    <span class="number-field">
      {slider && (
        <input type="range" aria-label={name} {...limits} value={text || String(fallback ?? (least < 0 ? 0 : least))}
          class={text ? "" : "unset"} onInput={(event) => onInput(event.currentTarget.value)} />
      )}
      <input id={`setting-${name}`} type="number" inputMode="decimal" {...limits} step={slider ? "any" : 1} value={text} placeholder={placeholder}
        onInput={(event) => onInput(event.currentTarget.value)} />
    </span>
  );
}

interface AreaProps {
  label: TextKey;
  help: TextKey;
  value: string;
  rows: number;
  onInput: (text: string) => void;
  example?: string;
  json?: boolean;
}

function Area({ label, help, value, rows, onInput, example, json = false }: AreaProps) {
  let wrong = "";
  if (json && value.trim())
    try {
      JSON.parse(value);
    } catch (error) {
      wrong = error instanceof Error ? error.message : "";
    }
  return (
    <div class="field">
      <span class="row">
        <label for={`area-${label}`}>{t(label)}</label>
        {example && <button type="button" class="quiet small" onClick={() => onInput(value.trim() ? "" : example)}>{value.trim() ? t("clear") : t("example")}</button>}
      </span>
      <textarea id={`area-${label}`} class={json ? "mono" : undefined} rows={rows} value={value} spellcheck={false} aria-invalid={wrong !== ""}
        onInput={(event) => onInput(event.currentTarget.value)} />
      <small class={wrong ? "wrong" : undefined}>{wrong || t(help)}</small>
    </div>
  );
}

export function KeyForm() {
  const typed = useSignal(apiKey.value);
  const remember = useSignal(keyRemembered.value);
  const save = (event: Event): void => {
    event.preventDefault();
    setKey(typed.value, remember.value);
    keyRefused.value = false;
    // Whether it is taken is known when something was asked with it.
    void refreshModels().then(() => {
      if (!keyRefused.value) keyWanted.value = false;
    });
  };
  return (
    <form class="key-form" onSubmit={save}>
      <fieldset>
        <legend>{t("apiKey")}</legend>
        <label class="field">
          <span>{t("apiKey")}</span>
          <input type="password" autocomplete="off" value={typed.value} aria-invalid={keyRefused.value} placeholder="sk-…" onInput={(event) => (typed.value = event.currentTarget.value)} />
          <small>{t("helpKey")}</small>
        </label>
        {keyRefused.value && <p class="failure" role="alert">{t("errorKey")}</p>}
        <div class="row">
          <label class="check"><input type="checkbox" checked={remember.value} onChange={(event) => (remember.value = event.currentTarget.checked)} /> {t("remember")}</label>
          <button class="primary">{t("useKey")}</button>
        </div>
      </fieldset>
    </form>
  );
}
