// Pictures that the server draws: one request, its events, and a tile for each picture.

import { events, Fault, request } from "./api.js";
import { icon, make } from "./elements.js";
import { actions, drop, markSmall, ofBase64, opener } from "./pictures.js";

export const PREVIEWS = 3; // of a picture, the most that the server sends
const MOST_SEED = Number.MAX_SAFE_INTEGER - 16;

/**
 * Draws pictures and waits for all of them.
 * @param {string} path Of the API.
 * @param {object|FormData} body With `stream`.
 * @param {object} how `count` of pictures, `signal`, and for each picture what comes:
 *   preview(place, picture, part) and done(place, picture).
 * @throws {Fault} Also when a stream ends too early.
 */
export async function draw(path, body, { count, signal, preview, done }) {
  const response = await request(path, { body, signal });
  let left = count;
  for await (const event of events(response)) {
    const picture = await ofBase64(event.b64_json, event.output_format, { seed: event.seed });
    if (signal.aborted) return drop(picture);
    if (event.type.endsWith(".partial_image")) {
      preview(event.index, picture, (event.partial_image_index + 1) / (PREVIEWS + 1));
    } else {
      left -= 1;
      done(event.index, picture);
    }
  }
  if (left) throw new Fault("The server stopped before the pictures were done.", { again: true });
}

/** The place of one picture, which has its size from the start. */
export class Tile {
  #frame;
  #row;
  #bar;
  #preview = null;

  /**
   * @param {string} label What stands under it.
   * @param {number[]} side Height and width that are expected.
   */
  constructor(label, side) {
    this.#frame = make("div", { class: "frame wait" });
    this.#frame.style.aspectRatio = `${side[1]} / ${side[0]}`;
    this.#bar = make("progress", { max: "1", "aria-label": `Progress of ${label}` });
    this.#frame.append(this.#bar);
    this.#row = make("span", { class: "row acts" });
    this.element = make(
      "figure",
      { class: "tile" },
      this.#frame,
      make("figcaption", {}, make("span", { class: "seed", text: label }), this.#row),
    );
  }

  /** Shows what the picture will look like; `part` of it is done. */
  preview(picture, part) {
    const image = make("img", { src: picture.url, alt: "Preview", class: "preview" });
    markSmall(image, picture);
    this.#bar.value = part;
    this.#frame.classList.remove("wait");
    this.#frame.replaceChildren(image, this.#bar);
    this.#forget();
    this.#preview = picture;
  }

  /** Shows the picture, with what can be done with it. */
  done(app, picture, list) {
    this.#frame.classList.remove("wait");
    this.#frame.style.aspectRatio = `${picture.width} / ${picture.height}`;
    this.#frame.replaceChildren(opener(app, picture, list, altOf(picture)));
    this.#row.replaceChildren(...actions(app, picture));
    this.#forget();
  }

  /** Takes the tile away. */
  remove() {
    this.#forget();
    this.element.remove();
  }

  #forget() {
    if (this.#preview) drop(this.#preview);
    this.#preview = null;
  }
}

const altOf = ({ prompt, seed }) => `${prompt || "A picture"}, seed ${seed}`;

/**
 * A button that starts, and while something runs ends it.
 * It keeps its place and the focus; a double click does not end what it started.
 */
export class Toggle {
  #button;
  #idle;
  #running = null;
  #since = 0;

  constructor(button, idle) {
    this.#button = button;
    this.idle = idle;
  }

  set idle(text) {
    this.#idle = text;
    if (!this.#running) this.#button.textContent = text;
  }

  get running() {
    return this.#running !== null;
  }

  /** Ends what runs; false if nothing does. `now`: however short it ran. */
  cancel(now = false) {
    if (!this.#running) return false;
    if (now || performance.now() - this.#since > 500) this.#running.abort();
    return true;
  }

  /** Runs async (signal) => ...; returns whether it came to its end, not cancelled. */
  async run(work) {
    this.#running = new AbortController();
    this.#since = performance.now();
    this.#button.replaceChildren(icon("stop"), "Cancel");
    this.#button.classList.add("running");
    try {
      await work(this.#running.signal);
      return !this.#running.signal.aborted;
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      return false;
    } finally {
      this.#running = null;
      this.#button.classList.remove("running");
      this.#button.textContent = this.#idle;
    }
  }
}

/** A new seed, short enough to be told to somebody. */
export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;

/** The seed in a field. */
export function seedOf(field) {
  const seed = /^\s*\d{1,16}\s*$/.test(field.value) ? Number(field.value) : NaN;
  if (seed <= MOST_SEED) return seed;
  throw wrong(field, `The seed is a whole number from 0 to ${MOST_SEED}.`);
}

/** The number in a field, as its `min`, `max` and `step` say. */
export function numberOf(field, name) {
  const value = field.valueAsNumber;
  const whole = field.step !== "any";
  if (
    value >= Number(field.min) &&
    value <= Number(field.max) &&
    (!whole || Number.isInteger(value))
  )
    return value;
  throw wrong(
    field,
    `${name}: expected ${whole ? "a whole number" : "a number"} from ${field.min} to ${field.max}.`,
  );
}

/** A fault of a field, which gets the focus. */
export function wrong(field, message) {
  field.closest("details")?.setAttribute("open", "");
  field.focus();
  return new Fault(message);
}

/** Enter sends a form from a text of several lines; Shift and Enter makes a new line. */
export function sendOnEnter(text, form) {
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}
