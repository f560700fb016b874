"""A run that goes on with other batches or records: nothing is skipped, nothing comes twice."""

import json

from fakes import InMemory
from fakes import write_tar
import numpy as np
import pytest

from blip3o_jax.data import order
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import open_source
from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record
from blip3o_jax.data.shapes.source import Mixture


class Row:
  """The record's name, and how many tokens its caption has."""

  def tokens(self, record):
    return len(record.prompt)

  def __call__(self, record, rng):
    return {"name": np.array(record.name), "noise": rng.normal(size=2)}


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
  "a tar more": (lambda h: folder(h, c=16), "c.tar (16 records) is new", 96),
  "a tar before the others": (lambda h: folder(h, A=16), "A.tar (16 records) is new", 96),
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
  all_names = {after.source[i].name for i in range(len(after.source))}
  steps = (len(all_names) - len(seen & all_names)) // 8
  rest = names(after, 3, steps)
  assert len(set(rest)) == 8 * steps
  assert not seen & set(rest)


def test_more_of_the_embedded_set():
  def shapes(count, **mixture):
    data = Data(source="shapes", split="world", records=count, shapes=Mixture(**mixture))
    return pipeline(open_source(data), 8, buckets=(300,))

  before = shapes(40)
  seen = names(before, 0, 3)
  after = shapes(64)
  assert gone_on(before, after, 3).startswith("shapes world has 40 -> 64 records. 24 samples")
  assert not set(seen) & set(names(after, 3, 5))
  other = gone_on(before, shapes(40, long_captions=0.5), 3)
  assert "shapes world (40 records) changed" in other
  assert "had 0 of these 40 records" in other


def test_marks_go_through_text():
  for count in (1, 8, 1001):
    seen = np.random.default_rng(count).random(count) < 0.5
    np.testing.assert_array_equal(order.unpack(order.pack(seen), count), seen)
  for text, count in (("no text", 3), (order.pack(np.ones(30, bool)), 3)):
    with pytest.raises(ValueError, match="marks of"):
      order.unpack(text, count)


def test_parts_of_one_content_are_told_apart_by_name():
  a, b = Part("a", 2, "x"), Part("b", 2, "x")
  seen = np.array([True, False, False, True])
  assert order.moved(seen, [a, b], [b, a]).tolist() == [False, True, True, False]
  assert order.moved(seen, [a, b], [b]).tolist() == [False, True]
  assert order.moved(seen, [a, b], [Part("c", 2, "x")]).tolist() == [True, False]
  many = [Part(str(i), 1, str(i)) for i in range(9)]
  assert order.differences([], many)[-2:] == ["5 (1 records) is new", "3 more"]
