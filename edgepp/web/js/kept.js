// Small settings in localStorage, or in sessionStorage; forbidden or full storage keeps nothing and breaks nothing.

const PREFIX = "edgepp.";

/** The kept value of `name`, or null. */
export function kept(name, storage = "localStorage") {
  try {
    return window[storage].getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/** Keep `value`, a string, or forget `name` if it is null. Returns whether the browser has kept it. */
export function keep(name, value, storage = "localStorage") {
  try {
    if (value === null) window[storage].removeItem(PREFIX + name);
    else window[storage].setItem(PREFIX + name, value);
    return true;
  } catch {
    return false;
  }
}

/** The kept JSON value of `name`, or `otherwise` where there is none or it is damaged. */
export function keptJson(name, otherwise) {
  const text = kept(name);
  if (text === null) return otherwise;
  try {
    return JSON.parse(text);
  } catch {
    return otherwise;
  }
}
