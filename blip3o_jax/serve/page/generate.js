// Generate: pictures of a prompt, in a gallery that has the newest on top.

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
import { by, count, examples, fill, iconButton, make, sayAloud, showFault } from "./elements.js";
import { drop } from "./pictures.js";
import { noteWords } from "./words.js";

const COUNTS = 8;
const KEPT = 40; // prompts in the gallery
const WIDE = matchMedia("(min-width: 800px)");

export class Generate {
  #app;
  #runs = []; // {prompt, n, seed, steps, guidance, pictures, element}, the newest first
  #toggle = new Toggle(by("draw-go"), "Draw");

  constructor(app) {
    this.#app = app;
    const form = by("draw");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.#toggle.cancel()) this.#submit();
    });
    sendOnEnter(by("prompt"), form);
    addCounts(4);
    by("settings").open = WIDE.matches;
    by("seed").value = newSeed();
    by("new-seed").addEventListener("click", () => (by("seed").value = newSeed()));
    by("seed").addEventListener("input", () => (by("fresh").checked = false));
    for (const name of ["steps", "guidance"]) pair(name);
    form.addEventListener("input", tellShort);
    form.addEventListener("click", () => queueMicrotask(tellShort));
  }

  /** What the model is, once it is known. */
  start(model) {
    setNumber("steps", model.options.generate.steps);
    setNumber("guidance", model.options.generate.guidance);
    noteWords(by("prompt"), "prompt-words", model.words);
    examples(by("prompts"), model.prompts, (text) => {
      fill(by("prompt"), text);
      if (!this.#toggle.running) this.#submit();
    });
    tellShort();
  }

  #submit() {
    showFault(by("draw-fault"));
    try {
      if (by("fresh").checked && this.#runs.length) by("seed").value = newSeed();
      this.#draw(asked());
    } catch (error) {
      showFault(by("draw-fault"), error.message);
    }
  }

  /** Pictures of the same prompt with the next seeds that it has not had. */
  #vary(run, { seed }) {
    this.#app.leaveView();
    showFault(by("draw-fault"));
    if (this.#toggle.running) {
      return showFault(by("draw-fault"), "Wait until these pictures are drawn, or cancel them.");
    }
    const same = this.#runs.filter(
      (r) => r.prompt === run.prompt && r.steps === run.steps && r.guidance === run.guidance,
    );
    const taken = new Set(same.flatMap((r) => r.pictures.map((p) => p.seed)));
    const n = countAsked();
    let first = seed + 1;
    for (let i = 0; i < n; i++) if (taken.has(first + i)) [first, i] = [first + i + 1, -1];
    fill(by("prompt"), run.prompt);
    by("seed").value = first;
    by("fresh").checked = false;
    if (run.steps !== undefined) setNumber("steps", run.steps);
    if (run.guidance !== undefined) setNumber("guidance", run.guidance);
    tellShort();
    by("draw").scrollIntoView({ block: "nearest" });
    by("gallery").scrollIntoView({ block: "nearest" });
    this.#draw({ ...run, n, seed: first });
  }

  async #draw({ prompt, n, seed, steps, guidance }) {
    const run = { prompt, n, seed, steps, guidance, pictures: [] };
    const tiles = Array.from(
      { length: n },
      (_, i) => new Tile(`Seed ${seed + i}`, this.#app.model.side ?? [1, 1]),
    );
    this.#add(run, tiles);
    const body = { prompt, n, seed, stream: true, partial_images: PREVIEWS };
    if (steps !== undefined) body.num_inference_steps = steps;
    if (guidance !== undefined) body.guidance_scale = guidance;
    const left = new Set(tiles);
    const done = (place, picture) => {
      Object.assign(picture, {
        prompt,
        details: detailsOf(run),
        more: () => this.#vary(run, picture),
      });
      run.pictures.push(picture);
      left.delete(tiles[place]);
      tiles[place].done(this.#app, picture, () => this.pictures);
    };
    try {
      const whole = await this.#toggle.run((signal) =>
        draw("v1/images/generations", body, {
          count: n,
          signal,
          done,
          preview: (i, ...what) => tiles[i].preview(...what),
        }),
      );
      if (whole) sayAloud(`${count(n, "picture")} drawn.`);
      else this.#end(run, left, "Cancelled");
    } catch (error) {
      this.#failed(run, left, error);
    }
  }

  #failed(run, left, error) {
    const again = error.again
      ? () => {
          showFault(by("draw-fault"));
          this.#remove(run);
          if (!this.#toggle.running) this.#draw(run);
        }
      : null;
    this.#end(run, left);
    showFault(
      run.pictures.length ? run.element.querySelector(".fault") : by("draw-fault"),
      error.message,
      again,
    );
    if (!run.pictures.length) this.#remove(run);
  }

  /** Takes away the tiles that stayed empty. */
  #end(run, left, note = "") {
    for (const tile of left) tile.remove();
    run.element.querySelector(".note").textContent = note;
    if (note) sayAloud(note);
  }

  #add(run, tiles) {
    const about = [count(run.n, "picture"), detailsOf(run)].filter(Boolean).join(" · ");
    run.element = make(
      "article",
      { class: "run", "data-count": String(run.n) },
      make(
        "header",
        {},
        make(
          "div",
          {},
          make("h2", { text: run.prompt }),
          make("p", { class: "quiet" }, `${about} `, make("span", { class: "note" })),
        ),
        iconButton("close", "Remove these pictures", () => this.#close(run)),
      ),
      make("p", { class: "fault", role: "alert" }),
      make("div", { class: "tiles" }, ...tiles.map((tile) => tile.element)),
    );
    by("generate-empty").hidden = true;
    by("gallery").prepend(run.element);
    this.#runs.unshift(run);
    for (const old of this.#runs.slice(KEPT)) this.#remove(old);
  }

  #close(run) {
    if (this.#runs[0] === run) this.#toggle.cancel(true);
    this.#remove(run);
  }

  #remove(run) {
    run.element.remove();
    run.pictures.forEach(drop);
    this.#runs = this.#runs.filter((other) => other !== run);
    by("generate-empty").hidden = this.#runs.length > 0;
  }

  /** All pictures as they stand in the gallery. */
  get pictures() {
    return this.#runs.flatMap((run) => run.pictures.toSorted((a, b) => a.seed - b.seed));
  }
}

const detailsOf = ({ steps, guidance }) =>
  [steps && count(steps, "step"), guidance && `guidance ${guidance}`].filter(Boolean).join(" · ");

const countAsked = () => Number(document.querySelector("#counts input:checked").value);

/** What the form asks for. Throws a Fault. */
function asked() {
  const prompt = by("prompt").value.trim();
  if (!prompt) throw wrong(by("prompt"), "Say what the picture should show.");
  const run = { prompt, n: countAsked(), seed: seedOf(by("seed")) };
  if (!by("steps-field").hidden) run.steps = numberOf(by("steps"), "Steps");
  if (!by("guidance-field").hidden) run.guidance = numberOf(by("guidance"), "Guidance");
  return run;
}

function addCounts(chosen) {
  for (let n = 1; n <= COUNTS; n++) {
    const radio = make("input", {
      type: "radio",
      name: "count",
      value: String(n),
      checked: n === chosen,
      class: "unseen",
    });
    by("counts").append(make("label", {}, radio, make("span", { text: String(n) })));
  }
}

/** A number and its slider, which is for the pointer alone. */
function pair(name) {
  const [number, slider] = [by(name), by(`${name}-range`)];
  slider.addEventListener("input", () => (number.value = slider.value));
  number.addEventListener("input", () => (slider.value = number.value));
}

/** Sets a number and its slider; without a value the model has none, and the field goes. */
function setNumber(name, value) {
  by(`${name}-field`).hidden = typeof value !== "number";
  by(name).value = by(`${name}-range`).value = value ?? "";
}

/** The settings in a line, for when they are closed. */
function tellShort() {
  const seed = by("fresh").checked ? "new seed" : `seed ${by("seed").value}`;
  by("settings-short").textContent = `${count(countAsked(), "picture")}, ${seed}`;
}
