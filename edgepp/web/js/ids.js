// Ids of conversations and messages. crypto.randomUUID is missing where the page comes over plain HTTP from a LAN.

/** 128 random bits in 22 letters, digits, - and _. */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
