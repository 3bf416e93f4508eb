/** Icons, drawn with lines. */

const PATHS = {
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14M20 20l-4-4",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  again: "M20 11a8 8 0 1 0-.8 5M20 4v7h-7",
  edit: "M4 20l1-4L16 5l3 3L8 19z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M6 9l6 6 6-6",
  close: "M6 6l12 12M18 6L6 18",
  menu: "M4 7h16M4 12h16M4 17h16",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 5.5v5M9 13.5v5",
  pulse: "M3 12h4l3-7 4 14 3-7h4",
  chat: "M4 5h16v11H10l-5 4v-4H4z",
  tree: "M4 12h5c4 0 3-7 8-7h3M9 12h11M9 12c4 0 3 7 8 7h3",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.5 1.5M17.5 17.5L19 19M19 5l-1.5 1.5M6.5 17.5L5 19",
  moon: "M20 14.5A8 8 0 0 1 9.5 4 8 8 0 1 0 20 14.5z",
  key: "M8 11a4 4 0 1 0 0 8 4 4 0 0 0 0-8M11 12l8-8M16 7l3 3",
  save: "M12 4v11M7 10l5 5 5-5M5 20h14",
  open: "M12 15V4M7 9l5-5 5 5M5 20h14",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
  tool: "M14 6a4 4 0 0 1 5-1l-3 3 2 2 3-3a4 4 0 0 1-5 5l-8 8-3-3 8-8a4 4 0 0 1 1-3z",
  thought: "M12 4a7 6 0 0 0-4 11v4l4-3a7 6 0 1 0 0-12z",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name, size = 18 }: { name: IconName; size?: number }) {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}

/** The mark: a root that forks. */
export function Mark({ size = 28 }: { size?: number }) {
  return (
    <svg class="mark" width={size} height={size} viewBox="0 0 32 32" aria-hidden="true" focusable="false">
      <path class="mark-root" d="M3 16h8c6 0 5-9 11-9h5M11 16h16M11 16c6 0 5 9 11 9h5" />
      <circle class="mark-node" cx="11" cy="16" r="3" />
      <circle class="mark-tip" cx="27" cy="7" r="2.2" />
      <circle class="mark-node" cx="27" cy="16" r="2.2" />
      <circle class="mark-node" cx="27" cy="25" r="2.2" />
    </svg>
  );
}
