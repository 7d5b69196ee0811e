// What was asked and answered, and the request that it makes.

const SHORTEST = 20; // milliseconds

/** A question with its answer; `state` is "waiting", "streaming", "done", "stopped" or "failed". */
export class Turn {
  constructor(text, pictures) {
    this.text = text;
    this.pictures = pictures;
    this.request = null;
    this.reset();
  }

  reset() {
    this.answer = "";
    this.state = "waiting";
    this.reason = null;
    this.usage = null;
    this.refusal = null;
    this.asked = this.first = this.last = null; // times in milliseconds
    this.pieces = 0;
  }

  /** Whether the model is told of it later: a turn without an answer is none. */
  get counts() {
    return this.answer !== "" && (this.state === "done" || this.state === "stopped");
  }

  /** Whether it is told already, or will be. */
  get mayCount() {
    return this.counts || this.state === "waiting" || this.state === "streaming";
  }

  /** Milliseconds to the first text. */
  get firstAfter() {
    return this.first === null ? null : this.first - this.asked;
  }

  /**
   * Tokens a second after the first; while the answer comes, its pieces stand for tokens. None of an answer so short
   * that its pieces may have waited for each other on their way.
   */
  get rate() {
    const tokens = this.usage === null ? this.pieces : this.usage.completion_tokens;
    const time = this.last - this.first;
    return tokens > 1 && time >= SHORTEST ? ((tokens - 1) * 1000) / time : null;
  }
}

/** The pictures of a request, in the order of their places. */
export const picturesOf = (turns) => turns.flatMap((turn) => turn.pictures);

/** A request's body. Pictures stand in it as themselves: JSON.stringify makes data URIs of them. */
export function requestOf(turns, { model, exif_orientation: isUpright }, settings) {
  const { system, ...fields } = settings;
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const [place, turn] of turns.entries()) {
    messages.push({ role: "user", content: contentOf(turn) });
    if (place < turns.length - 1) messages.push({ role: "assistant", content: turn.answer });
  }
  const turned = isUpright ? {} : { exif_orientation: true }; // a browser draws pictures upright, whatever it is told
  return { model, messages, ...fields, ...turned, stream: true, stream_options: { include_usage: true } };
}

function contentOf({ text, pictures }) {
  if (!pictures.length) return text;
  const parts = pictures.map((picture) => ({ type: "image_url", image_url: { url: picture } }));
  return text ? [{ type: "text", text }, ...parts] : parts;
}
