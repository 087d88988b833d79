// Server-sent events of a response body.

import { giveWay } from "../frames.js";

/**
 * The data of each event, as text; a comment, by which the server keeps the connection alive, is `null`.
 * Ends with the body.
 */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        await giveWay(); // thousands of events may come in one piece
        if (line.startsWith("data:")) yield line.slice(5).trim();
        else if (line.startsWith(":")) yield null;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
