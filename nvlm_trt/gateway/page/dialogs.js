// The two dialogs: a request as code, and the API key.

import { asCurl, asPython, picturesIn } from "./code.js";
import { byId } from "./dom.js";

/** Show a request as code in a language, "curl" or "python". */
export function showCode(body, language, withKey) {
  const dialog = byId("code");
  const form = dialog.querySelector("form");
  form.elements.language.value = language;
  byId("code-pictures").hidden = !picturesIn(body).length;
  const show = () => {
    const options = { address: location.origin, inside: form.elements.inside.value === "data", withKey };
    byId("code-text").textContent = (form.elements.language.value === "curl" ? asCurl : asPython)(body, options);
    byId("code-note").textContent = noteOf(body, options);
    byId("code-copy").textContent = "Copy";
  };
  form.onchange = show;
  byId("code-copy").onclick = async () => {
    byId("code-copy").textContent = (await copy(byId("code-text"))) ? "Copied" : "Selected: copy it";
  };
  show();
  dialog.showModal();
}

/** Ask for the API key; null where there is none. `why` is what the server said of the one that it was given. */
export function askForKey(why) {
  const dialog = byId("key");
  byId("key-why").textContent = why ?? "This server answers those who have a key.";
  byId("key-text").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "use" ? byId("key-text").value.trim() || null : null);
  });
}

/** Copy an element's text; where the browser allows that to secure pages only, select it. */
export async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return false;
  }
}

function noteOf(body, { inside, withKey }) {
  const pictures = inside ? [] : picturesIn(body);
  const files = pictures.length ? "Run it where the picture files lie, under the names shown here." : "";
  const renamed = new Set(pictures.filter(({ name, file }) => name !== file.name).map(({ name }) => name));
  const save = renamed.size ? `Save under these names first: ${[...renamed].join(", ")}.` : "";
  const key = withKey ? "The key is taken from OPENAI_API_KEY." : "";
  return [files, save, key].filter(Boolean).join(" ");
}
