"""A scorer for the embedded set that looks at pixels only: is it what was asked for, and how often.

Its own error rates are measured by `check`.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Final

import numpy as np

from blip3o_jax.data.shapes import CATEGORIES
from blip3o_jax.data.shapes import RELATIONS
from blip3o_jax.data.shapes import Object
from blip3o_jax.data.shapes import Scene
from blip3o_jax.evaluate.shapes.detect import Detection
from blip3o_jax.evaluate.shapes.detect import detect_many

_MIN_OFFSET: Final = 4.0  # px between centres for a relation to hold
MAX_DISTANCE: Final = 4.0  # px, the largest error of a centre where an object is to be at a place


@dataclass(frozen=True)
class Verdict:
  """Whether a picture shows what was asked for; `reasons` names every mismatch."""

  correct: bool
  reasons: tuple[str, ...]


def _holds(a: Detection, how: str, b: Detection) -> bool:
  """Whether the centre of `a` is on that side of `b`, by at least 4 pixels (one axis counts)."""
  if how not in RELATIONS:
    raise ValueError(f"position {how!r}: expected one of {', '.join(RELATIONS)}")
  offset = a.x - b.x if how in ("left of", "right of") else a.y - b.y
  return -offset >= _MIN_OFFSET if how in ("left of", "above") else offset >= _MIN_OFFSET


def judge_detections(found: Sequence[Detection], include: Sequence[Mapping[str, Any]]) -> Verdict:
  """Compares detections with metadata [{class, count, color?, position?: [relation, entry]}].

  A prompt names everything in its picture, so counts are exact and an object that nobody asked for,
  or a group of pixels that is no object, is a mismatch. (GenEval proper ignores other classes.)

  Raises:
    ValueError: an unknown relation.
  """
  reasons = []
  junk = [d for d in found if not d.shape or not d.color]
  if junk:
    reasons.append(f"{len(junk)} group(s) of pixels that are no object")
  good = [d for d in found if d.shape and d.color]
  wanted = sum(entry.get("count", 1) for entry in include)
  if len(good) != wanted:
    reasons.append(f"{len(good)} object(s), expected {wanted}")
  groups: list[list[Detection]] = []
  for entry in include:
    color = entry.get("color", "")
    group = [d for d in good if d.shape == entry["class"] and color in ("", d.color)]
    groups.append(group)
    count = entry.get("count", 1)
    if len(group) != count:
      name = f"{color} {entry['class']}".strip()
      reasons.append(f"{len(group)} of {name}, expected {count}")
    if "position" in entry:
      how, other = entry["position"]
      targets = groups[other]
      if not any(_holds(a, how, b) for a in group for b in targets if a is not b):
        reasons.append(f"no {entry['class']} {how} a {include[other]['class']}")
  return Verdict(not reasons, tuple(reasons))


def judge(image: np.ndarray, include: Sequence[Mapping[str, Any]]) -> Verdict:
  """Whether a picture uint8[64, 64, 3] shows what metadata asks for, and why not.

  Raises:
    ValueError: another shape or dtype, or an unknown relation.
  """
  return judge_detections(detect_many(image[None])[0], include)


def is_at(found: Detection, o: Object, distance: float = MAX_DISTANCE) -> bool:
  """Whether a detection is an object of this shape and colour with its centre that near."""
  alike = (found.shape, found.color) == (o.shape, o.color)
  return alike and bool(np.hypot(found.x - o.x, found.y - o.y) <= distance)


def agree(
  images: np.ndarray, scenes: Sequence[Scene], distance: float = MAX_DISTANCE
) -> np.ndarray:
  """Whether pictures show exactly their scenes: every object, its colour, and its place.

  Args:
    images: uint8[n, 64, 64, 3], for example reconstructions.
    scenes: the n scenes.
    distance: largest error of a centre in pixels.

  Returns:
    bool[n].
  """
  out = []
  for found, scene in zip(detect_many(images), scenes, strict=True):
    ok = len(found) == len(scene.objects)
    for o in scene.objects:
      ok = ok and any(is_at(d, o, distance) for d in found)
    out.append(ok)
  return np.asarray(out, bool)


def interval(correct: float, count: float, z: float = 1.959964) -> tuple[float, float]:
  """Wilson's 95 % interval of a rate; (0, 1) for no trials."""
  if count <= 0:
    return 0.0, 1.0
  share, zz = correct / count, z * z / count
  middle = (share + zz / 2) / (1 + zz)
  spread = z / (1 + zz) * float(np.sqrt(share * (1 - share) / count + zz / (4 * count)))
  return max(0.0, middle - spread), min(1.0, middle + spread)


def rate(correct: int, count: int) -> dict[str, float]:
  """A share of `count` with its interval: {correct, count, rate, low, high}; 0 of no trials."""
  low, high = interval(correct, count)
  share = correct / count if count else 0.0
  return {"correct": correct, "count": count, "rate": share, "low": low, "high": high}


def _rate(marks: Sequence[bool]) -> dict[str, float]:
  return rate(sum(marks), len(marks))


def score(images: np.ndarray, prompts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  """Rates of pictures drawn for test prompts.

  Args:
    images: uint8[n, 64, 64, 3].
    prompts: n entries of `data.shapes.test_prompts` (several images a prompt: repeat it).

  Returns:
    See `grouped`; the groups are the categories that occur, `unseen` are prompts with a pair that
    the generator never trained on.

  Raises:
    ValueError: numbers differ, or an unknown category.
  """
  if len(images) != len(prompts):
    raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
  marks = []
  for found, prompt in zip(detect_many(images), prompts, strict=True):
    if prompt["tag"] not in CATEGORIES:
      raise ValueError(f"category {prompt['tag']!r}: expected one of {', '.join(CATEGORIES)}")
    correct = judge_detections(found, prompt["include"]).correct
    marks.append((prompt["tag"], bool(prompt["unseen"]), correct))
  return grouped(marks, CATEGORIES)


def grouped(
  marks: Iterable[tuple[str, bool, bool]], groups: Sequence[str]
) -> dict[str, dict[str, float]]:
  """Rates of what was judged.

  Args:
    marks: (group, whether it is of what training never showed, whether it is right) of each.
    groups: all that there are, in their order.

  Returns:
    {group: {correct, count, rate, low, high}} with Wilson's 95 % interval for each group that
    occurs; `overall`: the mean of their rates, with the interval of as many trials as would give
    its variance; `unseen`: what training never showed; `seen`: the others of the same groups, so
    that the two compare.
  """
  split: dict[tuple[str, bool], list[bool]] = {}
  for group, unseen, correct in marks:
    split.setdefault((group, unseen), []).append(correct)
  both = {g: split.get((g, False), []) + split.get((g, True), []) for g in groups}
  out = {group: _rate(found) for group, found in both.items() if found}
  rates = [(v["rate"], v["count"]) for v in out.values()]
  mean = sum(r for r, _ in rates) / max(len(rates), 1)
  variance = sum(r * (1 - r) / n for r, n in rates) / max(len(rates), 1) ** 2
  total = sum(n for _, n in rates)
  trials = mean * (1 - mean) / variance if variance > 0 else total
  low, high = interval(mean * trials, trials)
  whole = {"correct": sum(sum(found) for found in both.values()), "count": total}
  out["overall"] = whole | {"rate": mean, "low": low, "high": high}
  mixed = [group for group in groups if (group, True) in split]
  out["unseen"] = _rate([m for group in mixed for m in split[group, True]])
  out["seen"] = _rate([m for group in mixed for m in split.get((group, False), [])])
  return out
