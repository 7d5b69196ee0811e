// The question that is being written: its text, and pictures that are chosen, dropped or pasted.

import { bytes, byId, make, plural } from "./dom.js";
import { Picture } from "./picture.js";

export class Composer {
  pictures = [];
  #reading = 0; // calls of `add` that have not ended
  #limits;
  #asked;
  #room;
  #changed;

  /**
   * `asked()` are the pictures of earlier questions; `room()` is how many may still be added; `changed(what)` is called
   * when the "text" or the "pictures" were changed, and with "reading" when pictures begin to be read.
   */
  constructor(limits, asked, room, changed) {
    this.#limits = limits;
    this.#asked = asked;
    this.#room = room;
    this.#changed = changed;
    const files = byId("files");
    files.accept = limits.image_formats.map((format) => `image/${format.toLowerCase()}`).join(",");
    byId("add").addEventListener("click", () => files.click());
    files.addEventListener("change", () => {
      this.add([...files.files]);
      files.value = "";
    });
    this.#field.addEventListener("input", () => changed("text"));
    document.addEventListener("paste", (event) => {
      // of a table, programs copy text, HTML and a picture; text alone beside a file is the file's name
      const isText = ["text/plain", "text/html"].every((type) => event.clipboardData?.types.includes(type));
      if (!isText) this.#take(event, event.clipboardData);
    });
    this.#followDrops();
  }

  get text() {
    return this.#field.value.trim();
  }

  get isEmpty() {
    return this.text === "" && this.pictures.length === 0;
  }

  /** Whether pictures are being read: they belong to the question, which is not complete without them. */
  get isReading() {
    return this.#reading > 0;
  }

  clear() {
    this.#field.value = "";
    this.pictures = [];
    this.refuse([]);
    this.show([]);
  }

  focus() {
    this.#field.focus();
  }

  /** Add files; those that cannot be taken are told of. */
  async add(files) {
    const refused = [];
    this.#reading += 1;
    byId("pictures").setAttribute("aria-busy", "true");
    this.#changed("reading");
    for (const file of files) {
      try {
        if (this.#room() <= 0) {
          throw new Error(
            `${file.name}: the server takes ${plural(this.#limits.max_images, "picture")} in a conversation.`,
          );
        }
        const picture = await Picture.of(file, this.#limits);
        picture.nameAmong([...this.#asked(), ...this.pictures]);
        this.pictures.push(picture); // those of now: others may have come or gone while it was read
      } catch (error) {
        refused.push(error.message);
      }
    }
    this.#reading -= 1;
    if (!this.isReading) byId("pictures").removeAttribute("aria-busy");
    this.refuse(refused);
    this.#changed("pictures");
  }

  /** Show the pictures; `seen` holds what the server will make of each, where that is known. */
  show(seen) {
    byId("pictures").replaceChildren(...this.pictures.map((picture, place) => this.#chip(picture, seen[place])));
  }

  /** Say what was refused. */
  refuse(sentences) {
    byId("refusals").replaceChildren(...sentences.map((sentence) => make("p", { textContent: sentence })));
  }

  get #field() {
    return byId("question");
  }

  #chip(picture, seen) {
    const facts = seen ? `${seen.columns} × ${seen.rows}${seen.thumbnail ? " + thumbnail" : ""}` : bytes(picture.size);
    const remove = make("button", {
      type: "button",
      className: "remove",
      textContent: "×",
      "aria-label": `Remove ${picture.name}`,
    });
    remove.addEventListener("click", () => {
      this.pictures = this.pictures.filter((one) => one !== picture);
      this.#changed("pictures");
      this.focus();
    });
    const words = make(
      "span",
      { className: "chip-words" },
      make("b", { textContent: picture.name }),
      make("span", { textContent: facts }),
    );
    return make("li", { className: "chip" }, thumbnail(picture), words, remove);
  }

  #take(event, transfer) {
    const files = [...(transfer?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    this.add(files);
  }

  #followDrops() {
    const sign = byId("drop");
    const holds = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    document.addEventListener("dragenter", (event) => holds(event) && (sign.hidden = false));
    document.addEventListener("dragover", (event) => holds(event) && event.preventDefault());
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && (sign.hidden = true));
    document.addEventListener("drop", (event) => {
      sign.hidden = true;
      this.#take(event, event.dataTransfer);
    });
  }
}

/** A small square of a picture. */
export function thumbnail(picture) {
  const { width, height } = picture.canvas;
  const side = Math.min(width, height);
  const [left, top] = [(width - side) / 2 / width, (height - side) / 2 / height];
  return picture.part([left, top, 1 - left, 1 - top], 88, 88, { className: "thumb", ariaHidden: "true" });
}
