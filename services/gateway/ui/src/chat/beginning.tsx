/** Before the first question: what could be asked of the model that is served. */

import { keyNeeded } from "../api/client";
import { isBundled, model } from "../api/models";
import { Mark } from "../shell/icons";
import { language, short, t } from "../text";
import { loaded } from "./store";
import { ask } from "./talk";

const OF_BUNDLED = [
  ["What is the capital of France?", "capitals"],
  ["What is 7 + 5?", "sums"],
  ['Spell the word "banana".', "spelling"],
  ["What is the opposite of hot?", "opposites"],
  ["What colour is the sky?", "colours"],
  ["你好", "greetings"],
] as const;

const OF_ANY = {
  en: [
    ["Explain radix trees with a small drawing in a code block.", ""],
    ["Write a Python function that merges two sorted lists, with tests.", ""],
    ["Compare TCP and UDP in a table.", ""],
    ["Derive the quadratic formula.", ""],
  ],
  zh: [
    ["用一个小图解释基数树。", ""],
    ["写一个合并两个有序列表的 Python 函数，并附上测试。", ""],
    ["用表格比较 TCP 和 UDP。", ""],
    ["推导一元二次方程的求根公式。", ""],
  ],
} as const;

export function Beginning() {
  const suggestions = isBundled.value ? OF_BUNDLED : OF_ANY[language.value];
  const served = model.value;
  return (
    <div class="beginning">
      <Mark size={76} />
      <h2>{isBundled.value ? t("beginBundled") : t("begin")}</h2>
      <p>
        {isBundled.value
          ? t("aboutBundled")
          : served
            ? t("aboutModel", { model: served.id, parameters: short(served.parameters), context: short(served.max_model_len) })
            : keyNeeded.value ? t("errorNoKey") : t("noModelYet")}
      </p>
      <div class="suggestions">
        {suggestions.map(([text, skill]) => (
          <button type="button" key={text} onClick={() => ask(text)} disabled={!served || !loaded.value}>
            <span lang={/\p{Script=Han}/u.test(text) ? "zh" : "en"}>{text}</span>
            {skill && <small>{t(skill)}</small>}
          </button>
        ))}
      </div>
    </div>
  );
}
