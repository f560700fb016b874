"""What a model of the embedded set can do: answers, drawings and reconstructions, scored by pixels.

Uses the test split and the test prompts only; nothing here was trained on.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Protocol
from typing import TypeVar

import numpy as np
from PIL import Image

from blip3o_jax.data import shapes
from blip3o_jax.evaluate import shapes as scorer
from blip3o_jax.evaluate.shapes import edits as edit_scorer

T = TypeVar("T")
BATCH = 100
Rates = dict[str, dict[str, float]]


class Model(Protocol):
  """A loaded model whose answers and drawings are scored; see `systems.System.load`."""

  @property
  def generate(self) -> Callable[..., np.ndarray]:
    """Pictures of prompts and seeds."""

  @property
  def chat(self) -> Callable[..., list[Any]]:
    """Answers to questions about pictures."""


class Editing(Model, Protocol):
  """One that also changes pictures."""

  @property
  def edit(self) -> Callable[..., np.ndarray]:
    """Pictures, instructions and seeds to pictures."""


class Encoding(Model, Protocol):
  """One that also has features of pictures, and pictures of these."""

  cfg: Any

  @property
  def reconstruct(self) -> Callable[..., np.ndarray]:
    """Pictures and seeds to pictures."""

  @property
  def encode(self) -> Callable[..., np.ndarray]:
    """Pictures to features."""


def chunks(values: Sequence[T]) -> Iterator[list[T]]:
  """Slices of `BATCH` values (of all, if fewer), the last filled up with its first value.

  So every call of a verb has the same shapes, and one program is compiled.
  """
  size = min(BATCH, len(values))
  for start in range(0, len(values), size):
    part = list(values[start : start + size])
    yield part + part[:1] * (size - len(part))


def draw(model: Model, texts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
  """Pictures uint8[n, H, W, 3] of n prompts, one seed each."""
  images: list[np.ndarray] = []
  for part in chunks(list(zip(texts, seeds, strict=True))):
    images += list(model.generate([t for t, _ in part], [s for _, s in part]))
  return np.stack(images[: len(texts)])


def understanding(
  model: Model, per_kind: int, *, seed: int = 0
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
    answers = answers[: len(asked)]
    right = [a == q.answer for a, q in zip(answers, asked, strict=True)]
    out[kind] = scorer.rate(sum(right), len(right))
    dialogues += [
      {"kind": kind, "scene": q.scene, "question": q.question, "wanted": q.answer, "answer": a}
      for q, a in list(zip(asked, answers, strict=True))[:2]
    ]
  total = scorer.rate(sum(int(v["correct"]) for v in out.values()), per_kind * len(out))
  out["overall"] = total | {"rate": float(np.mean([v["rate"] for v in out.values()]))}
  return out, dialogues


def test_prompts(per_category: int) -> list[dict[str, Any]]:
  """The first `per_category` test prompts of each category."""
  return [p for c in shapes.CATEGORIES for p in shapes.test_prompts(c)[:per_category]]


def generation(
  model: Model, prompts: Sequence[dict[str, Any]], *, seed: int = 0
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
  """Draws prompts, image i with seed + i: (rates by `evaluate.shapes.score`, uint8[n, H, W, 3])."""
  images = draw(model, [p["prompt"] for p in prompts], range(seed, seed + len(prompts)))
  return scorer.score(images, prompts), images


def mean(rates: Rates, groups: Sequence[str]) -> float:
  """The mean of the rates of groups."""
  return float(np.mean([rates[group]["rate"] for group in groups]))


def edits_of(per_kind: int, *, seed: int = 0, split: str = "test") -> list[shapes.Edit]:
  """The first `per_kind` edits of each kind, of scenes of a seed."""
  return [shapes.edit_at(seed, i, split, kind) for kind in shapes.EDITS for i in range(per_kind)]


def editing(
  model: Editing, edits: Sequence[shapes.Edit], *, seed: int = 0
) -> tuple[Rates, np.ndarray]:
  """Edits the first picture of each, edit i with seed + i.

  Returns:
    Rates by `evaluate.shapes.edits.score_edits`, and the pictures uint8[n, H, W, 3].
  """
  images: list[np.ndarray] = []
  for part in chunks(list(enumerate(edits, seed))):
    before = shapes.render_many([edit.before for _, edit in part])
    given = [Image.fromarray(picture) for picture in before]
    images += list(model.edit(given, [e.instruction for _, e in part], [i for i, _ in part]))
  drawn = np.stack(images[: len(edits)])
  return edit_scorer.score_edits(drawn, edits), drawn


def reconstruction(model: Encoding, count: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
  """Test pictures through encoder and pixel decoder.

  Returns:
    {"psnr": dB, mean over pictures, "right": rate of those in which the scorer finds the same
    objects}, and the pictures before and after, uint8[n, H, W, 3].
  """
  scenes = [shapes.scene(0, i, "test") for i in range(count)]
  before = shapes.render_many(scenes)
  after: list[np.ndarray] = []
  for part in chunks(list(enumerate(before))):
    after += list(model.reconstruct([Image.fromarray(x) for _, x in part], [i for i, _ in part]))
  rebuilt = np.stack(after[:count])
  error = np.square(rebuilt.astype(np.float64) - before).mean((1, 2, 3))
  psnr = float(np.mean(10 * np.log10(255.0**2 / np.maximum(error, 1e-9))))
  right = scorer.agree(rebuilt, scenes)
  return {"psnr": psnr, "right": scorer.rate(int(right.sum()), count)}, before, rebuilt


def diversity(
  model: Encoding, prompts: Sequence[dict[str, Any]], images: int = 8
) -> tuple[float, float]:
  """How different pictures of one prompt are: (of the model, of the data).

  The mean distance of the encoder's features over all pairs of `images` pictures of a prompt, and
  over the prompts. The data's pictures are random scenes that satisfy the prompt.
  """
  texts = [p["prompt"] for p in prompts for _ in range(images)]
  seeds = [1000 * n + i for n in range(len(prompts)) for i in range(images)]
  drawn = draw(model, texts, seeds)
  scenes = [
    shapes.scene_of(p["include"], s, n, "test")
    for n, p in enumerate(prompts)
    for s in seeds[n * images : (n + 1) * images]
  ]
  return _spread(model, drawn, images), _spread(model, shapes.render_many(scenes), images)


def _spread(model: Encoding, pictures: np.ndarray, size: int) -> float:
  """Mean pairwise distance within groups of `size` pictures, and over the groups."""
  x = model.encode([Image.fromarray(i) for i in pictures]).reshape(
    -1, size, 1, model.cfg.grid**2 * model.cfg.channels
  )
  distances = np.linalg.norm(x - x.swapaxes(1, 2), axis=-1)
  return float(distances.sum() / (len(x) * size * (size - 1)))
