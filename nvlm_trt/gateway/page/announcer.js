// What a screen reader is told of an answer that comes: some of it at a time, not every token.

import { byId } from "./dom.js";

const PAUSE = 3000; // milliseconds between two parts: about as long as it takes to speak one

export class Announcer {
  #waiting = "";
  #timer = null;

  /** Say a part of an answer soon. */
  add(text) {
    this.#waiting += text;
    this.#timer ??= setTimeout(() => this.#say(), PAUSE);
  }

  /** Say what is left, and a closing word. */
  end(word) {
    this.#waiting += ` ${word}`;
    this.#say();
  }

  #say() {
    clearTimeout(this.#timer);
    this.#timer = null;
    byId("said").textContent = this.#waiting.trim();
    this.#waiting = "";
  }
}
