// Texts that the browser keeps. Where it is told to keep none, or has no room, they last as long as the page.

class Store {
  #kind;
  #set = new Map(); // what this page has set

  constructor(kind) {
    this.#kind = kind;
  }

  /** A text, or null. */
  get(name) {
    try {
      return this.#set.get(name) ?? window[this.#kind].getItem(name); // where it is forbidden, its name alone throws
    } catch {
      return null;
    }
  }

  set(name, text) {
    this.#set.set(name, text);
    try {
      window[this.#kind].setItem(name, text);
    } catch {
      // it lasts as long as the page, then
    }
  }
}

/** What is kept for good. */
export const kept = new Store("localStorage");

/** What is kept until the tab is closed. */
export const keptByTab = new Store("sessionStorage");
