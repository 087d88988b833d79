// The main thread is shared: work for the screen gets BUDGET_MS of each frame together, and what only computes gives way.

const BUDGET_MS = 10;
const TURN_MS = 8;

const due = new Set();
const waiting = [];
const channel = new MessageChannel();
let isAsked = false;
let turnedMs = 0;

channel.port1.onmessage = () => waiting.shift()();

/** Call `work(until)` in the next frame that has time for it, until `until` ms at best; the newest work comes first. */
export function inFrame(work) {
  due.delete(work);
  due.add(work);
  if (isAsked) return;
  isAsked = true;
  requestAnimationFrame(frame);
}

/** Forget `work`, if it is still to be done. */
export function notInFrame(work) {
  due.delete(work);
}

function frame() {
  const until = performance.now() + BUDGET_MS;
  while (due.size && performance.now() < until) {
    const newest = [...due].at(-1);
    due.delete(newest);
    newest(until);
  }
  isAsked = due.size > 0;
  if (isAsked) requestAnimationFrame(frame);
}

/**
 * Resolves at once, or in a task of its own where the last one was TURN_MS ago: a loop that awaits it holds up neither
 * keys nor frames, and is not slowed down in a tab that is hidden.
 */
export async function giveWay() {
  if (performance.now() - turnedMs < TURN_MS) return;
  await new Promise((resolve) => {
    waiting.push(resolve);
    channel.port2.postMessage(0);
  });
  turnedMs = performance.now();
}
