/** Dark or light. */

import { effect } from "@preact/signals";
import { stored } from "./stored";

export type Theme = "dark" | "light";
export const theme = stored<Theme>("theme", "dark");

effect(() => {
  document.documentElement.dataset.theme = theme.value;
  document
    .querySelector('meta[name="theme-color"]')
    ?.setAttribute("content", theme.value === "dark" ? "#0a0f0d" : "#f6f8f5");
});
