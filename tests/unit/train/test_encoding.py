"""What is encoded, in which batches, and what becomes of records that cannot be."""

import json
from typing import Any
import zlib

import numpy as np
import pytest
from tqdm import tqdm

from blip3o_jax.data.options import Data
from blip3o_jax.data.options import Ingredient
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.train import encoding


class Numbers:
  """Records that are named by their number; number 7 cannot be read, of 3 no picture is made."""

  def __len__(self) -> int:
    return 40

  def __getitem__(self, index: int) -> Record:
    if index == 7:
      raise BadRecord("n7: unreadable", "read")
    return self.words(index)

  def words(self, index: int) -> Record:
    return Record(image=b"", prompt=f"caption {index}", name=f"n{index}")

  def hashes(self, first: int, end: int) -> np.ndarray:
    return np.array([zlib.crc32(b"%d" % i) for i in range(first, end)], np.uint32)

  def lengths(self, name: str, count: Any) -> np.ndarray:
    return np.ones(40, int)

  def parts(self) -> list[Part]:
    return [Part("numbers", 40, "numbers")]


def picture(record: Record) -> dict[str, np.ndarray]:
  if record.name == "n3":
    raise BadRecord("n3: no picture", "picture")
  return {"images": np.full((2, 2, 3), int(record.name[1:]), np.uint8)}


class Doubles:
  """Stands for the devices: features are the pictures' numbers, doubled."""

  rows = 4

  def __call__(self, batch: dict[str, np.ndarray]) -> np.ndarray:
    return 2.0 * batch["images"][:, :1, :1, :1].astype(np.float32)


def encoded(spans: list[np.ndarray]) -> list[encoding.Encoded]:
  reader = encoding.Reader(Numbers(), Data(path="x", threads=3, prefetch=2), picture)
  return list(encoding._encoded(reader.batches(spans, 4), Doubles()))  # type: ignore[arg-type]


def test_every_record_once_and_in_order():
  spans = [np.arange(10), np.arange(20, 23), np.arange(30, 34)]
  found = encoded(spans)
  assert [row.index for row, _ in found] == [i for span in spans for i in span]
  for row, features in found:
    if row.index in (3, 7):
      assert features is None
      assert isinstance(row.record, BadRecord)
    else:
      assert features.ravel().tolist() == [2 * row.index]
    assert row.name == f"n{row.index}"
    assert row.digest == zlib.crc32(b"%d" % row.index)


def test_batches_end_with_their_span():
  reader = encoding.Reader(Numbers(), Data(path="x", threads=2), picture)
  sizes = [len(rows) for rows in reader.batches([np.arange(10), np.arange(20, 23)], 4)]
  assert sizes == [4, 4, 2, 3]


def test_what_is_damaged_is_noted(tmp_path):
  notes, bar = tmp_path / "notes.jsonl", tqdm(disable=True)
  rows = iter(encoded([np.arange(2, 9)]))
  found = list(encoding._given(rows, notes, False, False, bar))
  assert [given.key for given in found] == [f"n{i}" for i in range(2, 9)]
  assert [i for i, given in enumerate(found, 2) if isinstance(given.record, BadRecord)] == [3, 7]
  assert all(g.record.image is None for g in found if isinstance(g.record, Record))
  assert [json.loads(line) for line in notes.read_text().splitlines()] == [
    {"record": 3, "name": "n3", "kind": "picture", "error": "n3: no picture"},
    {"record": 7, "name": "n7", "kind": "read", "error": "n7: unreadable"},
  ]
  with pytest.raises(BadRecord, match="n3: no picture"):
    list(encoding._given(iter(encoded([np.arange(2, 9)])), notes, False, True, bar))


def test_features_that_are_not_finite(tmp_path):
  ((row, features),) = encoded([np.arange(1)])
  rows = iter([(row, features * np.nan)])
  with pytest.raises(ValueError, match="n0: its features are not finite"):
    list(encoding._given(rows, tmp_path / "notes", True, False, tqdm(disable=True)))


def test_both_splits_are_encoded():
  source = Numbers()
  test = source.hashes(0, 40) < 0.25 * 2**32
  assert 4 < test.sum() < 20
  all_of_them = Data(path="x", holdout=0.25, split="test")
  np.testing.assert_array_equal(encoding._chosen(source, all_of_them), np.arange(40))
  few = encoding._chosen(source, Data(path="x", holdout=0.25, records=3))
  wanted = sorted([*np.flatnonzero(test)[:3], *np.flatnonzero(~test)[:3]])
  assert few.tolist() == wanted
  none = encoding._chosen(source, Data(path="x", holdout=1e-9))
  np.testing.assert_array_equal(none, np.arange(40))


def test_several_sets_are_refused():
  mixture = (Ingredient("a"), Ingredient("b"))
  with pytest.raises(ValueError, match=r"config\.data\.mixture: names several sets; encode each"):
    encoding._pictures(Data(mixture=mixture))
  two = Reading(caption="long:0.9 short:0.1")
  with pytest.raises(ValueError, match=r"config\.data\.reading\.caption: names several sets"):
    encoding._pictures(Data(path="a", reading=two))
  assert encoding._pictures(Data(path="a", features=True)) == Data(path="a")
  kept = Data(source="shapes", split="generator", path="a", features=True, records=4)
  assert encoding._pictures(kept).path == ""
