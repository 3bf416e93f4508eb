/** What can be asked for. */

import { computed, signal } from "@preact/signals";
import { chosenModel } from "../settings/sampling";
import { readModels } from "./client";
import type { ModelEntry } from "./types";

/** Parameters of the model that comes with Rhizome; it may be served under any name. */
const BUNDLED_PARAMETERS = 3_049_728;

export const models = signal<ModelEntry[]>([]);
export const model = computed(() => models.value.find(({ id }) => id === chosenModel.value) ?? models.value[0] ?? null);
export const isBundled = computed(() => model.value?.parameters === BUNDLED_PARAMETERS);

export async function refreshModels(): Promise<void> {
  try {
    models.value = await readModels();
    // A model that was chosen once may not be served any more; the first one is shown then, and asked.
    if (models.value.length && !models.value.some(({ id }) => id === chosenModel.value)) chosenModel.value = "";
  } catch {
    // The pulse says that nobody answers; the list stays as it was.
  }
}
