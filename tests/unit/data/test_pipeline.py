"""Batches: determinism, processes, buckets, resuming, damaged records."""

from fakes import InMemory
from fakes import write_tar
import numpy as np
import pytest

from blip3o_jax import config
from blip3o_jax.data.opening import used
from blip3o_jax.data.options import Ingredient
from blip3o_jax.data.pipeline import BadDataError
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import open_source
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import counted
from blip3o_jax.data.sources.reading import Reading

BATCH, BUCKETS = 8, (7, 16)


class Row:
  """A row of a bucket: three tokens to begin with, and one for each letter of the prompt."""

  counts = "three and letters"

  def __init__(self, bucket):
    self.bucket = bucket

  def tokens(self, record):
    return 3 + len(record.prompt)

  def __call__(self, record, rng):
    if record.kind == "bad":
      raise BadRecord(f"{record.name} is damaged")
    row = np.zeros(self.bucket, np.int32)
    row[-len(record.prompt) - 3 :] = 1
    return {
      "tokens": row,
      "positions": np.stack([row] * 3),
      "index": np.int32(record.name),
      "noise": rng.normal(size=2),
    }


def records(count=100, bad=()):
  return [
    Record(prompt="x" * (1 + i % 9), name=str(i), kind="bad" if i in bad else "")
    for i in range(count)
  ]


def pipeline(rows=(), source=None, buckets=BUCKETS, **fields):
  source = InMemory(records()) if source is None else source
  cfg = Data(**({"batch": BATCH, "buckets": buckets, "threads": 3} | fields))
  return Pipeline(source, {b: Row(b) for b in buckets}, cfg, rows)


def equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_is_a_function_of_seed_and_step():
  one, two = pipeline(), pipeline()
  for step in (0, 5, 40, 3):
    equal(one.batch_at(step), two.batch_at(step))
  other = pipeline(seed=1)
  assert any((one.batch_at(s)["index"] != other.batch_at(s)["index"]).any() for s in range(3))


@pytest.mark.parametrize("slicing", ["strided", "contiguous"])
def test_the_global_batch_is_the_same_on_1_4_and_8_processes(slicing):
  whole = pipeline()
  for count in (4, 8):
    if slicing == "strided":
      rows = [range(p, BATCH, count) for p in range(count)]
    else:
      rows = [range(p * BATCH // count, (p + 1) * BATCH // count) for p in range(count)]
    parts = [pipeline(r) for r in rows]
    order = np.argsort(np.concatenate([np.array(r) for r in rows]))
    for step in (0, 13):
      batches = [p.batch_at(step) for p in parts]
      for name, value in whole.batch_at(step).items():
        joined = np.concatenate([b[name] for b in batches])
        np.testing.assert_array_equal(joined[order], value)


def test_shapes_are_static_within_a_bucket_and_rows_fit():
  p = pipeline()
  seen = set()
  for step in range(p.steps_per_epoch):
    batch, bucket = p.batch_at(step), p.bucket_at(step)
    seen.add(bucket)
    assert batch["tokens"].shape == (BATCH, bucket)
    assert batch["positions"].shape == (BATCH, 3, bucket)
    assert (batch["tokens"].sum(1) <= 7).all() == (bucket == 7)
  assert seen == set(BUCKETS)


def test_an_epoch_holds_each_record_once_and_epochs_differ():
  p = pipeline()
  epochs = [
    [i for s in range(p.steps_per_epoch) for i in p.batch_at(e * p.steps_per_epoch + s)["index"]]
    for e in range(2)
  ]
  for epoch in epochs:
    assert len(set(epoch)) == len(epoch) == BATCH * p.steps_per_epoch
    assert len(epoch) > 100 - 2 * BATCH
  assert epochs[0] != epochs[1]


def test_ids_are_the_records_of_the_rows():
  whole = pipeline()
  for rows in ((5, 0, 5), range(2, 6)):
    p = pipeline(rows)
    for step in (0, 3, 40):
      ids = p.ids_at(step)
      assert ids == [whole.ids_at(step)[row] for row in rows]
      np.testing.assert_array_equal(p.batch_at(step)["index"], ids)


def test_lengths_are_those_of_the_words():
  """Each record is counted; a damaged one has none, and comes up where it is met."""
  found = [Record(prompt="é" * n, name=str(n)) for n in range(60)]
  source = InMemory(found)
  np.testing.assert_array_equal(counted(source, Row(16).tokens), [3 + n for n in range(60)])

  class Damaged(InMemory):
    def words(self, index):
      if index % 2:
        raise BadRecord("damaged")
      return super().words(index)

  expected = [0 if n % 2 else 3 + n for n in range(60)]
  np.testing.assert_array_equal(counted(Damaged(found), Row(16).tokens), expected)


def test_randomness_of_a_record_is_of_seed_epoch_and_index():
  p = pipeline(buckets=(16,))
  seen = {}
  for step in range(2 * p.steps_per_epoch):
    batch = p.batch_at(step)
    for i, noise in zip(batch["index"], batch["noise"], strict=True):
      expected = np.random.default_rng((0, step // p.steps_per_epoch, int(i))).normal(size=2)
      np.testing.assert_array_equal(noise, expected)
      seen.setdefault(int(i), set()).add(tuple(noise))
  assert max(map(len, seen.values())) == 2


def test_order_of_the_source_for_evaluation():
  p = pipeline(buckets=(16,), shuffle=False)
  np.testing.assert_array_equal(p.batch_at(1)["index"], range(BATCH, 2 * BATCH))
  np.testing.assert_array_equal(p.batch_at(p.steps_per_epoch)["index"], range(BATCH))


def test_damaged_records_are_replaced_always_the_same_and_counted(warnings):
  bad = {3, 50}
  source = InMemory(records(bad=bad))
  one, two, good = pipeline(source=source), pipeline(source=source), pipeline()
  replaced = set()
  for step in range(2 * one.steps_per_epoch):
    a, b = one.batch_at(step), good.batch_at(step)
    equal(a, two.batch_at(step))
    assert not bad & set(a["index"].tolist())
    different = a["index"] != b["index"]
    replaced |= set(
      zip(b["index"][different].tolist(), a["index"][different].tolist(), strict=True)
    )
  assert {i for i, _ in replaced} == bad
  assert len(replaced) == 2  # in both epochs by the same record
  assert one.replaced == two.replaced > 2
  assert any("50 is damaged" in line for line in warnings)


def test_strict_raises_for_a_damaged_record():
  p = pipeline(source=InMemory(records(bad=range(100))), strict=True)
  with pytest.raises(BadRecord, match=r"\d+ is damaged"):
    p.batch_at(0)


def test_all_damaged_is_an_error(warnings):
  with pytest.raises(BadRecord, match="replacements of record"):
    pipeline(source=InMemory(records(bad=range(100)))).batch_at(0)


def test_cache_keeps_what_was_transformed():
  class Counting(InMemory):
    reads = 0

    def __getitem__(self, index):
      self.reads += 1
      return super().__getitem__(index)

  source = Counting(records())
  p = pipeline(source=source, cache=True, buckets=(16,))
  batches = [p.batch_at(s) for s in range(3 * p.steps_per_epoch)]
  assert source.reads <= 100
  equal(batches[0], p.batch_at(0))


def test_small_buckets_move_up(warnings):
  source = InMemory(records(5) + [Record(prompt="x" * 12, name=str(i)) for i in range(8)])
  p = pipeline(source=source)
  assert p.steps_per_epoch == 1
  assert p.bucket_at(0) == 16
  source = InMemory(records(4) * 4 + [Record(prompt="x" * 12, name="3")])
  pipeline(source=source)
  assert "1 records of prompt bucket 2 (of 2) never occur" in warnings[0]


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    (dict(buckets=(64, 16)), "not positive and ascending"),
    (dict(buckets=()), "not positive and ascending"),
    (dict(batch=0), "batch 0"),
    (dict(holdout=1.0), "holdout"),
    (dict(split="validation"), "expected 'train' or 'test'"),
    (dict(prefetch=0), "prefetch"),
  ],
)
def test_wrong_configs(fields, match):
  with pytest.raises(ValueError, match=match):
    Data(**fields)


def test_wrong_arguments():
  with pytest.raises(ValueError, match="do not fill one batch"):
    pipeline(source=InMemory(records(7)))
  with pytest.raises(ValueError, match="rows 0 to 8"):
    pipeline(range(9))


def test_rows_of_different_shapes_are_named():
  cfg = Data(batch=2, buckets=(4,))
  source = InMemory([Record(prompt="a"), Record(prompt="bb")])

  class Uneven(Row):
    def __call__(self, record, rng):
      return {"x": np.zeros(len(record.prompt))}

  p = Pipeline(source, {4: Uneven(4)}, cfg)
  with pytest.raises(ValueError, match="x: records of one batch have different shapes"):
    p.batch_at(0)


def test_holdout_divides_a_folder(tmp_path):
  write_tar(tmp_path / "a.tar", {f"{i}.{e}": b"x" for i in range(200) for e in ("jpg", "txt")})
  path = str(tmp_path)

  def kept(**fields):
    cfg = Data(path=path, **fields)
    source = open_source(cfg)
    return {source[int(i)].name for i in np.flatnonzero(used(source, cfg).mask())}

  train, test = kept(holdout=0.2), kept(split="test", holdout=0.2)
  assert not train & test
  assert len(train | test) == 200
  assert 20 < len(test) < 60
  assert len(kept()) == 200
  assert kept(records=7) == {f"a.tar:{i}" for i in range(7)}
  assert kept(records=7, split="test", holdout=0.2) < test
  assert pipeline(source=open_source(Data(path=path)), records=16).records == 16
  with pytest.raises(ValueError, match=r"config\.data\.path: expected a folder"):
    open_source(Data())
  with pytest.raises(ValueError, match="'test' is empty"):
    kept(split="test")


def test_sets_are_mixed_by_weight(tmp_path):
  for name, count in (("long", 200), ("short", 40)):
    (tmp_path / name).mkdir()
    write_tar(
      tmp_path / name / f"{name}.tar",
      {f"{i}.{e}": b"x" for i in range(count) for e in ("jpg", "txt")},
    )
  sets = tuple(Ingredient(str(tmp_path / n), w) for n, w in (("long", 9), ("short", 1)))
  cfg = Data(mixture=sets, batch=BATCH)
  source = open_source(cfg)
  p = pipeline(source=source, mixture=sets, buckets=(16,))
  names = [source[i].name for s in range(2 * p.steps_per_epoch) for i in p.ids_at(s)]
  assert len(source) == 240
  shares = p.shares(0, 2 * p.steps_per_epoch)
  assert shares == pytest.approx({"long": 0.9, "short": 0.1}, abs=0.01)
  assert len(set(names)) > 230
  assert [part.name for part in source.parts()] == ["long/long.tar", "short/short.tar"]
  np.testing.assert_array_equal(
    source.hashes(190, 210), np.concatenate([source.hashes(190, 200), source.hashes(200, 210)])
  )
  again = tuple(Ingredient(str(tmp_path / "long"), w) for w in (1, 2))
  with pytest.raises(ValueError, match="'long' is the name of several"):
    open_source(Data(mixture=again))
  with pytest.raises(ValueError, match="path '/x': each set of the mixture has its own"):
    Data(mixture=sets, path="/x")
  with pytest.raises(ValueError, match="expected a positive weight"):
    Ingredient("/x", -1.0)


def test_captions_in_shares_are_a_mixture(tmp_path):
  rows = {f"{i}.json": b'{"long": "long %d", "short": "s %d"}' % (i, i) for i in range(80)}
  write_tar(tmp_path / "a.tar", rows | {f"{i}.jpg": b"x" for i in range(80)})
  reading = Reading(caption="long:0.75 short:0.25")
  source = open_source(Data(path=str(tmp_path), reading=reading))
  p = pipeline(source=source, reading=reading)
  found = [source[i].prompt.split()[0] for s in range(p.steps_per_epoch) for i in p.ids_at(s)]
  assert found.count("long") / len(found) == pytest.approx(0.75, abs=0.07)
  assert len(source) == 160
  with pytest.raises(ValueError, match="expected FIELD or FIELD:SHARE"):
    Reading(caption="long:0.5 long:0.5")


def test_too_many_damaged_records_stop_the_run():
  """They are counted by kind and listed, and replaced up to a rate."""
  source = InMemory(records(200, bad=range(0, 200, 4)))
  p = pipeline(source=source, bad_rate=0.5)
  for step in range(10):
    p.batch_at(step)
  found = p.drained()
  assert len(found) == p.replaced > 0
  assert not p.drained()
  assert {f["kind"] for f in found} == {"other"}
  assert all(f["record"] % 4 == 0 and "is damaged" in f["error"] for f in found)
  strict = pipeline(source=source, bad_rate=0.1)
  with pytest.raises(BadDataError, match=r"20 of \d+ records are damaged \(20 others\), the last"):
    list(map(strict.batch_at, range(40)))


def test_the_synthetic_set_needs_no_files():
  source = open_source(Data(source="synthetic", records=50))
  assert len(source) == 50
  record = source[3]
  assert record.image.shape == (512, 512, 3)
  assert (source[3].image == record.image).all()
  assert (source[4].image != record.image).any()
  assert source.words(3).prompt == record.prompt
  with pytest.raises(ValueError, match="the synthetic set needs a number of records"):
    open_source(Data(source="synthetic"))


def test_every_field_is_a_flag():
  values = config.to_config(Data())
  values.batch, values.buckets = 16, (64, 160)
  assert config.build(Data, values) == Data(batch=16, buckets=(64, 160))
  with pytest.raises(ValueError, match="did you mean 'buckets'"):
    config.build(Data, {"bucket": (64,)})
