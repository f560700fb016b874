"""The scorer of edits: the asked change happened, and all else stayed.

A picture is judged by what `detect` finds in it: every object that the instruction does not change
has to be there, with its shape, colour, place and size, the changed one as it was asked for, and
nothing else; and the background has to be that of the input. So no input is its own right output.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image

from blip3o_jax.data import shapes
from blip3o_jax.data.shapes.scenes import CELL
from blip3o_jax.evaluate import page
from blip3o_jax.evaluate.shapes import Verdict
from blip3o_jax.evaluate.shapes import grouped
from blip3o_jax.evaluate.shapes import is_at
from blip3o_jax.evaluate.shapes.detect import Detection
from blip3o_jax.evaluate.shapes.detect import detect_many
from blip3o_jax.evaluate.shapes.detect import ground_of

MAX_GROWTH: Final = 0.2  # of the width of an object that stays, up or down
MAX_SHIFT: Final = 12.0  # of 255, of the background in each channel
_SAME_SIZE: Final = ("recolour", "move")  # the changed object is still the same one


def _like(found: Detection, o: shapes.Object) -> bool:
  return abs(found.half - o.half) <= MAX_GROWTH * o.half


def _is_asked(found: Detection, o: shapes.Object, edit: shapes.Edit) -> bool:
  """Whether a detection is the new object `o`, in one of the cells that the instruction allows."""
  if edit.kind in _SAME_SIZE and not _like(found, o):
    return False
  if not edit.cells:
    return is_at(found, o)
  cell = (int(found.y // CELL), int(found.x // CELL))
  return (found.shape, found.color) == (o.shape, o.color) and cell in edit.cells


def _judge(found: Sequence[Detection], ground: np.ndarray, edit: shapes.Edit) -> Verdict:
  rest, reasons = list(found), []
  for o in edit.kept:
    same = next((d for d in rest if is_at(d, o) and _like(d, o)), None)
    if same is None:
      reasons.append(f"the {o.color} {o.shape} did not stay as it was")
    else:
      rest.remove(same)
  if new := edit.new:
    asked = next((d for d in rest if _is_asked(d, new, edit)), None)
    if asked is None:
      reasons.append(f"no {new.color} {new.shape} as it was asked for")
    else:
      rest.remove(asked)
  if rest:
    reasons.append(f"{len(rest)} object(s) or spots that should not be there")
  if np.abs(ground - edit.before.background).max() > MAX_SHIFT:
    reasons.append("another background")
  return Verdict(not reasons, tuple(reasons))


def judge_edits(images: np.ndarray, edits: Sequence[shapes.Edit]) -> list[Verdict]:
  """Whether pictures are what edits ask for, and why not.

  Args:
    images: uint8[n, 64, 64, 3], outputs for n `edits`.

  Raises:
    ValueError: another shape or dtype, or numbers that differ.
  """
  if len(images) != len(edits):
    raise ValueError(f"{len(images)} images for {len(edits)} edits")
  found = detect_many(images)
  if not found:
    return []
  return [_judge(*each) for each in zip(found, ground_of(images), edits, strict=True)]


def score_edits(images: np.ndarray, edits: Sequence[shapes.Edit]) -> dict[str, dict[str, float]]:
  """Rates of pictures drawn for edits, by kind; see `shapes.grouped`.

  `unseen` are edits one of whose pictures shows a pair that the generator's split never does.

  Args, Raises: as `judge_edits`.
  """
  verdicts = judge_edits(images, edits)
  marks = [(e.kind, e.unseen, v.correct) for e, v in zip(edits, verdicts, strict=True)]
  return grouped(marks, shapes.EDITS)


def triples(
  images: np.ndarray, edits: Sequence[shapes.Edit]
) -> tuple[list[np.ndarray], list[str], list[str]]:
  """Input, target and output of each edit: pictures, captions and marks as `page` takes them.

  Args, Raises: as `judge_edits`.
  """
  pictures: list[np.ndarray] = []
  captions: list[str] = []
  marks: list[str] = []
  scenes = [(e.before, e.after) for e in edits]
  drawn = shapes.render_many([scene for pair in scenes for scene in pair])
  for i, (edit, verdict) in enumerate(zip(edits, judge_edits(images, edits), strict=True)):
    pictures += [drawn[2 * i], drawn[2 * i + 1], images[i]]
    captions += [edit.instruction, "target", "; ".join(verdict.reasons) or "output"]
    marks += ["", "", "yes" if verdict.correct else "no"]
  return pictures, captions, marks


def sheet(images: np.ndarray, edits: Sequence[shapes.Edit], across: int = 2) -> Image.Image:
  """One picture of input | target | output of edits, `across` of them in a row.

  Args, Raises: as `judge_edits`.
  """
  return page.sheet(*triples(images, edits), 3 * across)
