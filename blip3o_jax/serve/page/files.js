// Files of the person: chosen, dropped or pasted, and checked before they are sent.

import { Fault } from "./api.js";
import { by, make } from "./elements.js";
import { drop, of } from "./pictures.js";

const TAKEN = ["image/png", "image/jpeg", "image/webp", "image/gif"]; // by the server

/**
 * A file that somebody chose, as a picture; of a format that the server does not take, as PNG.
 * @throws {Fault} It is no picture, or a larger one than the server takes.
 */
export async function ofFile(file, model) {
  const name = file.name || "The picture";
  const kinds = "Choose a PNG, JPEG, WebP or GIF file.";
  if (file.type && !file.type.startsWith("image/"))
    throw new Fault(`${name} is not a picture. ${kinds}`);
  tooLarge(name, file, model);
  let found;
  try {
    found = await of(file, { name });
  } catch {
    throw new Fault(`${name} is not a picture that can be read. ${kinds}`);
  }
  if (found.width * found.height > model.max_image_pixels) {
    drop(found);
    throw new Fault(
      `${name} has ${found.width} × ${found.height} pixels; ` +
        `the server takes at most ${model.max_image_pixels.toLocaleString("en")} in all.`,
    );
  }
  if (TAKEN.includes(file.type)) return found;
  return asPng(found, model);
}

function tooLarge(name, blob, model) {
  if (blob.size <= model.max_image_bytes) return;
  throw new Fault(
    `${name} has ${inUnits(blob.size)}; ` +
      `the server takes at most ${inUnits(model.max_image_bytes)}.`,
  );
}

async function asPng(picture, model) {
  const image = new Image();
  image.src = picture.url;
  await image.decode();
  const canvas = make("canvas", { width: picture.width, height: picture.height });
  canvas.getContext("2d").drawImage(image, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  tooLarge(picture.name, blob, model);
  return { ...picture, blob };
}

const inUnits = (bytes) =>
  bytes < 2 ** 20 ? `${Math.ceil(bytes / 2 ** 10)} kB` : `${Math.ceil(bytes / 2 ** 17) / 8} MB`;

/** Takes files that are chosen, or dropped on a place. */
export function takeFiles(place, input, take) {
  input.addEventListener("change", () => {
    const chosen = [...input.files];
    input.value = "";
    if (chosen.length) take(chosen);
  });
  let depth = 0;
  const over = (by) => place.classList.toggle("over", (depth = Math.max(0, depth + by)) > 0);
  place.addEventListener("dragenter", (event) => hasFiles(event) && over(1));
  place.addEventListener("dragleave", (event) => hasFiles(event) && over(-1));
  place.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    over(-depth);
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
}

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

/** A file that is dropped beside a place would replace the page. */
export function keepPage() {
  for (const name of ["dragover", "drop"]) {
    window.addEventListener(name, (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      const place = event.target.closest?.(".panel:not(#generate)");
      if (name === "dragover" && !place) event.dataTransfer.dropEffect = "none";
    });
  }
}

/** Gives files that are pasted to whoever is shown. */
export function takePasted(take) {
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) =>
      file.type.startsWith("image/"),
    );
    if (files.length && !by("key-dialog").open && take(files)) event.preventDefault();
  });
}
