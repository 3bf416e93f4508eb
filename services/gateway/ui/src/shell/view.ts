/** What is shown where. */

import { signal } from "@preact/signals";
import { stored } from "../settings/stored";

export type View = "chat" | "cache";
export const view = signal<View>("chat");
/** The parts beside the middle: on wide screens they stand there, on narrow ones they cover it. */
export const pulseShown = stored("pulse", true);
export const listShown = stored("list", true);
/** On narrow screens one part at a time. */
export const narrowPart = signal<"main" | "list" | "pulse">("main");
export const settingsOpen = signal(false);
