// Requests to this server, with the API key if there is one, and errors that a person can read.

import { forgetKey, key, wantKey } from "./api_key.js";

/** A request that failed. `status` is 0 where no response came. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfterS = null, loading = null } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, retryAfterS, loading });
  }
}

/**
 * The response to a request below the page's own address; an ApiError unless its status is 2xx.
 * Where the server demands a key, the reader is asked for one and the request is sent again.
 */
export async function request(path, options = {}) {
  const response = await sent(path, options);
  if (response.status !== 401) return checked(response);
  const { code } = await failure(response);
  const refused = new ApiError(key() ? "The server does not accept this API key." : "This server asks for an API key.", { status: 401, code });
  if (key()) forgetKey();
  if (options.silent || !(await wantKey(refused.message, options.method === "POST"))) throw refused;
  return request(path, options);
}

/** The JSON of a GET; `{ silent: true }` does not ask for a key. */
export async function getJson(path, options = {}) {
  return (await request(path, options)).json();
}

/** The JSON of a POST with a JSON body. */
export async function postJson(path, body, options = {}) {
  return (await post(path, body, options)).json();
}

/** The response to a POST with a JSON body, for a caller that reads a stream. */
export function post(path, body, options = {}) {
  const headers = { "content-type": "application/json", ...options.headers };
  return request(path, { method: "POST", body: JSON.stringify(body), ...options, headers });
}

async function sent(path, { headers, silent: _, ...options }) {
  const secret = key();
  const authorization = secret ? { authorization: `Bearer ${secret}` } : {};
  const url = new URL(path, document.baseURI.split("#")[0]);
  try {
    return await fetch(url, { ...options, headers: { ...headers, ...authorization }, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is `edgepp serve` running?");
  }
}

async function checked(response) {
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    body = null; // an error of a proxy, in HTML
  }
  return errorOf(body, response.status, Number(response.headers.get("retry-after")) || null);
}

/** An error as the API writes it, in a response or in a stream. */
export function errorOf(body, status = 200, retryAfterS = null) {
  const told = body?.error ?? null;
  const message = typeof told === "string" ? told : told?.message ?? `The server answered with status ${status}.`;
  return new ApiError(message, { status, code: told?.code ?? null, retryAfterS, loading: body?.loading ?? null });
}
