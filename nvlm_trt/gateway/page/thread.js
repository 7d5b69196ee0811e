// The turns of the conversation, and an answer as it comes.

import { thumbnail } from "./composer.js";
import { byId, make, number } from "./dom.js";

const STATES = { waiting: "Reading …", streaming: "", done: "", stopped: "Stopped", failed: "" };
const NEAR = 60; // pixels from the turns' end, within which a reader is at it
const SPACE = 20; // pixels below the turns, as style.css has them
const REASONS = { length: "cut at its longest" };

export class Thread {
  #views = new Map();
  #actions;

  /** `actions(turn)` are the buttons of a finished turn: pairs of a label and what it does. */
  constructor(actions) {
    this.#actions = actions;
  }

  /** Show these turns. */
  show(turns) {
    byId("empty").hidden = turns.length > 0;
    for (const [turn, view] of this.#views) {
      if (!turns.includes(turn)) {
        view.element.remove();
        this.#views.delete(turn);
      }
    }
    for (const turn of turns) {
      if (this.#views.has(turn)) continue;
      const view = new View(turn);
      this.#views.set(turn, view);
      byId("turns").append(view.element);
      showEnd();
    }
    followed(() => turns.forEach((turn, place) => this.update(turn, place === turns.length - 1)));
  }

  /** Show what has become of a turn; `isLast` offers to ask it again. */
  update(turn, isLast) {
    const ended = !["waiting", "streaming"].includes(turn.state);
    this.#views.get(turn)?.update(ended ? this.#actions(turn, isLast) : []);
  }

  /** Show a text that came. */
  came(turn, text) {
    followed(() => this.#views.get(turn)?.came(text));
  }
}

/** Change the turns; a reader at their end stays there. */
function followed(change) {
  const follows = unseen() < NEAR;
  change();
  if (follows) showEnd();
}

function showEnd() {
  // one of the two scrolls: the turns by themselves, or in a narrow window the whole page
  for (const one of [byId("talk-scroll"), document.scrollingElement]) one.scrollBy(0, unseen() + SPACE);
}

/** Pixels of the turns below what is seen of them, which the form or the window ends; negative where there are none. */
function unseen() {
  const end = Math.min(byId("ask").getBoundingClientRect().top, document.documentElement.clientHeight);
  return byId("turns").getBoundingClientRect().bottom - end;
}

class View {
  #turn;
  #text = make("p", { className: "text" });
  #figures = make("p", {
    className: "figures",
    title: "TTFT: from the request to the first text. Both as this page saw it.",
  });
  #refusal = make("div", { className: "refusal" });
  #tools = make("div", { className: "turn-tools" });

  constructor(turn) {
    this.#turn = turn;
    const pictures = turn.pictures.map((picture) => make("li", { title: picture.name }, named(picture)));
    const asked = make("div", { className: "asked" }, make("h3", { className: "hidden", textContent: "You asked" }));
    if (pictures.length) asked.append(make("ul", { className: "asked-pictures" }, ...pictures));
    if (turn.text) asked.append(make("p", { className: "text", textContent: turn.text }));
    const title = make("h3", { className: "hidden", textContent: "Answer" });
    this.answered = make(
      "div",
      { className: "answered" },
      title,
      this.#text,
      this.#refusal,
      this.#figures,
      this.#tools,
    );
    this.element = make("li", { className: "turn" }, asked, this.answered);
  }

  came(text) {
    this.#text.append(text);
    this.#showFigures();
  }

  update(actions) {
    const turn = this.#turn;
    this.answered.dataset.state = turn.state;
    if (this.#text.textContent !== turn.answer) this.#text.textContent = turn.answer;
    this.#showFigures();
    const { refusal } = turn;
    const lines = refusal ? [refusal.message, retryWords(refusal), idWords(refusal.requestId)] : [];
    this.#refusal.replaceChildren(...lines.filter(Boolean).map((line) => make("p", { textContent: line })));
    if (actions.map(([label]) => label).join() === [...this.#tools.children].map((one) => one.textContent).join())
      return;
    this.#tools.replaceChildren(
      ...actions.map(([label, act]) => {
        const button = make("button", { type: "button", className: "plain small", textContent: label });
        button.addEventListener("click", act);
        return button;
      }),
    );
  }

  #showFigures() {
    const turn = this.#turn;
    const about = turn.usage ? "" : "≈ ";
    const figures = [
      STATES[turn.state],
      turn.firstAfter === null ? "" : `TTFT ${milliseconds(turn.firstAfter)}`,
      turn.rate === null ? "" : `${about}${turn.rate.toFixed(turn.rate < 10 ? 1 : 0)} tokens/s`,
      turn.usage ? `${number(turn.usage.prompt_tokens)} + ${number(turn.usage.completion_tokens)} tokens` : "",
      REASONS[turn.reason] ?? "",
      turn.state === "done" && !turn.counts ? "no text: left out of the conversation" : "",
    ];
    this.#figures.textContent = figures.filter(Boolean).join("  ·  ");
  }
}

function named(picture) {
  const canvas = thumbnail(picture);
  canvas.ariaHidden = null;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", picture.name);
  return canvas;
}

const milliseconds = (time) => (time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(2)} s`);
const retryWords = ({ retryAfter }) => (retryAfter ? `It may work in ${retryAfter} s.` : "");
const idWords = (id) => (id ? `Request ${id}` : "");
