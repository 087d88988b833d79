// Numbers and times as people write them.

const WHOLE = new Intl.NumberFormat("en");

/** 1234567 as 1,234,567. */
export function whole(number) {
  return WHOLE.format(Math.round(number));
}

/** The last part of a model's name, which may be a folder or a repository. */
export function shortName(model) {
  return model.split("/").filter(Boolean).at(-1) ?? model;
}

/** 134515008 as 135M, 8030261248 as 8.0B. */
export function size(count) {
  return count >= 1e9 ? `${(count / 1e9).toFixed(1)}B` : `${Math.round(count / 1e6)}M`;
}

/** A rate or a ratio with three digits at most. */
export function rate(value) {
  return value >= 100 ? whole(value) : value.toFixed(1);
}

/** Seconds as 0.42 s, 12 s, 3 min. */
export function seconds(value) {
  if (value < 10) return `${value.toFixed(2)} s`;
  return value < 120 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;
}

/** "1 token", "2 tokens". */
export function counted(number, one, many = `${one}s`) {
  return `${whole(number)} ${number === 1 ? one : many}`;
}

const DAY_MS = 86_400_000;

/** The heading under which a list shows what was changed at `time`, in milliseconds. */
export function period(time, now = Date.now()) {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY_MS) return "Yesterday";
  if (time >= midnight - 7 * DAY_MS) return "Last 7 days";
  if (time >= midnight - 30 * DAY_MS) return "Last 30 days";
  return new Intl.DateTimeFormat("en", { month: "long", year: "numeric" }).format(time);
}
