// Edit, or of a model that cannot, Reconstruct: a picture and what the model makes of it.

import {
  draw,
  newSeed,
  numberOf,
  PREVIEWS,
  seedOf,
  sendOnEnter,
  Tile,
  Toggle,
  wrong,
} from "./drawing.js";
import { by, iconButton, make, sayAloud, showFault } from "./elements.js";
import { ofFile, takeFiles } from "./files.js";
import { copy, drop, fileName, markSmall, opener } from "./pictures.js";
import { noteWords } from "./words.js";

const KEPT = 20; // results
// Options of a model, by their names in requests.
const NUMBERS = {
  steps: { field: "num_inference_steps", label: "Steps", min: 1, max: 1000, step: 1 },
  guidance: { field: "guidance_scale", label: "Guidance", min: 0.1, max: 100, step: "any" },
  pixel_steps: {
    field: "pixel_steps",
    label: "Steps of the pixel decoder",
    min: 1,
    max: 1000,
    step: 1,
  },
};

export class Rework {
  #app;
  #verb = "reconstruct";
  #input = null;
  #numbers = []; // {field, label, input}
  #pairs = []; // {before, after, element}, the newest first
  #toggle = new Toggle(by("work-go"), "Reconstruct");

  constructor(app) {
    this.#app = app;
    by("work").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.#toggle.cancel()) this.#submit();
    });
    sendOnEnter(by("told"), by("work"));
    takeFiles(by("rework"), by("work-file"), (files) => this.takeFiles(files));
    by("work-sample").addEventListener("click", () => this.#sample());
    by("work-seed").value = newSeed();
    by("work-new-seed").addEventListener("click", () => (by("work-seed").value = newSeed()));
  }

  /** What the model is, once it is known. */
  start(model, verb) {
    this.#verb = verb;
    by("told-field").hidden = verb !== "edit";
    by("work-sample").closest("p").hidden = !model.verbs.includes("generate");
    this.#toggle.idle = verb === "edit" ? "Edit" : "Reconstruct";
    noteWords(by("told"), "told-words", model.words);
    if (verb === "edit") {
      by("work-title").textContent = "Change a picture";
      by("work-about").textContent =
        "Choose one and say what should be different. Both stand here side by side.";
    }
    this.#numbers = Object.entries(NUMBERS)
      .filter(([name]) => typeof model.options[verb][name] === "number")
      .map(([name, { field, label, min, max, step }]) => {
        const own = {
          type: "number",
          id: `work-${name}`,
          min,
          max,
          step,
          value: model.options[verb][name],
        };
        return { field, label, input: make("input", own) };
      });
    by("work-numbers").replaceChildren(
      ...this.#numbers.map(({ label, input }) =>
        make("div", { class: "field" }, make("label", { for: input.id, text: label }), input),
      ),
    );
  }

  /** Takes a picture as the one to work on. */
  set(picture) {
    if (this.#input) drop(this.#input);
    this.#input = copy(picture);
    const image = by("work-shown");
    image.src = this.#input.url;
    image.hidden = false;
    markSmall(image, picture);
    by("work-drop").classList.add("filled");
    showFault(by("work-fault"));
    (this.#verb === "edit" ? by("told") : by("work-go")).focus();
  }

  /** Files that were chosen, dropped or pasted; the first counts. */
  async takeFiles([file]) {
    await this.#take(() => ofFile(file, this.#app.model));
  }

  #sample() {
    return this.#take(() => this.#app.sample(by("work-sample")));
  }

  async #take(from) {
    showFault(by("work-fault"));
    try {
      const picture = await from();
      this.set(picture);
      drop(picture);
    } catch (error) {
      showFault(by("work-fault"), error.message);
    }
  }

  #submit() {
    showFault(by("work-fault"));
    try {
      const editing = this.#verb === "edit";
      if (!this.#input) throw wrong(by("work-file"), "Choose a picture first.");
      const prompt = editing ? by("told").value.trim() : "reconstruct";
      if (!prompt) throw wrong(by("told"), "Say what should change.");
      const body = new FormData();
      const fields = { prompt, seed: seedOf(by("work-seed")), stream: true };
      if (editing) fields.partial_images = PREVIEWS;
      for (const { field, label, input } of this.#numbers) fields[field] = numberOf(input, label);
      for (const [name, value] of Object.entries(fields)) body.append(name, String(value));
      body.append("image", this.#input.blob, fileName(this.#input));
      this.#work(body, copy(this.#input), fields);
    } catch (error) {
      showFault(by("work-fault"), error.message);
    }
  }

  async #work(body, before, { prompt, seed }) {
    const editing = this.#verb === "edit";
    const tile = new Tile(`Seed ${seed}`, this.#app.model.side ?? [before.height, before.width]);
    const pair = { before, after: null };
    const title = editing ? prompt : before.prompt || before.name || "Picture";
    pair.element = make(
      "article",
      { class: "run pair", "data-count": "2" },
      make(
        "header",
        {},
        make("h2", { text: title }),
        iconButton("close", "Remove this result", () => this.#close(pair)),
      ),
      make("div", { class: "tiles" }, this.#given(pair, tile), tile.element),
    );
    by("work-empty").hidden = true;
    by("pairs").prepend(pair.element);
    pair.element.scrollIntoView({ block: "nearest" });
    this.#pairs.unshift(pair);
    for (const old of this.#pairs.slice(KEPT)) this.#remove(old);
    const done = (_, picture) => {
      const details = editing ? "edited" : "reconstructed";
      pair.after = Object.assign(picture, {
        prompt: editing ? prompt : before.prompt,
        name: `${details}-${before.name ?? "picture"}`,
        details,
      });
      tile.done(this.#app, picture, () => this.pictures);
    };
    try {
      const preview = (_, ...what) => tile.preview(...what);
      const whole = await this.#toggle.run((signal) =>
        draw("v1/images/edits", body, { count: 1, signal, preview, done }),
      );
      if (whole) sayAloud(editing ? "The picture is edited." : "The picture is reconstructed.");
      else this.#remove(pair);
    } catch (error) {
      this.#remove(pair);
      const again = error.again ? () => this.#toggle.running || this.#submit() : null;
      showFault(by("work-fault"), error.message, again);
    }
  }

  /** The picture that was given, in a frame like the other's. */
  #given(pair, tile) {
    const { before } = pair;
    const frame = make(
      "div",
      { class: "frame" },
      opener(this.#app, before, () => this.pictures, "The picture that was given"),
    );
    frame.style.aspectRatio = tile.element.firstElementChild.style.aspectRatio;
    const size = `${before.width} × ${before.height}`;
    return make(
      "figure",
      { class: "tile" },
      frame,
      make(
        "figcaption",
        {},
        make("span", { class: "seed", text: `Given, ${size}` }),
        make("span", { class: "row acts" }),
      ),
    );
  }

  #close(pair) {
    if (!pair.after) this.#toggle.cancel(true);
    this.#remove(pair);
  }

  #remove(pair) {
    pair.element.remove();
    drop(pair.before);
    if (pair.after) drop(pair.after);
    this.#pairs = this.#pairs.filter((other) => other !== pair);
    by("work-empty").hidden = this.#pairs.length > 0;
  }

  /** All pictures as they stand here. */
  get pictures() {
    return this.#pairs.flatMap(({ before, after }) => (after ? [before, after] : [before]));
  }
}
