// The calls of the server.

import { eventsOf } from "./events.js";
import { keptByTab } from "./store.js";

const KEY = "nvlm-trt-key";

/** What the server refused, or why it could not be asked. */
export class Refusal extends Error {
  constructor(message, { status = 0, code = null, requestId = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }
}

export class Server {
  #askForKey;
  #asking = null;

  /** `askForKey(why)` gives a key, or null where the user has none. */
  constructor(askForKey) {
    this.#askForKey = askForKey;
  }

  /** Whether requests carry a key. */
  get hasKey() {
    return keptByTab.get(KEY) !== null;
  }

  async limits() {
    return (await this.#call("/v1/limits", {})).json();
  }

  async tiles(body, signal) {
    return (await this.#call("/v1/tiles", { method: "POST", body, signal })).json();
  }

  /** The answer's parts, as they come: `{text}`, `{reason}` and `{usage}`. */
  async *answer(body, signal) {
    const response = await this.#call("/v1/chat/completions", { method: "POST", body, signal });
    const requestId = response.headers.get("X-Request-ID");
    let isWhole = false;
    try {
      for await (const data of eventsOf(response.body)) {
        isWhole = data === "[DONE]";
        if (isWhole) continue; // the request ends with its body, and not before: a key may allow one at a time
        const event = JSON.parse(data);
        if (event.error) throw new Refusal(event.error.message, { code: event.error.code, requestId });
        if (event.usage) yield { usage: event.usage };
        for (const choice of event.choices) {
          if (choice.delta.content) yield { text: choice.delta.content };
          if (choice.finish_reason) yield { reason: choice.finish_reason };
        }
      }
    } catch (error) {
      if (error instanceof Refusal || error.name === "AbortError") throw error;
      throw new Refusal("The connection broke off.", { requestId });
    }
    if (!isWhole) throw new Refusal("The answer broke off.", { requestId });
  }

  async #call(path, options) {
    const key = keptByTab.get(KEY);
    const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
    if (options.body) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The server cannot be reached.");
    }
    if (response.ok) return response;
    const refusal = await refusalOf(response);
    if (response.status !== 401) throw refusal;
    if (key === keptByTab.get(KEY) && !(await this.#newKey(key === null ? null : refusal.message))) throw refusal;
    return this.#call(path, options);
  }

  /** Ask for a key once, however many calls wait for it; whether there is one. */
  #newKey(why) {
    this.#asking ??= this.#askForKey(why).then((key) => {
      this.#asking = null;
      if (key === null) return false;
      keptByTab.set(KEY, key);
      return true;
    });
    return this.#asking;
  }
}

async function refusalOf(response) {
  const facts = {
    status: response.status,
    requestId: response.headers.get("X-Request-ID"),
    retryAfter: response.headers.get("Retry-After"),
  };
  try {
    const { error } = await response.json();
    return new Refusal(error.message, { ...facts, code: error.code });
  } catch {
    return new Refusal(`The server answered ${response.status}.`, facts);
  }
}
