"""Folders of pictures for the checks of benchmarks, and what a check finds in them."""

from pathlib import Path

import numpy as np
from PIL import Image

from blip3o_jax.evaluate import benchmarks
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.use import picture


def check(name: str, folder: Path, prompts: Path | None = None, **asked) -> list[tuple[int, str]]:
  """(harm, text and files) of the findings, the worst first."""
  found = benchmarks.LAYOUTS[name]
  given = Asked(**{"number": 0, "prompts": (prompts,) if prompts else (), **asked})
  report = found.check(folder, found.entries(given) if prompts else None, given)
  return [(f.harm, f"{f.text} {' '.join(f.files)}") for f in report.sorted()]


def one(found: list[tuple[int, str]], harm: int, *texts: str) -> None:
  """There is exactly one finding, and it says all of this."""
  assert len(found) == 1, found
  assert found[0][0] == harm
  for text in texts:
    assert text in found[0][1], found


def photo(seed: int, side: int = 64) -> np.ndarray:
  """uint8[side, side, 3] as smooth as photos are, with an object in its middle."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
  x = np.array(small.resize((side, side), Image.Resampling.BICUBIC))
  x[side // 4 : side // 2 + 5, side // 3 : side // 2 + 3] = rng.integers(0, 256, 3)
  return np.clip(x + rng.normal(0, 3, x.shape), 0, 255).astype(np.uint8)


def save(path: Path, x: np.ndarray, prompt: str | None = None) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  if prompt is None:
    Image.fromarray(x).save(path)
  else:
    picture.write(path, picture.encode(x, {"prompt": prompt, "seed": 0}))
  return path
