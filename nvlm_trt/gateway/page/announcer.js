// What a screen reader is told of an answer that comes: some of it at a time, not every token.

import { byId } from "./dom.js";

const PAUSE = 3000; // milliseconds between two parts: about as long as it takes to speak one

export class Announcer {
  #waiting = "";
  #timer = null;

  /** Say a part of an answer soon, up to its last whole word; all of it where nothing parts words, as in Chinese. */
  add(text) {
    this.#waiting += text;
    this.#timer ??= setTimeout(() => this.#say(this.#waiting.search(/\s\S*$/) + 1 || this.#waiting.length), PAUSE);
  }

  /** Say what is left, and a closing word. */
  end(word) {
    this.#waiting += ` ${word}`;
    this.#say(this.#waiting.length);
  }

  #say(length) {
    clearTimeout(this.#timer);
    this.#timer = null;
    const part = this.#waiting.slice(0, length).trim();
    this.#waiting = this.#waiting.slice(length);
    if (part) byId("said").textContent = part;
  }
}
