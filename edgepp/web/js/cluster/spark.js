// Tokens per second over the last minutes, as a line without axes: its last and its highest value are written.

import { svg } from "../dom.js";

const WIDTH = 300;
const HEIGHT = 48;

/** { element, update(rates) }; `small` is a line alone. */
export function sparkView({ small = false } = {}) {
  const area = svg("path", { class: "spark-area" });
  const line = svg("path", { class: "spark-line" });
  const dot = svg("circle", { class: "spark-dot", r: small ? 2 : 3 });
  const element = svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: small ? "none" : "xMidYMid meet", role: "img" }, area, line, !small && dot);
  return { element, update: (rates) => show(rates) };

  function show(rates) {
    const values = [...Array(90).fill(0), ...rates.history].slice(-90).concat(rates.tokens_per_s); // nothing before it began
    const most = Math.max(1, ...values);
    const x = (at) => 4 + ((WIDTH - 8) * (at + 90 - (values.length - 1))) / 90;
    const y = (value) => HEIGHT - 4 - ((HEIGHT - 10) * value) / most;
    const points = values.map((value, at) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`);
    line.setAttribute("d", `M${points.join("L")}`);
    area.setAttribute("d", `M${x(0).toFixed(1)} ${HEIGHT - 4}L${points.join("L")}L${x(values.length - 1).toFixed(1)} ${HEIGHT - 4}Z`);
    dot.setAttribute("cx", x(values.length - 1));
    dot.setAttribute("cy", y(values.at(-1)));
    element.setAttribute("aria-label", `${values.at(-1).toFixed(1)} tokens per second now, ${most.toFixed(1)} at most in the last three minutes`);
  }
}
