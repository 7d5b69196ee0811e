// The page, its parts put together.

import { Announcer } from "./announcer.js";
import { Composer } from "./composer.js";
import { picturesOf, requestOf, Turn } from "./conversation.js";
import { askForKey, showCode } from "./dialogs.js";
import { byId, bytes, composes } from "./dom.js";
import { gridWords, Seen } from "./seen.js";
import { Refusal, Server } from "./server.js";
import { Settings } from "./settings.js";
import { followTheme } from "./theme.js";
import { Thread } from "./thread.js";

const TYPING_PAUSE = 500; // milliseconds without a key, after which the length of a text is asked for
const LOOK_PATIENCE = 1000; // milliseconds that a question waits for a look under way
const LIGHT_BODY = 1 << 20; // bytes of a request that may be sent for that alone

const server = new Server(askForKey);
const announcer = new Announcer();
const seen = new Seen();
const thread = new Thread(actionsOf);
let turns = [];
let limits, settings, composer;
let answering = null; // the AbortController of the answer that comes
let looking = null; // and that of the look at the tiles
let looked = Promise.resolve(); // the end of that look
let shown = ""; // what it is of; none after a refusal
let typing = null;

async function begin() {
  followTheme();
  try {
    limits = await server.limits();
  } catch (error) {
    seen.showNothing(sentenceOf(error));
    byId("model").textContent = "not reached";
    return;
  }
  byId("model").textContent = limits.model;
  settings = new Settings(limits, () => look());
  composer = new Composer(limits, () => picturesOf(turns), room, changed);
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || composes(event)) return;
    event.preventDefault();
    ask();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !composes(event) && !document.querySelector("dialog[open]")) stop();
  });
  byId("stop").addEventListener("click", stop);
  byId("new").addEventListener("click", startAnew);
  showState();
  look();
}

/** How many pictures the conversation may still get. */
function room() {
  return limits.max_images - picturesOf([...turns.filter((turn) => turn.mayCount), composer]).length;
}

/** The turns that the model is told of. */
function told() {
  return turns.filter((turn) => turn.counts);
}

function changed(what) {
  showState();
  if (what === "reading") return;
  clearTimeout(typing);
  if (what === "pictures") look(true);
  else typing = setTimeout(() => isLight(current().pictures) && look(), TYPING_PAUSE);
}

/** The request of what is written now, or else the last one that was asked. */
function current() {
  const last = turns.at(-1);
  const asked = composer.isEmpty && last ? last : new Turn(composer.text, composer.pictures);
  const before = told().filter((turn) => turn !== last || asked !== last);
  return {
    pictures: picturesOf([...before, asked]),
    body: requestOf([...before, asked], limits, settings.fields),
  };
}

function isLight(pictures) {
  return pictures.reduce((sum, picture) => sum + picture.uri.length, 0) <= LIGHT_BODY;
}

/**
 * Ask how the server will cut the pictures, and show it; `isNews` says so to those who do not see it. What is shown
 * already is not asked again, nor are large pictures sent again for another text.
 */
function look(isNews = false) {
  const { pictures, body } = current();
  const wanted = JSON.stringify(isLight(pictures) ? body : [pictures.map((picture) => picture.id), settings.fields]);
  if (wanted === shown) return;
  looking?.abort();
  looking = new AbortController();
  shown = wanted;
  composer.show([]);
  if (composer.isEmpty && !turns.length) seen.showNothing("Add a picture to see its tiles.");
  else looked = showTiles(pictures, body, looking, isNews);
}

async function showTiles(pictures, body, own, isNews) {
  try {
    const layout = await server.tiles(written(body), own.signal);
    if (looking !== own) return;
    seen.show(layout, pictures);
    const images = layout.images.slice(pictures.length - composer.pictures.length);
    composer.show(images);
    if (isNews)
      announcer.end(images.map((image, place) => `${composer.pictures[place].name}: ${gridWords(image)}`).join(". "));
  } catch (error) {
    if (looking !== own) return;
    shown = "";
    seen.showNothing(sentenceOf(error));
  }
}

function written(body) {
  const text = JSON.stringify(body);
  if (text.length > limits.max_body_bytes) {
    throw new Refusal(
      `The pictures are too large together: ${bytes(text.length)}; expected: at most ${bytes(limits.max_body_bytes)}.`,
    );
  }
  return text;
}

function ask() {
  if (answering || composer.isReading || composer.isEmpty || !settings.check()) return;
  const turn = new Turn(composer.text, composer.pictures);
  turns.push(turn);
  composer.clear();
  answer(turn);
}

async function answer(turn) {
  clearTimeout(typing);
  const own = new AbortController();
  answering = own;
  turn.reset();
  turn.request = requestOf([...told(), turn], limits, settings.fields);
  thread.show(turns);
  showState();
  try {
    // a key may allow one request at a time; but no question waits for a look that ends only with a dialogue
    await Promise.race([looked, new Promise((resolve) => setTimeout(resolve, LOOK_PATIENCE))]);
    turn.asked = performance.now();
    for await (const part of server.answer(written(turn.request), own.signal)) take(turn, part);
    turn.state = "done";
  } catch (error) {
    if (error.name !== "AbortError") turn.refusal = error;
    turn.state = error.name === "AbortError" ? "stopped" : "failed";
  }
  if (answering === own) answering = null;
  showState();
  if (!turns.includes(turn)) return;
  announcer.end({ done: "End of the answer.", stopped: "Stopped.", failed: turn.refusal?.message }[turn.state]);
  thread.show(turns);
  look(); // at what was asked, or at what is written, which follows this answer now
}

function take(turn, { text, reason, usage }) {
  if (text) {
    const now = performance.now();
    turn.first ??= now;
    turn.last = now;
    turn.pieces += 1;
    turn.answer += text;
    turn.state = "streaming";
    thread.came(turn, text);
    announcer.add(text);
  }
  turn.reason = reason ?? turn.reason;
  turn.usage = usage ?? turn.usage;
}

function stop() {
  answering?.abort();
}

function startAnew() {
  stop();
  turns = [];
  thread.show(turns);
  composer.clear();
  composer.focus();
  showState();
  look();
}

function actionsOf(turn, isLast) {
  const code = (language) => () => showCode(turn.request, language, server.hasKey);
  const again = isLast ? [[turn.state === "done" ? "Ask again" : "Try again", () => answering || answer(turn)]] : [];
  return [...again, ["curl", code("curl")], ["Python", code("python")]];
}

function showState() {
  const focused = document.activeElement;
  byId("send").disabled = composer.isEmpty || composer.isReading || answering !== null;
  byId("send").hidden = answering !== null;
  byId("stop").hidden = answering === null;
  if (focused === byId("send") && answering) byId("stop").focus(); // a button that goes takes the focus with it
  if (focused === byId("stop") && !answering) composer.focus();
  byId("new").disabled = composer.isReading || (turns.length === 0 && composer.isEmpty);
}

function sentenceOf(error) {
  if (!(error instanceof Refusal)) throw error;
  return error.requestId ? `${error.message} (request ${error.requestId})` : error.message;
}

begin();
