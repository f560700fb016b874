"""Edits of scenes: instructions that fit one object, targets that are exact, what is held out."""

from collections import Counter
import dataclasses
import json
import re

import numpy as np
import pytest

from blip3o_jax import config
from blip3o_jax.data import shapes
from blip3o_jax.data.opening import open_source
from blip3o_jax.data.options import Data
from blip3o_jax.data.options import Ingredient
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.shapes import naming
from blip3o_jax.data.shapes.captions import held_out_text
from blip3o_jax.data.shapes.scenes import held_out_combination
from blip3o_jax.data.shapes.source import EmbeddedSource
from blip3o_jax.data.shapes.source import Mixture
from blip3o_jax.data.sources import mixed

EACH = 150
NUMBERS = ("one", "two", "three", "four")


def edits_of(split, each=EACH):
  return [shapes.edit_at(0, i, split, kind) for kind in shapes.EDITS for i in range(each)]


@pytest.fixture(scope="module")
def test():
  return edits_of("test")


@pytest.fixture(scope="module")
def trained():
  return edits_of("generator") + edits_of("world")


def meant(text, scene):
  """The objects of a scene that a name fits: [color] shape or `object`, [at a place]."""
  look, _, place = text.partition(" at ")
  words = look.split()
  found = []
  for o in scene.objects:
    cell = f"row {NUMBERS[o.row]} column {NUMBERS[o.col]}"
    fits = words[-1] in ("object", o.shape) and words[:-1] in ([], [o.color])
    if fits and place.removeprefix("the ") in ("", o.place, cell):
      found.append(o)
  return found


LOOK = rf"(?:(?:{'|'.join(shapes.COLORS)}) )?(?:{'|'.join(shapes.SHAPES)}|object)"
NAME = rf"({LOOK}(?: at (?:the \w+ \w+|row \w+ column \w+))?)"
PLACE = r"(the \w+ \w+|row \w+ column \w+)"
FORMS = {
  "recolour": rf"(?:make|paint|color|turn|change the color of) the {NAME} (?:to )?(\w+)",
  "remove": rf"(?:remove|delete|erase|take away) the {NAME}",
  "add": rf"(?:add|draw|put|place) a (\w+) (\w+) at {PLACE}",
  "move": rf"(?:move|shift|bring) the {NAME} to {PLACE}",
}
REPLACE = (rf"(?:replace|turn|change) the {NAME} (?:with|into) a (\w+) (\w+)",)
REPLACE += (rf"put a (\w+) (\w+) in place of the {NAME}",)


def parsed(edit):
  """(name of the object, its new colour, its new shape, its new place) as the words say it."""
  if edit.kind == "replace":
    if found := re.fullmatch(REPLACE[0], edit.instruction):
      return found[1], found[2], found[3], ""
    found = re.fullmatch(REPLACE[1], edit.instruction)
    return found[3], found[1], found[2], ""
  found = re.fullmatch(FORMS[edit.kind], edit.instruction).groups()
  match edit.kind:
    case "recolour":
      return found[0], found[1], "", ""
    case "add":
      return "", *found
    case "move":
      return found[0], "", "", found[1]
  return found[0], "", "", ""


def test_instructions_name_one_object_and_the_target_is_what_they_say(test, trained):
  wordings = Counter()
  for edit in test + trained:
    name, color, shape, place = parsed(edit)
    wordings[edit.kind, edit.instruction.split()[0]] += 1
    gone = [o for o in edit.before.objects if o not in edit.after.objects]
    assert len(gone) == (edit.kind != "add"), edit.instruction
    assert (edit.new is None) == (edit.kind == "remove")
    assert len(edit.kept) == len(edit.before.objects) - len(gone)
    if gone:
      assert meant(name, edit.before) == gone, edit.instruction
    if edit.new is None:
      continue
    old = gone[0] if gone else edit.new
    assert edit.new.color == (color or old.color)
    assert edit.new.shape == (shape or old.shape)
    assert bool(edit.cells) == bool(place)
    if place:
      cell = f"row {NUMBERS[edit.new.row]} column {NUMBERS[edit.new.col]}"
      assert place in (cell, f"the {edit.new.place}")
      assert len(edit.cells) == (1 if place == cell else 4)
      assert (edit.new.row, edit.new.col) in edit.cells
      assert edit.kind == "add" or (old.row, old.col) not in edit.cells
    else:
      assert (edit.new.x, edit.new.y, edit.new.half) == (old.x, old.y, old.half)
  assert min(wordings.values()) > 20, wordings
  assert len(wordings) == 5 + 4 + 4 + 4 + 3


def test_scenes_after_edits_are_valid(test, trained):
  for edit in test + trained:
    objects = edit.after.objects
    assert 1 <= len(objects) <= shapes.MOST_OBJECTS
    assert len({(o.row, o.col) for o in objects}) == len(objects)
    for o in objects:
      reach = max(abs(o.x - 16 * o.col - 8), abs(o.y - 16 * o.row - 8)) + o.half
      assert reach <= 7.25 + 1e-9
      assert np.abs(np.subtract(o.rgb, shapes.PALETTE[o.color])).max() <= 10
    assert edit.after.background == edit.before.background


def test_only_the_cells_of_the_changed_object_change(test):
  before = shapes.render_many([e.before for e in test]).astype(int)
  after = shapes.render_many([e.after for e in test])
  differs = (before != after).any(-1).reshape(-1, 4, 16, 4, 16).any((2, 4))
  for edit, cells in zip(test, differs, strict=True):
    changed = {*edit.before.objects} ^ {*edit.after.objects}
    assert {(o.row, o.col) for o in changed} == set(zip(*np.nonzero(cells), strict=True))


def test_an_edit_is_a_function_of_seed_index_and_split():
  assert shapes.edit_at(3, 7, "world") == shapes.edit_at(3, 7, "world")
  others = [(3, 7, "world"), (3, 12, "world"), (4, 7, "world"), (3, 7, "test")]
  assert len({shapes.edit_at(*o).before.objects for o in others}) == 4
  assert [shapes.edit_at(0, i, "test").kind for i in range(6)] == [*shapes.EDITS, "recolour"]
  # The stream is part of the data set.
  assert shapes.edit_at(0, 1, "generator").instruction == (
    "replace the object at row four column four with a green cross"
  )
  with pytest.raises(ValueError, match="kind 'resize': expected one of recolour, replace"):
    shapes.edit_at(0, 0, "test", "resize")


def test_scenes_without_room_have_no_such_edit():
  scenes = [shapes.scene(0, i, "generator") for i in range(60)]
  for kind, none in (("remove", 1), ("add", 4)):
    for scene in scenes:
      assert (shapes.edit(scene, kind) is None) == (len(scene.objects) == none)


def test_what_is_held_out_from_training_is_held_out_from_edits(test, trained):
  said = {e.instruction for e in trained} | {e.instruction for e in edits_of("validation", 20)}
  assert not {e.instruction for e in test} & said
  assert all(held_out_text(e.instruction) for e in test)
  generator = [e for e in trained if e.after.split == "generator"]
  assert not any(e.unseen for e in generator)
  for color, shape in shapes.HELD_OUT_PAIRS:
    assert not any(f"{color} {shape}" in e.instruction for e in generator)
  unseen = Counter(e.kind for e in test if e.unseen)
  assert min(unseen[kind] for kind in shapes.EDITS) > 0.2 * EACH

  def combinations(edits):
    shown = [s.objects for e in edits for s in (e.before, e.after) if len(s.objects) == 2]
    return sum(held_out_combination(*((o.color, o.shape) for o in two)) for two in shown)

  assert combinations(trained) == 0
  assert combinations(test) > 20


def test_names_by_look_and_by_place():
  scene = next(s for i in range(99) if len((s := shapes.scene(0, i, "test")).objects) == 4)
  for o in scene.objects:
    every = [*naming.names(o, scene), *naming.placed_names(o, scene), *naming.cell_names(o)]
    assert all(meant(name, scene) == [o] for name in every)
    assert len(set(every)) == len(every)


def test_records_of_edits():
  source = EmbeddedSource("generator", 30, Mixture(edits=("move", "remove"), seed=3))
  for i in range(30):
    record, words = source[i], source.words(i)
    edit = shapes.edit_at(3, i, "generator", ("move", "remove")[i % 2])
    assert (record.prompt, record.answer, record.kind) == (edit.instruction, "", edit.kind)
    np.testing.assert_array_equal(record.image, shapes.render(edit.after))
    (shown,) = record.inputs
    np.testing.assert_array_equal(shown, shapes.render(edit.before))
    scenes = [dataclasses.asdict(scene) for scene in (edit.before, edit.after)]
    assert record.extra == {"scenes": scenes}
    json.dumps(record.extra)  # as packed files keep it
    assert words.extra == {**record.extra, "pictures": 2, "inputs": 1}
    assert (words.prompt, words.image, words.inputs) == (edit.instruction, None, ())
  assert source.scene(4) == shapes.edit_at(3, 4, "generator", "move").after
  for bad, text in (
    (dict(edits=("resize",)), "edits: .*none of recolour"),
    (dict(edits=("move",), long_captions=0.5), "long_captions 0.5: not read with edits"),
    (dict(edits=("move",), questions=True), "questions True: not read with edits"),
    (dict(edits=("move",), variants=2), "1 with categories or edits"),
    (dict(edits=("move", "remove"), most=1), "most 1: expected .* with edits 'remove' 2 or more"),
    (dict(edits=("move",), most=0), "most 0: expected 1 to 4"),
    (dict(edits=("move",), most=5), "most 5: expected 1 to 4"),
    (dict(most=2), "most 2: read with edits alone"),
  ):
    with pytest.raises(ValueError, match=text):
      Mixture(**bad)


def test_places_name_what_each_cell_becomes():
  source = EmbeddedSource("generator", 40, Mixture(edits=("remove", "add"), places=1.0, seed=3))
  plain = EmbeddedSource("generator", 40, Mixture(edits=("remove", "add"), seed=3))
  for i in range(40):
    record, after = source[i], source.scene(i)
    assert record.extra.pop("places") == shapes.standing(after, i // 2 % 2 == 1)
    assert record.extra == plain[i].extra
    words = shapes.standing(after, False), shapes.standing(after, True)
    for o in after.objects:
      cell = 4 * o.row + o.col
      assert (words[0][cell], words[1][cell]) == (o.color, o.shape)
    assert [w.count("no") for w in words] == [16 - len(after.objects)] * 2
  share = EmbeddedSource("generator", 200, Mixture(edits=("add",), places=0.3))
  assert 30 < sum("places" in share.words(i).extra for i in range(200)) < 90


@pytest.mark.parametrize("most", [1, 2, 3])
def test_records_of_edits_of_few_objects(most):
  kinds = tuple(kind for kind in shapes.EDITS if most > 1 or kind != "remove")
  source = EmbeddedSource("generator", 60, Mixture(edits=kinds, most=most, seed=3))
  found = [source.words(i) for i in range(60)]
  counts = [len(record.extra["scenes"][0]["objects"]) for record in found]
  assert max(counts) == most
  assert {record.kind for record in found} == set(kinds)
  assert min(counts) == 1


class Plain:
  """A row is what its record is for."""

  counts = ""

  def tokens(self, record):
    return len(record.prompt)

  def __call__(self, record, rng):
    kind = 2 if record.inputs else 1 if record.answer else 0
    return {"kind": np.asarray(kind, np.int32)}


def three_tasks(**extra):
  return (
    Ingredient(name="draw", weight=0.5, records=150, shapes=Mixture(long_captions=0.5)),
    Ingredient(name="edit", weight=0.3, records=90, shapes=Mixture(edits=shapes.EDITS)),
    Ingredient(weight=0.2, split="world", shapes=Mixture(questions=True), **extra),
  )


def test_a_config_mixes_the_three_tasks():
  asked = Data(source="shapes", split="generator", records=60, mixture=three_tasks(), batch=30)
  data = config.build(Data, config.to_config(asked), "config.data")
  assert data == asked
  source = open_source(data)
  assert [(p.name, len(p.source)) for p in mixed.pieces(source)] == [
    ("draw", 150),
    ("edit", 90),
    ("world", 60),
  ]
  assert [part.name for part in source.parts()][2] == "world/shapes world"
  lines = Pipeline(source, {64: Plain()}, data)
  kinds = np.concatenate([lines.batch_at(i)["kind"] for i in range(lines.steps_per_epoch)])
  np.testing.assert_allclose(np.bincount(kinds) / len(kinds), (0.5, 0.2, 0.3), atol=0.02)


def test_what_a_mixture_does_not_read_is_refused():
  shown = dict(source="shapes", split="generator", records=20)
  two = (Ingredient(), Ingredient())
  with pytest.raises(ValueError, match="'generator' is the name of several; name them"):
    open_source(Data(**shown, mixture=two))
  with pytest.raises(ValueError, match=r"shapes .*each set of the mixture has its own"):
    Data(**shown, mixture=two, shapes=Mixture(seed=1))
  with pytest.raises(ValueError, match=r"path 'x': .* without features"):
    Data(**shown, mixture=three_tasks(path="x"))
  with pytest.raises(ValueError, match="split 'world': source 'files' does not read it"):
    Data(mixture=(Ingredient("a", split="world"),))
  with pytest.raises(ValueError, match="no path; expected one of each set of files"):
    Data(mixture=(Ingredient("a"), Ingredient()))
