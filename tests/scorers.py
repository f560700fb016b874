"""What official scorers read of a folder, from what is known of them: names, counts and crops.

Nothing here scores. A scorer's own errors are errors here too.
"""

import fnmatch
import json
import os
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np
from PIL import Image


def geneval(root: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
  """(metadata, picture) of each sample; other names are passed over."""
  found = []
  for folder in sorted(os.listdir(root)):
    if folder.isdigit() and (root / folder).is_dir():
      metadata = json.loads((root / folder / "metadata.jsonl").read_text())
      for name in sorted(os.listdir(root / folder / "samples")):
        digits, dot, _ = name.partition(".")
        if digits.isdigit() and dot and name[len(digits) :].startswith(".png"):
          found.append((metadata, opened(root / folder / "samples" / name)))
  return found


class Crops(NamedTuple):
  """What DPG-Bench's scorer sees: the tiles of each item, and the names that it fails on."""

  tiles: dict[str, list[np.ndarray]]
  failed: list[str]


def dpg(root: Path, ids: set[str], resolution: int, pic_num: int = 4) -> Crops:
  crops = Crops({}, [])
  for name in sorted(os.listdir(root)):
    try:
      with Image.open(root / name) as image:
        image.load()
        item = name.split(".")[0]
        if item not in ids:
          raise KeyError(item)
        places = [(0, 0), (1, 0), (0, 1), (1, 1)][:pic_num]
        boxes = [(x * resolution, y * resolution) for x, y in places]
        crops.tiles[item] = [
          np.asarray(image.crop((x, y, x + resolution, y + resolution))) for x, y in boxes
        ]
    except (OSError, KeyError):
      crops.failed.append(name)
  return crops


def wise(root: Path, prompts: list[dict[str, Any]]) -> dict[int, np.ndarray]:
  places = {row["prompt_id"]: root / f"{row['prompt_id']}.png" for row in prompts}
  return {number: opened(path) for number, path in places.items() if path.exists()}


def oneig(root: Path, category: str, model: str, key: str, side: int) -> list[np.ndarray] | None:
  """The parts of a prompt's file; None where not exactly one name begins with the id."""
  names = [n for n in os.listdir(root / category / model) if fnmatch.fnmatch(n, f"{key}*")]
  if len(names) != 1:
    return None
  image = opened(root / category / model / names[0])
  high, wide = image.shape[0] // side, image.shape[1] // side
  tiles = [
    image[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
    for i in range(side)
    for j in range(side)
  ]
  return [tile for tile in tiles if tile.any()]


def gedit(home: Path, key: str) -> tuple[np.ndarray, ...] | None:
  """(input, output at its size) of MODEL/fullset/TASK/LANGUAGE/KEY; None where one is absent."""
  before, after = home / f"{key}_SRCIMG.png", home / f"{key}.png"
  if not before.exists() or not after.exists():
    return None
  source = Image.open(before)
  return np.asarray(source), np.asarray(Image.open(after).convert("RGB").resize(source.size))


def opened(path: Path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB"))
