// What the model sees: each picture with its grid, its tiles with tags and tokens, and their places in the prompt.
// All of it comes from the server; nothing of tiling or tokens is computed here.

import { byId, make, number, plural } from "./dom.js";

const WIDTH = 960; // pixels of a picture that is drawn
const TILE = 224;

export class Seen {
  #parts = new Map(); // from a tile's name to the elements that show it
  #pinned = null;

  constructor() {
    const panel = byId("images").closest(".seen");
    panel.addEventListener("pointerover", (event) => this.#light(nameOf(event.target) ?? this.#pinned));
    panel.addEventListener("pointerleave", () => this.#light(this.#pinned));
    panel.addEventListener("focusin", (event) => this.#light(nameOf(event.target) ?? this.#pinned));
    panel.addEventListener("focusout", () => this.#light(this.#pinned));
    panel.addEventListener("click", (event) => this.#pin(nameOf(event.target)));
    panel.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Show a conversation, as the server laid it out, with its pictures. */
  show(layout, pictures) {
    this.#clear();
    const { prompt_tokens: prompt, answer_tokens: answer, max_context_tokens: most } = layout;
    byId("tokens").textContent =
      `${number(prompt)} prompt tokens, ${number(answer)} for the answer, room for ${number(most)}`;
    byId("seen-note").textContent = pictures.length ? "" : "No picture in this conversation: the prompt is text alone.";
    byId("images").replaceChildren(
      ...layout.images.map((image, place) => this.#image(image, pictures[place], place + 1, layout.tokens_per_tile)),
    );
    byId("ruler").replaceChildren(...this.#ruler(layout));
  }

  /** Show nothing but a sentence, why. */
  showNothing(sentence) {
    this.#clear();
    byId("tokens").textContent = "";
    byId("seen-note").textContent = sentence;
    byId("images").replaceChildren();
    byId("ruler").replaceChildren();
  }

  #clear() {
    this.#parts.clear();
    this.#pinned = null;
  }

  #image(image, picture, place, perTile) {
    const { columns, rows, width, height, tiles } = image;
    const grid = gridWords(image);
    const facts = [`${number(width)} × ${number(height)} pixels`, grid, plural(tiles.length * perTile, "token")];
    const scale = Math.min(1, WIDTH / Math.max(width, height));
    const label = `${picture.name}, cut into ${grid}`;
    const whole = picture.part(
      [0, 0, 1, 1],
      Math.max(1, Math.round(width * scale)),
      Math.max(1, Math.round(height * scale)),
      {
        role: "img",
        ariaLabel: label,
      },
    );
    const cells = tiles.slice(0, columns * rows).map((tile, index) => {
      const cell = this.#part("div", `${place}.${index}`, { className: "cell" });
      const [left, top, right, bottom] = shares(tile.box, image);
      Object.assign(cell.style, {
        left: `${left * 100}%`,
        top: `${top * 100}%`,
        width: `${(right - left) * 100}%`,
        height: `${(bottom - top) * 100}%`,
      });
      cell.append(make("span", { textContent: tiles.length > 1 ? index + 1 : "" }));
      return cell;
    });
    const frame = make("div", { className: "frame" }, whole, make("div", { "aria-hidden": "true" }, ...cells));
    const shown = tiles.map((tile, index) => this.#tile(tile, image, picture, `${place}.${index}`, index));
    const group = make(
      "div",
      { className: "tiles", role: "group", "aria-label": `Tiles of ${picture.name}; arrow keys move` },
      ...shown,
    );
    group.style.setProperty("--columns", columns);
    const article = make(
      "article",
      { className: "image" },
      make("h3", {}, make("span", { className: "ordinal", textContent: place }), ` ${picture.name}`),
      make("p", { className: "figures", textContent: facts.join("  ·  ") }),
      make("div", { className: "views" }, frame, group),
    );
    article.style.setProperty("--ratio", width / height);
    return article;
  }

  #tile(tile, image, picture, name, index) {
    const [first, end] = tile.tokens;
    const isThumbnail = index >= image.columns * image.rows;
    const where = isThumbnail || image.tiles.length === 1 ? "the whole picture" : placeWords(index, image.columns);
    const button = this.#part("button", name, {
      type: "button",
      className: isThumbnail ? "tile whole" : "tile",
      tabIndex: index === 0 ? 0 : -1,
      "aria-pressed": "false",
      "aria-label": `${tile.tag}, ${where}, tokens ${first} to ${end - 1}`,
    });
    button.append(
      picture.part(shares(tile.box, image), TILE, TILE, { ariaHidden: "true" }),
      make("span", { className: "tag", textContent: tile.tag }),
      make("span", { className: "range", textContent: `${number(first)} – ${number(end - 1)}` }),
    );
    return button;
  }

  /** The prompt from its first token to its last: text in grey, a stretch for each tile. */
  #ruler({ prompt_tokens: length, images }) {
    const stretch = (element, tokens) => {
      element.style.flexGrow = tokens;
      return element;
    };
    const shown = [];
    let place = 0;
    for (const [number_, image] of images.entries()) {
      for (const [index, { tokens, tag }] of image.tiles.entries()) {
        shown.push(stretch(make("div", { className: "words" }), tokens[0] - place));
        const isWhole = image.thumbnail && index === image.tiles.length - 1;
        const part = this.#part("div", `${number_ + 1}.${index}`, { className: isWhole ? "stretch whole" : "stretch" });
        part.title = `${tag}, tokens ${tokens[0]} to ${tokens[1] - 1}`;
        shown.push(stretch(part, tokens[1] - tokens[0]));
        place = tokens[1];
      }
    }
    return [...shown, stretch(make("div", { className: "words" }), length - place)];
  }

  #part(tag, name, properties) {
    const element = make(tag, properties);
    element.dataset.tile = name;
    this.#parts.set(name, [...(this.#parts.get(name) ?? []), element]);
    return element;
  }

  #light(name) {
    for (const [one, elements] of this.#parts) {
      for (const element of elements) element.classList.toggle("lit", one === name);
    }
  }

  #pin(name) {
    if (name === undefined) return;
    this.#pinned = this.#pinned === name ? null : name;
    for (const [one, elements] of this.#parts) {
      const button = elements.find((element) => element.matches("button"));
      button.setAttribute("aria-pressed", one === this.#pinned);
    }
    this.#light(this.#pinned ?? name);
  }

  #move(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    const all = [...tile.parentElement.children];
    const place = all.indexOf(tile);
    const to = {
      ArrowRight: place + 1,
      ArrowDown: place + 1,
      ArrowLeft: place - 1,
      ArrowUp: place - 1,
      Home: 0,
      End: all.length - 1,
    };
    const next = all[to[event.key]];
    if (!next) return;
    event.preventDefault();
    tile.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

const nameOf = (element) => element.closest("[data-tile]")?.dataset.tile;

/** How an image is cut, in words. */
export function gridWords({ columns, rows, thumbnail }) {
  const tiles = columns * rows === 1 ? "tile" : "tiles";
  return `${columns} × ${rows} ${tiles}${thumbnail ? " and a thumbnail" : ""}`;
}

const shares = ([left, top, right, bottom], { width, height }) => [
  left / width,
  top / height,
  right / width,
  bottom / height,
];

const placeWords = (index, columns) => `row ${Math.floor(index / columns) + 1}, column ${(index % columns) + 1}`;
