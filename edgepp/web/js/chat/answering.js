// Asking the model: one stream per answer, which goes on while the reader looks at something else.

import { ApiError, errorOf, post } from "../api.js";
import { healthOf } from "../server_state.js";
import { server } from "../state.js";
import { counted, rate, seconds } from "../words.js";
import { eventsOf } from "./sse.js";
import { changed } from "./library.js";
import * as store from "./store.js";

const SAVE_MS = 1000;
const TITLE_CHARACTERS = 60;
const running = new Map(); // by conversation: AbortController

/** Whether an answer of `thread` is being written in this tab. */
export function isAnswering(thread) {
  return running.has(thread.conversation.id);
}

/** Stop the answer of `thread`. */
export function stop(thread) {
  running.get(thread.conversation.id)?.abort();
}

/** Ask `text` below the message `parent`, and have it answered. */
export function ask(thread, parent, text) {
  const question = thread.add(parent, { role: "user", text });
  if (!thread.conversation.titled && thread.path()[0] === question) {
    thread.conversation.title = titleOf(text);
    thread.save();
  }
  changed(thread);
  return answer(thread, question);
}

/** Have the message `question` answered, once more if it is already. */
export function answer(thread, question) {
  const message = thread.add(question.id, { role: "assistant", reasoning: "", state: "writing", saved: Date.now() });
  return write(thread, message, thread.before(question), false);
}

/** Have an answer that was stopped, or has reached its length, go on. */
export function goOn(thread, message) {
  Object.assign(message, { state: "writing", error: null, finish: null, saved: Date.now() });
  return write(thread, message, thread.before(message), true);
}

async function write(thread, message, before, continues) {
  stop(thread);
  const controller = new AbortController();
  const id = thread.conversation.id;
  running.set(id, controller);
  const live = { note: "", began: performance.now(), firstMs: null, savedMs: performance.now() };
  thread.live.set(message.id, live);
  thread.tell(true, message);
  try {
    await streamed(thread, message, bodyOf(thread, before, continues), live, controller.signal);
    message.state = "done";
  } catch (error) {
    message.state = controller.signal.aborted ? "stopped" : "failed";
    message.error = controller.signal.aborted ? null : { text: error.message, code: error.code ?? null };
  } finally {
    if (running.get(id) === controller) running.delete(id);
    thread.live.delete(message.id);
    message.stats ??= live.firstMs === null ? null : { firstMs: live.firstMs };
    thread.conversation.updated = Date.now();
    await store.putMessage(message);
    thread.save();
    changed(thread);
    thread.tell(true, message);
  }
}

function bodyOf(thread, before, continues) {
  const { system, temperature, topP, maxTokens, seed, model } = thread.conversation.settings;
  const told = before.map(({ role, text }) => ({ role, content: text }));
  const { models } = server.get();
  const body = { messages: system.trim() ? [{ role: "system", content: system }, ...told] : told, stream: true, stream_options: { include_usage: true } };
  const chosen = models.find(({ id }) => id === model) ?? models[0];
  const options = { model: chosen?.id, temperature, top_p: topP, max_tokens: maxTokens, seed, continue_final_message: continues || null };
  for (const [name, value] of Object.entries(options)) if (value !== null && value !== undefined) body[name] = value;
  return body;
}

/** Read the stream into `message`; while the model loads, ask again when the server says. */
async function streamed(thread, message, body, live, signal) {
  while (true) {
    try {
      const response = await post("v1/chat/completions", body, { signal });
      for await (const data of eventsOf(response.body)) await take(thread, message, data, live);
      if (!message.finish) throw new ApiError("The connection was lost before the answer was whole.");
      return;
    } catch (error) {
      if (error.name !== "ApiError" && !signal.aborted) throw new ApiError("The connection was lost before the answer was whole.");
      if (error.code !== "model_loading" || signal.aborted || message.text) throw error;
      live.note = loadingNote(error.loading);
      thread.tell(false, message);
      await paused((error.retryAfterS ?? 2) * 1000, signal);
    }
  }
}

async function take(thread, message, data, live) {
  if (data === null) return keptAlive(thread, message, live);
  if (data === "[DONE]") return undefined;
  const chunk = JSON.parse(data);
  if (chunk.error) throw errorOf(chunk);
  message.model ??= chunk.model;
  if (chunk.timings) message.stats = statsOf(chunk.timings, live);
  const choice = chunk.choices?.[0];
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  const { content, reasoning_content: reasoning } = choice?.delta ?? {};
  if (!content && !reasoning) return undefined;
  live.firstMs ??= performance.now() - live.began;
  live.note = "";
  message.text += content ?? "";
  message.reasoning += reasoning ?? "";
  if (performance.now() - live.savedMs > SAVE_MS) {
    live.savedMs = performance.now();
    message.saved = Date.now();
    store.putMessage(message);
  }
  return thread.tell(false, message);
}

/** Nothing has come for some seconds: say why, as far as the server tells. */
async function keptAlive(thread, message, live) {
  const health = await healthOf();
  const isWhole = !health || health.status === "ok";
  if (isWhole) live.note = message.text ? "The next words take longer than usual." : "The prompt is being read.";
  else live.note = message.text ? "A node was lost. Its layers are placed again, then the answer goes on by itself." : loadingNote(health.loading);
  thread.tell(false, message);
}

function loadingNote(loading) {
  const part = loading?.progress > 0 && loading.progress < 1 ? `, ${Math.round(100 * loading.progress)} %` : "";
  const left = loading?.eta_seconds ? `, about ${seconds(loading.eta_seconds)} left` : "";
  return `The model is not ready yet (${loading?.state ?? "loading"}${part}${left}). The question waits.`;
}

function statsOf(timings, live) {
  return {
    tokens: timings.predicted_n,
    perSecond: timings.predicted_per_second,
    promptTokens: timings.prompt_n + timings.cache_n,
    cachedTokens: timings.cache_n,
    firstMs: live.firstMs,
    recoveries: timings.recoveries ?? [],
  };
}

/** The figures under an answer, as a list of short texts. */
export function figuresOf({ tokens, perSecond, firstMs, recoveries }) {
  const found = [];
  if (tokens) found.push(counted(tokens, "token"));
  if (perSecond) found.push(`${rate(perSecond)} tokens/s`);
  if (firstMs !== null && firstMs !== undefined) found.push(`first after ${seconds(firstMs / 1000)}`);
  for (const { pause_ms: pauseMs } of recoveries ?? []) found.push(`survived a lost node, pause of ${seconds(pauseMs / 1000)}`);
  return found;
}

function titleOf(text) {
  const line = text.trim().split("\n")[0].trim();
  return line.length <= TITLE_CHARACTERS ? line : `${line.slice(0, TITLE_CHARACTERS).replace(/\s+\S*$/, "")}…`;
}

function paused(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(new DOMException("stopped", "AbortError"))), { once: true });
  });
}
