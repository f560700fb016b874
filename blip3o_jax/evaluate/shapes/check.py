"""The scorer scored: how often it accepts true pictures and rejects wrong ones, by kind of error.

The pictures are rendered from the test prompts' metadata, as they are, with a decoder's mild blur
and noise, and with exactly one thing wrong.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any
from typing import Final

import numpy as np

from blip3o_jax.data.shapes import CATEGORIES
from blip3o_jax.data.shapes import COLORS
from blip3o_jax.data.shapes import EDITS
from blip3o_jax.data.shapes import PALETTE
from blip3o_jax.data.shapes import SHAPES
from blip3o_jax.data.shapes import SIZE
from blip3o_jax.data.shapes import Edit
from blip3o_jax.data.shapes import Scene
from blip3o_jax.data.shapes import edit
from blip3o_jax.data.shapes import edit_at
from blip3o_jax.data.shapes import render_many
from blip3o_jax.data.shapes import scene
from blip3o_jax.data.shapes import scene_of
from blip3o_jax.data.shapes import test_prompts
from blip3o_jax.data.shapes.scenes import INVERSE
from blip3o_jax.evaluate.shapes import judge_detections
from blip3o_jax.evaluate.shapes.detect import detect_many
from blip3o_jax.evaluate.shapes.edits import judge_edits

Include = list[dict[str, Any]]
WRONGS: Final = ("color", "shape", "count", "relation", "noise", "blob", "bump", "blank")
WRONG_EDITS: Final = ("copy", "other", "beside", "size", "background")
_ASIDE: Final = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}


def soften(images: np.ndarray, sigma: float, noise: float, rng: np.random.Generator) -> np.ndarray:
  """Gaussian blur (sigma in pixels) and noise (standard deviation of 255): uint8 as the input."""
  taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * sigma**2))
  taps /= taps.sum()
  out: np.ndarray = images.astype(np.float32)
  for axis in (1, 2):
    width = [(3, 3) if a == axis else (0, 0) for a in range(out.ndim)]
    padded = np.pad(out, width, mode="edge")
    size = out.shape[axis]
    out = np.zeros_like(out)
    for k, weight in enumerate(taps.astype(np.float32)):
      out += weight * np.take(padded, range(k, k + size), axis)
  out = out + rng.normal(0, noise, out.shape)
  return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _paint(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Coverage [n, h, w] in random palette colours on a light ground: uint8[n, h, w, 3]."""
  ink = np.asarray([PALETTE[c] for c in COLORS], np.float32)[
    rng.integers(len(COLORS), size=len(masks))
  ]
  return np.rint(243 + masks[..., None] * (ink[:, None, None, :] - 243)).astype(np.uint8)


def _polar(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  y, x = np.mgrid[:SIZE, :SIZE] + 0.5
  center = rng.uniform(10, SIZE - 10, (count, 2, 1, 1))
  x, y = x - center[:, 0], y - center[:, 1]
  return np.hypot(x, y), np.arctan2(y, x)


def blobs(count: int, rng: np.random.Generator) -> np.ndarray:
  """One sharp uneven blob a picture, as large as an object: uint8[n, 64, 64, 3].

  The radius varies by two waves of 2 to 6 turns, of 25 to 50 % and half as much.
  """
  radius, angle = _polar(count, rng)
  size = rng.uniform(5, 7, (count, 1, 1))
  depth = rng.uniform(0.25, 0.5, (count, 1, 1))
  edge = np.ones_like(radius)
  for part in (1.0, 0.5):
    turns = rng.integers(2, 7, (count, 1, 1))
    edge += part * depth * np.cos(turns * angle + rng.uniform(0, 2 * np.pi, (count, 1, 1)))
  return _paint(np.clip(0.5 - (radius - size * edge), 0, 1), rng)


def bumps(count: int, rng: np.random.Generator) -> np.ndarray:
  """One soft Gaussian bump a picture: uint8[n, 64, 64, 3]."""
  radius, _ = _polar(count, rng)
  return _paint(np.exp(-(radius**2) / (2 * rng.uniform(3, 5, (count, 1, 1)) ** 2)), rng)


def noises(count: int, rng: np.random.Generator) -> np.ndarray:
  """Noise, white for half of the pictures and blurred by 1 to 6 pixels for the others."""
  white = rng.integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
  sigma = rng.uniform(1, 6, count)
  frequency = np.fft.fftfreq(SIZE)
  square = frequency[:, None] ** 2 + frequency[None, :] ** 2
  low = np.exp(-2 * (np.pi * sigma[:, None, None]) ** 2 * square)[..., None]
  smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=white.shape), axes=(1, 2)) * low, axes=(1, 2))
  smooth = smooth.real / smooth.real.std((1, 2, 3), keepdims=True)
  soft = np.clip(128 + 60 * smooth, 0, 255).astype(np.uint8)
  return np.where((np.arange(count) % 2 == 0)[:, None, None, None], white, soft)


def spoil(include: Include, wrong: str, rng: np.random.Generator) -> Include:
  """Metadata with one thing wrong, or [] where this cannot be wrong (no colour is named, ...)."""
  out = [dict(e) for e in include]
  k = int(rng.integers(len(out)))
  if wrong == "color":
    if "color" not in out[k]:
      return []
    out[k]["color"] = str(rng.choice([c for c in COLORS if c != out[k]["color"]]))
  elif wrong == "shape":
    out[k]["class"] = str(rng.choice([s for s in SHAPES if s not in {e["class"] for e in include}]))
  elif wrong == "relation":
    if "position" not in out[-1]:
      return []
    how = out[-1]["position"][0]
    out[-1]["position"] = [(INVERSE if rng.random() < 0.5 else _ASIDE)[how], 0]
  else:
    for entry in out:
      entry.pop("position", None)
    if out[k]["count"] > 1 and rng.random() < 0.5:
      out[k]["count"] -= 1
    elif len(out) > 1 and rng.random() < 0.5:
      del out[k]
    else:
      out.append({"class": str(rng.choice(SHAPES)), "count": 1})
  return out


def _spoiled(prompts: Sequence[dict[str, Any]], wrong: str, count: int, seed: int) -> tuple:
  """(scenes, metadata that they violate) for a kind of error."""
  rng = np.random.default_rng([seed, WRONGS.index(wrong)])
  scenes: list[Scene] = []
  asked: list[Include] = []
  index = 0
  while len(scenes) < count:
    index += 1
    prompt = prompts[index % len(prompts)]
    changed = spoil(prompt["include"], wrong, rng)
    if not changed:
      continue
    shown = scene_of(changed, seed, index)
    if wrong == "relation":
      # A diagonal may satisfy two relations: keep those that are aligned, or the other way round.
      b, a = shown.objects
      inverse = changed[-1]["position"][0] == INVERSE[prompt["include"][-1]["position"][0]]
      if not inverse and a.row != b.row and a.col != b.col:
        continue
    scenes.append(shown)
    asked.append(prompt["include"])
  return scenes, asked


def _rate(images: np.ndarray, asked: Sequence[Include]) -> float:
  marks = [
    judge_detections(found, include).correct
    for found, include in zip(detect_many(images), asked, strict=True)
  ]
  return float(np.mean(marks))


def _confusion(images: np.ndarray, scenes: Sequence[Scene]) -> dict[str, dict[str, dict[str, int]]]:
  """{"shape" | "color": {true: {found or "none": objects}}}, by the nearest detection in 5 px."""
  out: dict[str, dict[str, dict[str, int]]] = {
    "shape": {s: dict.fromkeys((*SHAPES, "none"), 0) for s in SHAPES},
    "color": {c: dict.fromkeys((*COLORS, "none"), 0) for c in COLORS},
  }
  for found, shown in zip(detect_many(images), scenes, strict=True):
    for o in shown.objects:
      near = [d for d in found if np.hypot(d.x - o.x, d.y - o.y) <= 5]
      for field, true in (("shape", o.shape), ("color", o.color)):
        name = getattr(near[0], field) if near else ""
        out[field][true][name or "none"] += 1
  return out


def measure(count: int = 600, seed: int = 0) -> dict[str, Any]:
  """Error rates of the scorer on rendered test prompts.

  Args:
    count: pictures of each category and of each kind of error.

  Returns:
    `accuracy` and `accepted` {category: rate} of true renderings; `softened` the same under blur
    sigma 0.6 and noise 4 of 255 (about 32 dB); `rejection` (the mean) and `rejected` {kind: rate}
    of wrong pictures; `confusion` and `confusion_softened` {"shape" | "color": {true: {found:
    objects}}}.
  """
  rng = np.random.default_rng([seed, 99])
  out: dict[str, Any] = {"accepted": {}, "softened": {}, "rejected": {}}
  prompts = [p for c in CATEGORIES for p in test_prompts(c)]
  for category in CATEGORIES:
    mine = test_prompts(category)
    asked = [mine[i % len(mine)]["include"] for i in range(count)]
    images = render_many([scene_of(include, seed, i) for i, include in enumerate(asked)])
    out["accepted"][category] = _rate(images, asked)
    out["softened"][category] = _rate(soften(images, 0.6, 4, rng), asked)
  for wrong in ("color", "shape", "count", "relation"):
    scenes, asked = _spoiled(prompts, wrong, count, seed)
    out["rejected"][wrong] = 1 - _rate(render_many(scenes), asked)
  # Junk must not pass even for the easiest request: one object, whatever it looks most like.
  blank = np.full((count, SIZE, SIZE, 3), 243, np.uint8)
  junk = {"noise": noises(count, rng), "blob": blobs(count, rng), "bump": bumps(count, rng)}
  for wrong, images in (junk | {"blank": blank}).items():
    named = [[d for d in found if d.shape and d.color] for found in detect_many(images)]
    out["rejected"][wrong] = float(np.mean([not found for found in named]))
  out["accuracy"] = float(np.mean(list(out["accepted"].values())))
  out["rejection"] = float(np.mean(list(out["rejected"].values())))
  scenes = [scene(seed, i, "test") for i in range(2 * count)]
  images = render_many(scenes)
  out["confusion"] = _confusion(images, scenes)
  out["confusion_softened"] = _confusion(soften(images, 0.6, 4, rng), scenes)
  return out


def spoil_edit(asked: Edit, wrong: str) -> Scene | None:
  """A scene that is not what an edit asks for, or None where it cannot be wrong in this way.

  "copy" is the input; "other" what another kind of edit makes of it. The rest are the target, but
  "beside": one of the other objects was edited as well; "size": it was shrunk; "background":
  darkened.

  Raises:
    ValueError: none of `WRONG_EDITS`.
  """
  if wrong not in WRONG_EDITS:
    raise ValueError(f"wrong {wrong!r}: expected one of {', '.join(WRONG_EDITS)}")
  after, number = asked.after, EDITS.index(asked.kind)
  turn = (*EDITS[number + 1 :], *EDITS[:number])
  if wrong == "copy":
    return asked.before
  if wrong == "other":
    found = next(filter(None, (edit(asked.before, kind) for kind in turn)))
    return found.after
  if wrong == "background":
    r, g, b = (c - 25 for c in after.background)
    return dataclasses.replace(after, background=(r, g, b))
  if wrong == "size" and asked.kept:
    shrunk = dataclasses.replace(asked.kept[0], half=0.7 * asked.kept[0].half)
    others = tuple(o for o in after.objects if o != asked.kept[0])
    return dataclasses.replace(after, objects=(*others, shrunk))
  both = filter(None, (edit(after, kind) for kind in turn)) if wrong == "beside" else ()
  hurt = (b.after for b in both if not {*asked.kept} <= {*b.after.objects})
  return next(hurt, None)


def _edit_rate(images: np.ndarray, asked: Sequence[Edit]) -> float:
  return float(np.mean([verdict.correct for verdict in judge_edits(images, asked)]))


def measure_edits(count: int = 600, seed: int = 0) -> dict[str, dict[str, float]]:
  """Error rates of the scorer of edits on test edits.

  Args:
    count: edits of each kind.

  Returns:
    `accepted` {kind: rate} of targets, `softened` the same as in `measure`, `rejected` {wrong:
    rate} of pictures that are wrong as `spoil_edit` makes them, over all kinds.
  """
  rng = np.random.default_rng([seed, 98])
  out: dict[str, dict[str, float]] = {"accepted": {}, "softened": {}, "rejected": {}}
  asked = {kind: [edit_at(seed, i, "test", kind) for i in range(count)] for kind in EDITS}
  for kind, edits in asked.items():
    images = render_many([e.after for e in edits])
    out["accepted"][kind] = _edit_rate(images, edits)
    out["softened"][kind] = _edit_rate(soften(images, 0.6, 4, rng), edits)
  for wrong in WRONG_EDITS:
    every = ((spoil_edit(e, wrong), e) for e in itertools.chain(*asked.values()))
    spoiled = [(scene, e) for scene, e in every if scene is not None]
    images = render_many([scene for scene, _ in spoiled])
    out["rejected"][wrong] = 1 - _edit_rate(images, [e for _, e in spoiled])
  return out
