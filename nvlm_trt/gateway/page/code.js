// A request as a command or a program that repeats it.

import { Picture } from "./picture.js";

const NOT_OPENAIS = ["max_tiles", "exif_orientation"];

/** A shell command; `inside` puts the pictures into its text, else they are read from files of their names. */
export function asCurl(body, { address, inside, withKey }) {
  const curl = [
    `curl --no-buffer ${address}/v1/chat/completions`,
    `-H 'Content-Type: application/json'`,
    ...(withKey ? [`-H "Authorization: Bearer $OPENAI_API_KEY"`] : []),
    "--data-binary @-",
  ].join(" \\\n  ");
  if (inside || !picturesIn(body).length) return `${curl} <<'END'\n${JSON.stringify(body, null, 2)}\nEND\n`;
  const mark = crypto.randomUUID?.() ?? `${Math.random()}${Math.random()}`;
  const pictures = [];
  const marked = function (name, value) {
    return this[name] instanceof Picture ? `${mark}${pictures.push(this[name])}${mark}` : value;
  };
  const text = JSON.stringify(body, marked, 2);
  const parts = text.split(new RegExp(`${mark}\\d+${mark}`));
  const lines = parts.flatMap((part, place) => {
    const before = place > 0 ? [`base64 < ${quoted(pictures[place - 1].name)} | tr -d '\\n'`] : [];
    const after = place < pictures.length ? `data:${pictures[place].type};base64,` : "";
    return [...before, `printf %s ${quoted(part + after)}`];
  });
  return `{ ${lines.join("\n  ")}\n} | ${curl}\n`;
}

/** A program with OpenAI's client. */
export function asPython(body, { address, inside, withKey }) {
  const files = !inside && picturesIn(body).length > 0;
  const picture = ({ type, name, uri }) =>
    files ? `picture(${JSON.stringify(type)}, ${JSON.stringify(name)})` : JSON.stringify(uri);
  const given = Object.entries(body);
  const extra = given.filter(([name]) => NOT_OPENAIS.includes(name));
  const named = given.filter(([name]) => !NOT_OPENAIS.includes(name));
  if (extra.length) named.push(["extra_body", Object.fromEntries(extra)]);
  const call = named.map(([name, value]) => `    ${name}=${literal(value, picture, "    ")},\n`);
  return [
    files ? "import base64\n" : "",
    withKey ? "import os\n" : "",
    files ? "from pathlib import Path\n" : "",
    files || withKey ? "\n" : "",
    "from openai import OpenAI\n\n",
    files ? PYTHON_PICTURE : "",
    `client = OpenAI(base_url="${address}/v1", api_key=${withKey ? 'os.environ["OPENAI_API_KEY"]' : '"none"'})\n`,
    `stream = client.chat.completions.create(\n${call.join("")})\n`,
    "for chunk in stream:\n",
    "    for choice in chunk.choices:\n",
    '        print(choice.delta.content or "", end="", flush=True)\n',
    "print()\n",
  ].join("");
}

const PYTHON_PICTURE = `
def picture(kind, name):
    return f"data:{kind};base64," + base64.b64encode(Path(name).read_bytes()).decode()


`;

/** The pictures that a request holds. */
export const picturesIn = (body) =>
  body.messages
    .flatMap(({ content }) => (Array.isArray(content) ? content : []))
    .filter((part) => part.type === "image_url")
    .map((part) => part.image_url.url);

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A value as Python writes it; texts and numbers are written as in JSON. */
function literal(value, picture, indent) {
  const inner = `${indent}    `;
  if (value instanceof Picture) return picture(value);
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) {
    return `[\n${value.map((one) => `${inner}${literal(one, picture, inner)},\n`).join("")}${indent}]`;
  }
  if (typeof value === "object") {
    const members = Object.entries(value);
    const write = ([name, one]) => `${inner}${JSON.stringify(name)}: ${literal(one, picture, inner)},\n`;
    return `{\n${members.map(write).join("")}${indent}}`;
  }
  return JSON.stringify(value);
}
