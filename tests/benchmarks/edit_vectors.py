"""What the miniature Nexus-Gen's language model tells of edits, before a decoder paints it.

    python tests/benchmarks/edit_vectors.py DIR [--number 100] [--paint]

DIR is the model or the run of its language model. Each predicted vector is named by the nearest
mean of the vectors that the vision tower sees: of each kind of object, and of the empty cell. An
edit is right where all 16 cells are. With --paint also what the editing decoder of a model makes of
the predicted vectors, and of those that the tower sees of the pictures that should come out.
"""

import argparse
from collections import Counter
from collections import defaultdict
from collections.abc import Sequence
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from PIL import Image

from blip3o_jax.data import shapes
from blip3o_jax.data.shapes.scenes import GRID
from blip3o_jax.evaluate.shapes import edits as edit_scorer
from blip3o_jax.miniature import scores
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.systems.nexus_gen.how import How

BATCH = 64
CHOOSES = ("recolour", "replace", "remove")
Named = dict[int, tuple[str, str]]  # cell -> colour and shape of the object there


def named(scene: shapes.Scene) -> Named:
  """What stands where, empty cells left out."""
  return {o.row * GRID + o.col: (o.color, o.shape) for o in scene.objects}


def predicted(model: verbs.Model, edits: Sequence[shapes.Edit], images: np.ndarray) -> np.ndarray:
  """The vectors float32[n, 16, D] of what comes of each edit."""
  out = []
  for i in range(0, len(edits), BATCH):
    shown = [Image.fromarray(image) for image in images[i : i + BATCH]]
    texts = [edit.instruction for edit in edits[i : i + BATCH]]
    out.append(model._vectors(texts, shown, How()))
  return np.concatenate(out)


def nearest(
  vectors: np.ndarray, seen: np.ndarray, scenes: Sequence[shapes.Scene]
) -> list[list[tuple[str, str] | None]]:
  """The name of every vector, None for the empty cell, by means over what is seen of scenes."""
  groups: dict[tuple[str, str] | None, list[np.ndarray]] = defaultdict(list)
  for scene, cells in zip(scenes, seen, strict=True):
    there = named(scene)
    for cell, vector in enumerate(cells):
      groups[there.get(cell)].append(vector)
  names = list(groups)
  means = np.stack([np.mean(groups[name], 0) for name in names])
  found = np.square(vectors[:, :, None] - means).sum(-1).argmin(-1)
  return [[names[i] for i in row] for row in found]


def how(edit: shapes.Edit) -> str:
  """How the instruction says which object it means."""
  text = edit.instruction
  return "by row and column" if " row " in text else "by quadrant" if " at " in text else "by look"


def fault(edit: shapes.Edit, told: Sequence[tuple[str, str] | None]) -> str:
  """What is wrong with a recolouring that is wrong."""
  before = named(edit.before)
  changed = [cell for cell in range(GRID**2) if told[cell] != before.get(cell)]
  assert edit.new is not None
  target = edit.new.row * GRID + edit.new.col
  if not changed:
    return "nothing changes"
  if changed == [target]:
    return "the right object changes, not as asked"
  return "others change as well" if target in changed else "another changes"


def painted(
  model: verbs.Model, edits: Sequence[shapes.Edit], images: np.ndarray, told: np.ndarray
) -> str:
  """The rates of edits that the editing decoder paints, told these vectors, edit i with seed i."""
  out = []
  for i in range(0, len(edits), BATCH):
    reference = model.reference([Image.fromarray(image) for image in images[i : i + BATCH]])
    seeds = range(i, i + len(reference))
    out.append(model._paint(told[i : i + BATCH], seeds, How(), "editor", reference))
  rates = edit_scorer.score_edits(np.concatenate(out), edits)
  keys = (*shapes.EDITS, "overall", "seen", "unseen")
  return ", ".join(f"{key} {rates[key]['rate']:.2f}" for key in keys)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("model", type=Path, metavar="DIR")
  parser.add_argument("--number", type=int, default=100, help="edits of each kind (default 100)")
  parser.add_argument("--paint", action="store_true", help="paint them, too")
  options = parser.parse_args()
  model = verbs.load(options.model)
  edits = scores.edits_of(options.number)
  scenes = [edit.before for edit in edits], [edit.after for edit in edits]
  before, after = (shapes.render_many(each) for each in scenes)
  vectors, seen = predicted(model, edits, before), model.seen(np.concatenate([before, after]))
  told = nearest(vectors, seen, [*scenes[0], *scenes[1]])
  rates: dict[str, list[bool]] = defaultdict(list)
  faults: Counter[str] = Counter()
  for edit, cells in zip(edits, told, strict=True):
    wanted = named(edit.after)
    right = all(name == wanted.get(cell) for cell, name in enumerate(cells))
    count = len(edit.before.objects)
    keys = ["all", edit.kind, f"{edit.kind}, {'one object' if count == 1 else 'several'}"]
    keys += [f"{each}, {'unseen' if edit.unseen else 'seen'} pairs" for each in keys[:2]]
    if edit.kind in CHOOSES and count > 1:
      keys.append(f"{edit.kind}, several, {how(edit)}")
    if edit.kind == "recolour" and count > 1 and not right:
      faults[fault(edit, cells)] += 1
    for key in keys:
      rates[key].append(right)
  square = np.mean(np.square(vectors - seen[len(edits) :]))
  print(f"mean square of the error {square:.1f}")
  for key in sorted(rates):
    print(f"{key:<42} {np.mean(rates[key]):.2f} of {len(rates[key])}")
  print("recolourings of several that are wrong:")
  for what, number in faults.most_common():
    print(f"  {what:<40} {number}")
  if options.paint:
    print("painted of what is predicted:", painted(model, edits, before, vectors))
    print("painted of what should be:", painted(model, edits, before, seen[len(edits) :]))


if __name__ == "__main__":
  main()
