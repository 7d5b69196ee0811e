// Small helpers for the document.

export const byId = (id) => document.getElementById(id);

/** An element with properties (or attributes, where a name has a dash or is `role`) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Whether a key belongs to a text that is being composed; of the one that ends it, Safari gives a code alone. */
export const composes = (event) => event.isComposing || event.keyCode === 229;

export const number = (value) => value.toLocaleString("en");

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  if (count < 1e6) return `${(count / 1e3).toFixed(0)} kB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

export const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
