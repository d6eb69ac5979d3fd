// Requests to the kvpsi that served the page.
//
// Owns the API key, which lives as long as the tab (sessionStorage), and what a
// refusal says. Out of scope: what is asked for.

const KEY = "kvpsi-api-key";
/** The message when the server does not answer. */
export const NONE = "no answer";

/** An answer that is not 2xx, or none at all (status 0). */
export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export function setKey(key) {
  // What a header cannot carry would make fetch itself fail, with no word on why.
  if (!/^[\x21-\x7e]+$/.test(key)) {
    throw new Refused(0, "A key is made of letters, digits and signs, without spaces.");
  }
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

function headers(more) {
  const key = sessionStorage.getItem(KEY);
  return key === null ? more : { ...more, Authorization: `Bearer ${key}` };
}

/** What an error body says, in OpenAI's shape or not. */
async function refusal(response) {
  let message = `${response.status} ${response.statusText}`.trim();
  try {
    const body = await response.json();
    if (typeof body?.error?.message === "string") message = body.error.message;
  } catch {
    // The status is all there is.
  }
  return new Refused(response.status, message, response.headers.get("Retry-After"));
}

/** A response that is 2xx; else throws Refused, or AbortError when aborted. */
export async function ask(path, { body, signal } = {}) {
  const post = body !== undefined;
  let response;
  try {
    response = await fetch(path, {
      method: post ? "POST" : "GET",
      headers: headers(post ? { "Content-Type": "application/json" } : {}),
      body: post ? JSON.stringify(body) : undefined,
      cache: "no-store",
      signal,
    });
  } catch (e) {
    if (e.name === "AbortError" || e.name === "TimeoutError") throw e;
    throw new Refused(0, NONE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** JSON at `path`. Times out after `ms`. */
export async function json(path, { body, ms = 5000 } = {}) {
  try {
    const response = await ask(path, { body, signal: AbortSignal.timeout(ms) });
    return await response.json();
  } catch (e) {
    if (e instanceof Refused) throw e;
    throw new Refused(0, e.name === "TimeoutError" ? `no answer in ${ms / 1000} s` : "a broken answer");
  }
}
