"""Sends pictures through image encoder and pixel decoder, and says how near what comes out is.

A file shows each picture beside its reconstruction; a folder has the reconstructions alone.
"""

import argparse
from collections.abc import Sequence
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from blip3o_jax import asking
from blip3o_jax.evaluate import distances

if TYPE_CHECKING:
  from blip3o_jax import Picture

DRAWING = ("steps", "pixel_steps", "guidance", "size")


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Rebuilds and writes PNGs; returns the exit status."""
  asking.add_options(parser)
  parser.add_argument("image", nargs="+", type=Path)
  asking.add_output(parser, "reconstructed.png")
  parser.add_argument("--json", action="store_true", help="a line of JSON for each picture")
  asking.add_drawing(parser, *DRAWING)
  options = parser.parse_args(args)
  images = [asking.open_image(path, options.friendly) for path in options.image]
  model = asking.load(options, "reconstruct")
  with asking.bar() as progress:
    told = asking.given(options, DRAWING)
    made = model.reconstruct(images, options.seed, progress=progress, every=asking.EVERY, **told)
  made = asking.made_of(made, options.image, options.friendly)
  shown_as, made_as = (
    model.features(x).reshape(len(x), -1).astype(np.float64) for x in (images, _of(made))
  )
  beside = []
  for path, image, picture, likeness in zip(
    options.image, images, made, distances.cosines(shown_as, made_as), strict=True
  ):
    shown = model.framed(image, picture.pixels.shape[:2])
    found = {"psnr": psnr(shown, picture.pixels), "features": float(likeness)}
    beside += [shown, picture.pixels]
    if options.json:
      print(json.dumps({"image": str(path), **found}))
    else:
      print(f"{path}: PSNR {found['psnr']:.1f} dB, cosine of the features {found['features']:.3f}")
  if options.output.suffix.lower() == ".png":
    _save_pairs(np.stack(beside), made, options.output)
  else:
    asking.save(made, options.output)
  return 0


def psnr(a: np.ndarray, b: np.ndarray) -> float:
  """Peak signal-to-noise ratio of two pictures uint8[H, W, 3] in dB; infinite where equal."""
  error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
  return 10 * math.log10(255**2 / error) if error else math.inf


def _of(pictures: Sequence["Picture"]) -> list[Any]:
  return [picture.pixels for picture in pictures]


def _save_pairs(images: np.ndarray, made: Sequence["Picture"], output: Path) -> None:
  """One PNG, a row for each picture and its reconstruction."""
  from blip3o_jax.use import picture

  gap = np.full((images.shape[1], 2, 3), 255, np.uint8)
  rows = [np.concatenate([a, gap, b], 1) for a, b in zip(images[::2], images[1::2], strict=True)]
  line = np.full((2, rows[0].shape[1], 3), 255, np.uint8)
  whole = np.concatenate([x for row in rows for x in (row, line)][:-1])
  metadata = made[0].metadata if len(made) == 1 else {"pictures": [m.metadata for m in made]}
  picture.write(output, picture.encode(whole, metadata))
  print(output)
