// One picture, as large as the window, with its neighbours a key away.

import { by } from "./elements.js";
import { actions, markSmall } from "./pictures.js";

export class Viewer {
  #app;
  #list = [];
  #place = 0;

  constructor(app) {
    this.#app = app;
    const dialog = by("viewer");
    by("viewer-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.classList.contains("stage")) dialog.close();
    });
    dialog.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) this.#turn(by);
    });
    for (const button of dialog.querySelectorAll("[data-turn]")) {
      button.addEventListener("click", () => this.#turn(Number(button.dataset.turn)));
    }
  }

  /** Shows a picture of a list. */
  open(picture, list) {
    this.#list = list;
    this.#place = list.indexOf(picture);
    this.#show();
    by("viewer").showModal();
  }

  close() {
    by("viewer").close();
  }

  #turn(by) {
    const next = this.#place + by;
    if (next < 0 || next >= this.#list.length) return;
    this.#place = next;
    this.#show();
  }

  #show() {
    const picture = this.#list[this.#place];
    const image = by("viewer-image");
    const size = `${picture.width} × ${picture.height}`;
    image.src = picture.url;
    image.alt = picture.prompt || picture.name || "Picture";
    markSmall(image, picture);
    by("viewer-prompt").textContent = picture.prompt || picture.name || "";
    by("viewer-details").textContent = [
      picture.seed === undefined ? "" : `Seed ${picture.seed}`,
      picture.details,
      size,
    ]
      .filter(Boolean)
      .join(" · ");
    by("viewer-actions").replaceChildren(...actions(this.#app, picture));
    for (const button of by("viewer").querySelectorAll("[data-turn]")) {
      const next = this.#place + Number(button.dataset.turn);
      button.disabled = next < 0 || next >= this.#list.length;
    }
  }
}
