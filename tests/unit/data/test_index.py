"""The index of a set: columns on disk, what is scanned and counted again, where it lies."""

from concurrent.futures import ThreadPoolExecutor
import functools
import gc
import itertools
import multiprocessing
import os
from pathlib import Path
import pickle
import threading
import zlib

import numpy as np
import pytest

from blip3o_jax.data import index
from blip3o_jax.data import indexing
from blip3o_jax.data.index import Scanned

SCANNED = []


def scan(path, *, width=0, problem="", same=True):
  """A file of n bytes has n records."""
  SCANNED.append(Path(path).name)
  count = os.path.getsize(path)
  name = Path(path).name
  keys = [f"{name}-{i:0{width}d}".encode() for i in range(count)]
  columns = {
    "number": np.arange(count, dtype=np.uint32 if count < 50 else np.uint64),
    "pair": np.full((count, 2), 7, np.int16) if same else np.arange(2 * count).reshape(-1, 2),
  }
  texts = {"words": [b"w" * (i % 5) for i in range(count)]}
  left = {"others": 2} if name == "b" else {}
  first = {"others": "x\n"} if name == "b" else {}
  damage = problem if name == "b" else ""
  return Scanned(columns, keys, left, first, damage, noted={"of note": 1}, texts=texts)


def dies_in_another_process(path):
  if multiprocessing.parent_process() is not None:
    os._exit(3)
  return scan(path)


@pytest.fixture
def home(tmp_path, monkeypatch):
  SCANNED.clear()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = tmp_path / "set"
  folder.mkdir()
  for name, count in (("a", 3), ("b", 0), ("c", 70)):
    (folder / name).write_bytes(bytes(count))
  return folder


def opened(home, files="abc", how=scan, **options):
  return index.opened(str(home), list(files), how, layout="letters of a", **options)


def keys(made):
  return [made.key(i).decode() for i in range(len(made))]


@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize("same", [False, True])
def test_columns(home, width, same, caplog):
  how = functools.partial(scan, width=width, same=same)
  made = opened(home, how=how)
  wanted = [f"{name}-{i:0{width}d}" for name, n in (("a", 3), ("c", 70)) for i in range(n)]
  numbers = [*range(3), *range(70)]
  for found in (made, opened(home, how=how), pickle.loads(pickle.dumps(made))):
    assert len(found) == 73
    assert keys(found) == wanted
    np.testing.assert_array_equal(found.column("number"), numbers)
    assert found.column("pair").shape == (73, 2)
    pairs = [[7, 7]] * 73 if same else [[2 * i, 2 * i + 1] for i in numbers]
    np.testing.assert_array_equal(found.column("pair"), pairs)
    assert found.text("words", 6) == b"www"
    assert [found.place(i) for i in (0, 2, 3, 72)] == [(0, 0), (0, 2), (2, 0), (2, 69)]
    crc = [zlib.crc32(key.encode()) for key in wanted]
    np.testing.assert_array_equal(found.hashes(0, 73), crc)
    np.testing.assert_array_equal(found.hashes(5, 9), crc[5:9])
    assert [part.records for part in found.parts()] == [3, 0, 70]
    assert found.told() == "left out: 2 others. 3 of note"
  assert SCANNED == ["a", "b", "c"]
  assert f"{home}/b: left out: 2 others, the first x\\n. 1 of note" in caplog.text
  assert len(pickle.dumps(made)) < 2000
  with pytest.raises(IndexError, match="record 73 of 73"):
    made.place(73)
  with pytest.raises(KeyError, match=r"no column absent; there are \['hash', 'number', 'pair'\]"):
    made.column("absent")
  with pytest.raises(ValueError, match="read-only"):
    made.column("number")[0] = 1


def test_a_file_that_is_new_leaves_the_others_as_they_were(home):
  before = opened(home)
  (home / "0").write_bytes(bytes(4))
  after = opened(home, "0abc")
  assert SCANNED == ["a", "b", "c", "0"]
  assert keys(after)[4:] == keys(before) == keys(opened(home))
  assert after.parts()[1:] == before.parts()
  np.testing.assert_array_equal(after.hashes(4, 77), before.hashes(0, 73))
  assert not before.changed(0)
  (home / "a").write_bytes(bytes(5))
  assert before.changed(0)
  assert not before.changed(2)
  assert len(opened(home, "0abc")) == 79
  assert SCANNED[4:] == ["a"]
  assert len(opened(home, "0c")) == 74  # a file that is gone
  assert SCANNED[5:] == []
  with pytest.raises(FileNotFoundError, match="absent"):
    index.opened(str(home), ["absent"], scan, layout="letters")


def test_two_layouts_have_two_indices(home):
  assert len(opened(home)) == 73
  other = index.opened(str(home), ["a"], scan, layout="letters of b")
  assert len(other) == 3
  assert SCANNED == ["a", "b", "c", "a"]
  opened(home)
  assert len(SCANNED) == 4


def test_a_killed_run_goes_on(home):
  """Each file is stored when it is scanned; of a run that ends early nothing else is seen."""
  whole = [path.name for path in home.iterdir()]
  (home / "c").unlink()
  (home / "c").mkdir()  # cannot be scanned
  with pytest.raises(OSError, match="c"):
    opened(home, how=reads, stat=stats_of_any)
  assert not list(home.glob(".blip3o/*/*/index.json"))
  assert len(list(home.glob(".blip3o/*/pieces/*.npz"))) == 2
  (home / "c").rmdir()
  (home / "c").write_bytes(bytes(70))
  made = opened(home, how=reads, stat=stats_of_any)
  assert SCANNED == ["a", "b", "c"]
  assert len(made) == 73
  assert not list(home.glob(".blip3o/*/pieces/*"))
  assert sorted(path.name for path in home.iterdir()) == sorted([*whole, ".blip3o"])


def stats_of_any(path):
  return index.storage.Stat(1, "always")


def reads(path):
  with open(path, "rb"):
    return scan(path)


def test_processes_give_the_same_index(home):
  alone, several = opened(home, write=False), opened(home, workers=2)
  assert SCANNED == ["a", "b", "c"]
  assert keys(alone) == keys(several)
  assert alone.parts() == several.parts()
  np.testing.assert_array_equal(alone.column("number"), several.column("number"))


def test_processes_that_cannot_work(home, caplog):
  assert len(opened(home, how=dies_in_another_process, workers=2)) == 73
  assert "scanned one by one: processes could not work" in caplog.text


def test_a_cut_file(home, caplog):
  how = functools.partial(scan, problem="cut at its end")
  (home / "b").write_bytes(bytes(2))
  with pytest.raises(ValueError, match=r"/b: cut at its end; 2 records are whole\. Fetch it again"):
    opened(home, how=how)
  assert SCANNED == ["a", "b", "c"]
  assert opened(home, how=how, partial=True).problems == {"b": "cut at its end"}
  with pytest.raises(ValueError, match="cut at its end"):  # each call says what it accepts
    opened(home, how=how)
  assert SCANNED == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["json", "column", "piece"])
def test_what_is_damaged_is_made_again(home, damage, caplog):
  opened(home)
  (folder,) = [path.parent for path in home.glob(".blip3o/*/*/index.json")]
  if damage == "json":
    (folder / "index.json").write_text("{")
  elif damage == "column":
    os.truncate(folder / "number.npy", 100)
  else:
    (home / "d").write_bytes(bytes(1))
    entry = indexing.stats_of(str(home), ["d"], index.storage.stat)[0]
    piece = folder.parent / "pieces" / f"{index.digest(*entry)}.npz"
    piece.write_bytes(b"damaged")
  made = opened(home, "abcd" if damage == "piece" else "abc")
  assert made.column("number")[-1] == (0 if damage == "piece" else 69)
  assert "not readable" in caplog.text
  assert SCANNED[3:] == (["d"] if damage == "piece" else ["a", "b", "c"])


def test_a_folder_that_cannot_be_written(home, tmp_path):
  (home / ".blip3o").write_bytes(b"in the way")
  assert len(opened(home)) == len(opened(home)) == 73
  assert SCANNED == ["a", "b", "c"]
  assert list((tmp_path / "cache" / "blip3o" / "indices").rglob("index.json"))
  np.testing.assert_array_equal(opened(home).lengths("x", lambda i: 2 * i), 2 * np.arange(73))


def test_an_index_that_is_not_written(home, tmp_path):
  made = opened(home, write=False)
  folder = Path(made.folder)
  assert made.key(0) == b"a-0"
  assert folder.is_dir()
  assert not (home / ".blip3o").exists()
  assert not (tmp_path / "cache").exists()
  del made
  gc.collect()
  assert not folder.exists()


def test_nowhere_to_write(home, tmp_path, caplog):
  for place in (home / ".blip3o", tmp_path / "cache"):
    place.write_bytes(b"in the way")
  assert len(opened(home)) == 73
  assert "its index cannot be kept" in caplog.text


def test_lengths_are_counted_once(home):
  asked = []

  def count(i):
    asked.append(i)
    return 10**6 if i == 2 else i

  made = opened(home)
  expected = [65535 if i == 2 else i for i in range(73)]
  np.testing.assert_array_equal(made.lengths("tokens", count), expected)
  found = opened(home).lengths("tokens", count)
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.uint16
  assert sorted(asked) == list(range(73))
  np.testing.assert_array_equal(made.lengths("others", lambda i: 1), np.ones(73))
  (home / "0").write_bytes(bytes(2))
  asked.clear()
  more = opened(home, "0abc").lengths("tokens", count)
  np.testing.assert_array_equal(more, [0, 1, *expected])
  assert sorted(asked) == [0, 1]


def test_counting_that_was_killed_goes_on(home):
  asked = []

  def count(i):
    asked.append(i)
    if i == 50 and threading.current_thread() is not threading.main_thread():
      raise RuntimeError("killed")
    return i

  made = opened(home)
  with pytest.raises(RuntimeError, match="killed"):
    made.lengths("tokens", count)
  ends = made.bounds.tolist()
  whole = [range(*pair) for pair in itertools.pairwise(ends) if 50 not in range(*pair)]
  done = {i for part in whole if set(part) <= set(asked) for i in part}
  asked.clear()
  np.testing.assert_array_equal(made.lengths("tokens", lambda i: asked.append(i) or i), range(73))
  assert sorted(asked) == [i for i in range(73) if i not in done]
  assert not list(Path(made.folder).glob("lengths-*-*"))
  assert not list(Path(made.folder).glob(".*"))


def test_processes_that_share_a_disk_count_a_record_once(home):
  """While one counts its first part another counts all others: neither counts what is there."""
  made, mine, others = opened(home), [], []

  def other(i):
    others.append(i)
    return i

  def count(i):
    if not mine:
      mine.append(i)
      opened(home).lengths("tokens", other)
    mine.append(i)
    return i

  np.testing.assert_array_equal(made.lengths("tokens", count), range(73))
  (part,) = {made.place(i)[0] for i in mine}
  assert sorted(others) == list(range(73))
  assert set(mine) == set(range(*made.bounds[part : part + 2].tolist()))
  assert not list(Path(made.folder).glob("lengths-*-*"))


def test_nothing_in_it(home):
  made = opened(home, "b")
  assert len(made) == len(made.hashes(0, 0)) == len(made.lengths("x", lambda i: 1)) == 0
  assert made.parts()[0].records == 0


def test_an_earlier_index_is_removed_when_it_is_old(home, monkeypatch):
  opened(home)
  monkeypatch.setattr(indexing, "KEPT", -10)
  opened(home, "ab")
  assert [path.parent.name for path in home.glob(".blip3o/*/*/index.json")] == [
    Path(opened(home, "ab").folder).name
  ]


def test_several_that_make_the_same_index_at_once(home):
  """As the hosts of a pod do on one disk; who is last finds what the first made."""
  for i in range(20):
    (home / f"more{i:02d}").write_bytes(bytes(30))
  names = [*"abc", *(f"more{i:02d}" for i in range(20))]
  start = threading.Barrier(4)

  def one(_):
    start.wait()
    return opened(home, names)

  with ThreadPoolExecutor(4) as pool:
    made = list(pool.map(one, range(4)))
  assert len({index.folder for index in made}) == 1
  assert all(keys(index) == keys(made[0]) for index in made)
  assert len(made[0]) == 673
  assert not list(home.glob(".blip3o/*/.*"))
