// The settings of a request, kept by the browser.

import { byId, make, number } from "./dom.js";
import { kept } from "./store.js";

const NAME = "nvlm-trt-settings";
const NUMBERS = ["max_completion_tokens", "temperature", "seed", "max_tiles"];
const NAMES = [...NUMBERS, "system"];

export class Settings {
  /** `changed()` is called when one of them was changed. */
  constructor(limits, changed) {
    const longest = byId("max_completion_tokens");
    longest.max = limits.max_answer_tokens;
    longest.placeholder = number(limits.default_answer_tokens);
    const tiles = byId("max_tiles");
    tiles.append(make("option", { value: "", textContent: `${limits.max_tiles} (the server's)` }));
    for (let count = 1; count < limits.max_tiles; count += 1) {
      tiles.append(make("option", { value: count, textContent: count }));
    }
    const before = fieldsBefore();
    for (const name of NAMES) {
      byId(name).value = before[name] ?? "";
      byId(name).addEventListener("change", () => {
        kept.set(NAME, JSON.stringify(this.fields));
        changed();
      });
    }
    const toggle = byId("settings-toggle");
    toggle.addEventListener("click", () => this.#show(byId("settings").hidden));
  }

  /** The fields that are set, as a request has them. */
  get fields() {
    const set = NAMES.filter((name) => byId(name).value !== "" && byId(name).validity.valid);
    return Object.fromEntries(
      set.map((name) => [name, NUMBERS.includes(name) ? Number(byId(name).value) : byId(name).value]),
    );
  }

  /** Whether all of them are in range; if not, the first that is not is shown and says so. */
  check() {
    const wrong = NAMES.map(byId).find((field) => !field.validity.valid);
    if (!wrong) return true;
    this.#show(true);
    wrong.reportValidity();
    return false;
  }

  #show(visible) {
    byId("settings").hidden = !visible;
    byId("settings-toggle").setAttribute("aria-expanded", visible);
  }
}

/** The fields of an earlier visit; none where what is kept is damaged. */
function fieldsBefore() {
  try {
    return JSON.parse(kept.get(NAME)) ?? {};
  } catch {
    return {};
  }
}
