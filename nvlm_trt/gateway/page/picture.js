// A picture of the conversation: its file, checked against the server's limits, and what is drawn of it.

import { bytes, number } from "./dom.js";

const LONGEST = 2048; // pixels of what is drawn: tiles are shown small, and a phone's photograph takes 200 MB

let count = 0;

export class Picture {
  /** Read a file; throws an Error with a sentence where the server would refuse it. */
  static async of(file, limits) {
    const name = file.name || "pasted";
    const formats = limits.image_formats.map((format) => format.toLowerCase());
    const format = file.type.replace("image/", "");
    if (!formats.includes(format)) {
      const seen = file.type || "no type";
      throw new Error(
        `${name} is no picture that the server takes (${seen}); expected: ${limits.image_formats.join(", ")}.`,
      );
    }
    if (file.size > limits.max_image_bytes) {
      throw new Error(`${name} is too large: ${bytes(file.size)}; expected: at most ${bytes(limits.max_image_bytes)}.`);
    }
    let whole;
    try {
      whole = await createImageBitmap(file);
    } catch {
      throw new Error(`${name} cannot be read; it may be damaged.`);
    }
    const { width, height } = whole;
    if (width * height > limits.max_image_pixels || Math.max(width, height) > limits.max_image_side) {
      whole.close();
      const most = `${number(limits.max_image_pixels)} pixels, sides of ${number(limits.max_image_side)}`;
      throw new Error(`${name} is too large: ${width} × ${height} pixels; expected: at most ${most}.`);
    }
    return new Picture(file, name, await drawn(whole), await dataUri(file));
  }

  constructor(file, name, canvas, uri) {
    count += 1;
    const ending = file.type.replace("image/", ".").replace("jpeg", "jpg");
    this.id = count;
    this.name = /\.\w+$/.test(name) ? name : `${name}${ending}`;
    this.type = file.type;
    this.size = file.size;
    this.file = file;
    this.canvas = canvas;
    this.uri = uri;
  }

  /** Take another name where one of these has its own: of whatever is pasted, browsers say image.png. */
  nameAmong(others) {
    const [, stem, ending] = /^(.*)(\.\w+)$/s.exec(this.name);
    const isTaken = ({ name, uri }) => name === this.name && uri !== this.uri; // the same picture again keeps its name
    for (let number = 2; others.some(isTaken); number += 1) this.name = `${stem}-${number}${ending}`;
  }

  /** In a request's JSON a picture is its data URI. */
  toJSON() {
    return this.uri;
  }

  /** A small canvas of a part of it: left, top, right, bottom as shares of its sides. */
  part([left, top, right, bottom], width, height, properties) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height, ...properties });
    const { width: w, height: h } = this.canvas;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.canvas, left * w, top * h, (right - left) * w, (bottom - top) * h, 0, 0, width, height);
    return canvas;
  }
}

async function drawn(whole) {
  const scale = Math.min(1, LONGEST / Math.max(whole.width, whole.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(whole.width * scale));
  canvas.height = Math.max(1, Math.round(whole.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(whole, 0, 0, canvas.width, canvas.height);
  whole.close();
  return canvas;
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}
