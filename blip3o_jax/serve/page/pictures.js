// Pictures, of the person or of the server: kept as blobs, shown by object URLs.
//
// A picture is {blob, url, width, height, name, prompt, seed, details, more}, where `more` draws
// variations of it.

import { Fault } from "./api.js";
import { icon, iconButton, make } from "./elements.js";

const SMALL = 128; // pixels a side below which pixels are shown as squares

/** A picture of bytes in base64. */
export async function ofBase64(text, format, known) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return of(new Blob([bytes], { type: `image/${format}` }), known);
}

/** A picture of a data URL. */
export function ofDataUrl(url, known) {
  const [head, text] = url.split(",", 2);
  return ofBase64(text, head.slice("data:image/".length).split(";")[0], known);
}

/** A picture of bytes, decoded once to know that it can be. */
export async function of(blob, known) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Fault("That is no picture that this browser can show.");
  }
  return { blob, url, width: image.naturalWidth, height: image.naturalHeight, ...known };
}

/** The text of a data URL. */
export function dataUrl(picture) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Fault(`${picture.name} can no longer be read.`));
    reader.readAsDataURL(picture.blob);
  });
}

/** The same picture with a URL of its own, which outlives the other's. */
export const copy = (picture) => ({
  ...picture,
  more: null,
  url: URL.createObjectURL(picture.blob),
});

/** Lets go of a picture's memory. */
export function drop(picture) {
  URL.revokeObjectURL(picture.url);
}

/** An image element of a picture. */
export function shown(picture, alt) {
  const image = make("img", {
    src: picture.url,
    alt,
    width: picture.width,
    height: picture.height,
  });
  markSmall(image, picture);
  return image;
}

/** Small pictures are enlarged without a blur. */
export function markSmall(image, { width, height }) {
  image.classList.toggle("squares", Math.max(width, height) <= SMALL);
}

/** The name of a picture's file. */
export function fileName(picture) {
  const words = (picture.prompt || picture.name || "picture").normalize("NFKD").toLowerCase();
  const slug =
    words
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 60) || "picture";
  const form = picture.blob.type.slice("image/".length);
  return `${slug}${picture.seed === undefined ? "" : `-${picture.seed}`}.${form}`;
}

/**
 * What can be done with a picture, as buttons.
 * @param {object} app See page.js.
 */
export function actions(app, picture) {
  const can = app.model.verbs;
  const found = [];
  if (picture.more)
    found.push(iconButton("more", `Variations of seed ${picture.seed}`, () => picture.more()));
  if (can.includes("chat")) {
    found.push(iconButton("ask", "Ask about this picture", () => app.ask(picture)));
  }
  if (app.reworks) {
    found.push(iconButton("rework", `${app.reworks} this picture`, () => app.rework(picture)));
  }
  const label = "Download, with prompt and seed in the file";
  found.push(
    make(
      "a",
      {
        class: "icon",
        href: picture.url,
        download: fileName(picture),
        title: label,
        "aria-label": label,
      },
      icon("download"),
    ),
  );
  return found;
}

/** A button that shows a picture large; `list` gives those that stand beside it. */
export function opener(app, picture, list, alt) {
  return make(
    "button",
    {
      type: "button",
      class: "open",
      "aria-label": `Show large: ${alt}`,
      onclick: () => app.view(picture, list()),
    },
    shown(picture, alt),
  );
}
