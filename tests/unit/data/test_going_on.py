"""A run that goes on with other batches or records: nothing is skipped, nothing comes twice."""

import json

from fakes import InMemory
from fakes import write_tar
import numpy as np
import pytest

from blip3o_jax.data import marks
from blip3o_jax.data.chosen import Chosen
from blip3o_jax.data.opening import used
from blip3o_jax.data.options import Ingredient
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import open_source
from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record
from blip3o_jax.data.shapes.source import Mixture


class Row:
  """The record's name, and how many tokens its caption has."""

  counts = "letters"

  def tokens(self, record):
    return len(record.prompt)

  def __call__(self, record, rng):
    return {"name": np.array(record.name, "U40"), "noise": rng.normal(size=2)}


def pipeline(source, batch, rows=(), buckets=(3, 6, 9), **fields):
  cfg = Data(batch=batch, buckets=buckets, **fields)
  return Pipeline(source, dict.fromkeys(buckets, Row()), cfg, rows)


def memory(count=96):
  return InMemory([Record(prompt="x" * (1 + i % 9), name=str(i)) for i in range(count)])


def folder(home, **tars):
  """Tars of so many records each; the names of their records start with the tar's."""
  home.mkdir(exist_ok=True)
  for tar, count in tars.items():
    members = {f"{tar}{i}.{e}": b"x" for i in range(count) for e in ("jpg", "txt")}
    write_tar(home / f"{tar}.tar", members)
  return home


def names(made, first, steps):
  return [str(n) for step in range(first, first + steps) for n in made.batch_at(step)["name"]]


def gone_on(before, after, step):
  """`after` at the position of `before`, which goes through a file; what was said."""
  return after.resume(json.loads(json.dumps(before.position(step))), step)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("buckets", [(9,), (3, 6, 9)])
@pytest.mark.parametrize(("batch", "then"), [(8, 16), (16, 8), (8, 5), (4, 32)])
def test_another_batch(batch, then, buckets, shuffle):
  fields = dict(buckets=buckets, shuffle=shuffle)
  one, two = pipeline(memory(), batch, **fields), pipeline(memory(), then, **fields)
  done = 24 // batch + 1
  said = gone_on(one, two, done)
  seen = names(one, 0, done)
  left = 96 - len(seen)
  assert f"batch {batch} -> {then}. {len(seen)} samples were trained on" in said
  assert f"goes on with the other {left} in " in said
  steps = int(said.partition(f"{left} in ")[2].partition(" ")[0])
  rest = names(two, done, steps)
  assert len({*seen, *rest}) == len(seen) + len(rest)
  assert 96 - len(seen) - len(rest) < then  # what an epoch leaves over
  assert (f"{96 - len(seen) - len(rest)} of them left over" in said) == (len(rest) < left)
  following = names(two, done + steps, two.steps_per_epoch)
  assert len(set(following)) == len(following) > 96 - len(buckets) * then


def test_each_process_goes_on_with_the_same_batches():
  before, whole = pipeline(memory(), 8), pipeline(memory(), 12)
  gone_on(before, whole, 5)
  parts = [pipeline(memory(), 12, rows) for rows in (range(0, 12, 2), range(1, 12, 2))]
  for part in parts:
    gone_on(before, part, 5)
  for step in (5, 8, 30):
    joined = np.empty(12, object)
    for i, part in enumerate(parts):
      joined[i::2] = part.batch_at(step)["name"]
    assert joined.tolist() == whole.batch_at(step)["name"].tolist()
  assert parts[0].position(9) == whole.position(9)


def test_what_did_not_change_goes_on_as_it_was():
  """Also within an epoch that had other batches before, and after its end."""
  before, whole = pipeline(memory(), 8), pipeline(memory(), 12)
  again = pipeline(memory(), 8)
  assert not gone_on(before, again, 7)
  assert names(again, 7, 20) == names(before, 7, 20)
  gone_on(before, whole, 5)
  for step in (6, 20):
    again = pipeline(memory(), 12)
    assert not gone_on(whole, again, step)
    assert again.position(step) == whole.position(step)
    for at in (step, step + 9):
      for name, value in whole.batch_at(at).items():
        np.testing.assert_array_equal(again.batch_at(at)[name], value)
  assert whole.position(20)["samples"] == 5 * 8 + 15 * 12


def test_three_batches_in_one_epoch():
  seen, made = [], pipeline(memory(), 8, buckets=(9,))
  for batch, step, steps in ((8, 0, 2), (16, 2, 2), (4, 4, 12)):
    after = pipeline(memory(), batch, buckets=(9,))
    gone_on(made, after, step)
    made = after
    seen += names(made, step, steps)
  assert len(set(seen)) == len(seen) == 96


def tar_pipeline(home, batch=8, **fields):
  return pipeline(open_source(Data(path=str(home), **fields)), batch, buckets=(9,), **fields)


def rename(home):
  (home / "a.tar").rename(home / "z.tar")


CHANGES = {
  "a tar less": (lambda h: (h / "b.tar").unlink(), "b.tar (40 records) is gone", 40),
  "a tar written anew": (lambda h: folder(h, b=48), "b.tar (48 records) changed", 88),
  "a tar of another name": (rename, "which records are chosen, or their lengths, changed", 80),
  "one more, one less": (
    lambda h: [folder(h, A=8), (h / "a.tar").unlink()],
    "A.tar (8 records) is new; a.tar (40 records) is gone",
    48,
  ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_other_tars(kind, tmp_path):
  change, text, count = CHANGES[kind]
  before = tar_pipeline(folder(tmp_path / "data", a=40, b=40))
  seen = names(before, 0, 5)
  position = json.loads(json.dumps(before.position(5)))
  change(tmp_path / "data")
  after = tar_pipeline(tmp_path / "data")
  assert len(after.source) == count
  said = after.resume(position, 5)
  key = {n.partition(":")[2] for n in seen}  # names that stay, whatever tar they are in
  kept = {r.name.partition(":")[2] for r in map(after.source.__getitem__, range(count))}
  if kind == "a tar written anew":
    key = {k for k in key if k.startswith("a")}
  had = len(key & kept)
  assert said.startswith(f"{text}. 40 samples were trained on")
  assert f"had {had} of these {count} records" in said
  steps = (count - had) // 8
  rest = {n.partition(":")[2] for n in names(after, 5, steps)}
  assert len(rest) == 8 * steps
  assert not rest & key
  assert count - had - len(rest) < 8


GROWN = {
  "a tar more": dict(c=16),
  "a tar before the others": dict(A=16),
  "tars around": dict(A=8, aa=16, c=8),
}


@pytest.mark.parametrize("window", [0, 16])
@pytest.mark.parametrize("buckets", [(9,), (3, 6, 9)])
@pytest.mark.parametrize("kind", GROWN)
def test_a_set_that_grew_goes_on_as_it_would_have(kind, buckets, window, tmp_path):
  """To the end of the epoch, with the same rows; then all records take part."""
  home = folder(tmp_path / "data", a=40, b=40)

  def opened():
    cfg = Data(path=str(home), window=window)
    return pipeline(open_source(cfg), 8, buckets=buckets, window=window)

  before = opened()
  each, step = before.steps_per_epoch, 3 * before.steps_per_epoch + 4
  expected = names(before, step, 4 * each - step)
  position = json.loads(json.dumps(before.position(step)))
  folder(home, **GROWN[kind])
  after = opened()
  new = sum(GROWN[kind].values())
  said = after.resume(position, step)
  assert f"goes on as it would have, for {4 * each - step} steps; the {new} new records" in said
  assert names(after, step, 4 * each - step) == expected
  assert after.position(4 * each)["samples"] == 4 * each * 8
  following = names(after, 4 * each, after.steps_per_epoch)
  assert len(set(following)) == len(following) > 80 + new - 8 * len(buckets)
  # The second time, within the epoch and after it.
  for at in (step + 2, 4 * each + 3):
    again = opened()
    assert not again.resume(json.loads(json.dumps(after.position(at))), at)
    assert names(again, at, 9) == names(after, at, 9)
    assert again.position(at) == after.position(at)
  folder(home, d=8)
  twice = opened()
  assert "the 8 new records" in gone_on(after, twice, step + 1)
  assert names(twice, step + 1, 4 * each - step - 1) == expected[8:]


def test_a_set_that_grew_within_an_epoch_of_two_legs(tmp_path):
  home = folder(tmp_path / "data", a=40, b=40)
  first, second = tar_pipeline(home, batch=8), tar_pipeline(home, batch=4)
  gone_on(first, second, 3)
  seen, expected = set(names(first, 0, 3)), names(second, 7, 10)
  folder(home, c=8)
  after = tar_pipeline(home, batch=4)
  assert "goes on as it would have, for 10 steps" in gone_on(second, after, 7)
  assert names(after, 7, 10) == expected
  assert not seen & set(expected)


def mixture(home, **weights):
  cfg = Data(mixture=tuple(Ingredient(str(home / n), w) for n, w in weights.items()))
  return pipeline(open_source(cfg), 8, mixture=cfg.mixture)


@pytest.mark.parametrize("grown", ["a", "b", ""])
def test_a_mixture_goes_on(grown, tmp_path):
  for name in "ab":
    folder(tmp_path / name, **{f"{name}0": 24, f"{name}1": 40})
  before = mixture(tmp_path, a=3, b=1)
  step, each = 2 * before.steps_per_epoch + 5, before.steps_per_epoch
  expected = names(before, step, 3 * each - step)
  position = json.loads(json.dumps(before.position(step)))
  if grown:
    folder(tmp_path / grown, z=16)
  after = mixture(tmp_path, a=3, b=1)
  said = after.resume(position, step)
  assert bool(said) == bool(grown)
  assert names(after, step, 3 * each - step) == expected
  shares = after.shares(3 * each, 3 * each + after.steps_per_epoch)
  assert shares == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.03)
  other = mixture(tmp_path, a=1, b=1)
  assert "what is mixed changed. The mixture begins anew" in gone_on(after, other, 3 * each)
  assert len(names(other, 3 * each, 4)) == 32


def test_a_tar_that_was_touched_is_the_same(tmp_path):
  before = tar_pipeline(folder(tmp_path / "data", a=40, b=40))
  folder(tmp_path / "data", b=40)
  assert not gone_on(before, tar_pipeline(tmp_path / "data"), 5)


@pytest.mark.parametrize(
  ("first", "second", "text"),
  [
    (dict(holdout=0.3), dict(holdout=0.1), "which records are chosen, or their lengths, changed"),
    (dict(records=48), dict(records=64), "which records are chosen"),
    (dict(seed=0), dict(seed=1), "seed 0 -> 1"),
    (dict(shuffle=True), dict(shuffle=False), "shuffle True -> False"),
  ],
)
def test_another_choice(first, second, text, tmp_path):
  home = folder(tmp_path / "data", a=40, b=40)
  before, after = tar_pipeline(home, **first), tar_pipeline(home, **second)
  seen = set(names(before, 0, 3))
  assert gone_on(before, after, 3).startswith(text)
  cfg = Data(path=str(home), **second)
  all_names = {after.source[int(i)].name for i in np.flatnonzero(used(after.source, cfg).mask())}
  steps = (len(all_names) - len(seen & all_names)) // 8
  rest = names(after, 3, steps)
  assert len(set(rest)) == 8 * steps
  assert not seen & set(rest)


def test_more_of_the_embedded_set():
  def shapes(count, **mixture):
    data = Data(source="shapes", split="world", records=count, shapes=Mixture(**mixture))
    return pipeline(open_source(data), 8, buckets=(300,))

  before = shapes(40)
  after = shapes(64)
  assert gone_on(before, after, 3).startswith("shapes world has 40 -> 64 records. The epoch")
  assert names(after, 3, 2) == names(before, 3, 2)
  assert len(set(names(after, 5, 8))) == 64
  other = gone_on(before, shapes(40, long_captions=0.5), 3)
  assert "shapes world (40 records) changed" in other
  assert "had 0 of these 40 records" in other


def chosen(mask):
  return Chosen(np.packbits(mask), len(mask))


def test_marks_go_through_text():
  for count in (1, 8, 1001):
    seen = np.random.default_rng(count).random(count) < 0.5
    seen[0] = True
    np.testing.assert_array_equal(marks.unpack(marks.pack(chosen(seen)), count).mask(), seen)
  assert marks.unpack(marks.pack(chosen(np.zeros(9, bool))), 9) is None
  for text, count in (("no text", 3), (marks.pack(chosen(np.ones(30, bool))), 3)):
    with pytest.raises(ValueError, match="marks of"):
      marks.unpack(text, count)


def test_parts_of_one_content_are_told_apart_by_name():
  a, b = Part("a", 2, "x"), Part("b", 2, "x")
  seen = chosen(np.array([True, False, False, True]))
  assert marks.moved(seen, [a, b], [b, a]).mask().tolist() == [False, True, True, False]
  assert marks.moved(seen, [a, b], [b]).mask().tolist() == [False, True]
  assert marks.moved(seen, [a, b], [Part("c", 2, "x")]).mask().tolist() == [True, False]
  many = [Part(str(i), 1, str(i)) for i in range(9)]
  assert marks.differences([], many)[-2:] == ["5 (1 records) is new", "3 more"]
