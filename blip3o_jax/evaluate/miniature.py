"""What a model of the embedded set can do: answers, drawings and reconstructions, scored by pixels.

Uses the test split and the test prompts only; nothing here was trained on.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import numpy as np
from PIL import Image

from blip3o_jax.data import shapes
from blip3o_jax.evaluate import shapes as scorer
from blip3o_jax.systems.inference import Model

T = TypeVar("T")
BATCH = 50


def chunks(values: Sequence[T], size: int = BATCH) -> Iterator[Sequence[T]]:
  """Slices of at most `size`."""
  for start in range(0, len(values), size):
    yield values[start : start + size]


def rate(correct: int, count: int) -> dict[str, float]:
  """A share with Wilson's 95 % interval."""
  low, high = scorer.interval(correct, count)
  return {"correct": correct, "count": count, "rate": correct / count, "low": low, "high": high}


def understanding(
  model: Model, per_kind: int = 100, *, seed: int = 0
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
  """Questions about test pictures: ({kind or "overall": rate}, some of the dialogues).

  `overall` is the mean of the kinds with the interval of all answers together.
  """
  out, dialogues = {}, []
  for kind in shapes.KINDS:
    asked = [shapes.question_at(seed, i, "test", kind) for i in range(per_kind)]
    answers: list[str] = []
    for part in chunks(asked):
      images = [Image.fromarray(shapes.render(q.scene)) for q in part]
      answers += model.chat([q.question for q in part], images, length=8)
    right = [a == q.answer for a, q in zip(answers, asked, strict=True)]
    out[kind] = rate(sum(right), len(right))
    dialogues += [
      {"kind": kind, "scene": q.scene, "question": q.question, "wanted": q.answer, "answer": a}
      for q, a in list(zip(asked, answers, strict=True))[:2]
    ]
  total = rate(sum(int(v["correct"]) for v in out.values()), per_kind * len(out))
  out["overall"] = total | {"rate": float(np.mean([v["rate"] for v in out.values()]))}
  return out, dialogues


def test_prompts(per_category: int) -> list[dict[str, Any]]:
  """The first `per_category` test prompts of each category; 0 for all."""
  return [p for c in shapes.CATEGORIES for p in shapes.test_prompts(c)[: per_category or None]]


def generation(
  model: Model, prompts: Sequence[dict[str, Any]], *, seed: int = 0
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
  """Draws prompts, image i with seed + i: (rates by `evaluate.shapes.score`, uint8[n, H, W, 3])."""
  images: list[np.ndarray] = []
  numbered = list(enumerate(prompts))
  for part in chunks(numbered, 2 * BATCH):
    texts = [p["prompt"] for _, p in part]
    images += list(model.generate(texts, [seed + i for i, _ in part]))
  stacked = np.stack(images)
  return scorer.score(stacked, prompts), stacked


def reconstruction(
  model: Model, count: int = 100, *, seed: int = 0
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
  """Test pictures through encoder and pixel decoder.

  Returns:
    {"psnr": dB, mean over pictures, "right": rate of those in which the scorer finds the same
    objects}, and the pictures before and after, uint8[n, H, W, 3].
  """
  scenes = [shapes.scene(seed, i, "test") for i in range(count)]
  before = shapes.render_many(scenes)
  after: list[np.ndarray] = []
  for start in range(0, count, BATCH):
    part = [Image.fromarray(x) for x in before[start : start + BATCH]]
    after += list(model.reconstruct(part, range(start, start + len(part))))
  rebuilt = np.stack(after)
  error = np.square(rebuilt.astype(np.float64) - before).mean((1, 2, 3))
  psnr = float(np.mean(10 * np.log10(255.0**2 / np.maximum(error, 1e-9))))
  right = scorer.agree(rebuilt, scenes)
  return {"psnr": psnr, "right": rate(int(right.sum()), count)}, before, rebuilt
