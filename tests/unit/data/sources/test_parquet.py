"""Parquet: pictures in structs, bytes and names, row groups on demand, splits, what is cut."""

import threading

from absl import logging
from fakes import write_tar
from layouts import lines
from layouts import picture
from layouts import put
from layouts import table
import numpy as np
import pytest

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources import groups
from blip3o_jax.data.sources.jsonl import JsonlSource
from blip3o_jax.data.sources.parquet import ParquetSource
from blip3o_jax.data.sources.parquet import split_of
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.data.sources.tars import TarSource

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

CAPTIONS = [f"caption {i} ü" for i in range(12)]
BYTES = pyarrow.binary()
STRUCT = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


def rows_of(make, count=5):
  return [{"text": CAPTIONS[i], "image": make(i)} for i in range(count)]


def source_of(path, **reading):
  return ParquetSource(str(path), Reading(**reading))


def all_of(source):
  return [(r.prompt, r.image) for r in map(source.__getitem__, range(len(source)))]


EXPECTED = [(CAPTIONS[i], picture(i)) for i in range(12)]


def test_captions_that_are_written_anew_are_counted_anew(tmp_path):
  def counted():
    source = source_of(tmp_path)
    return source.parts(), source.lengths("words", lambda r: len(r.prompt.split())).tolist()

  rows = [{"text": text, "image": picture(i)} for i, text in enumerate(("a cat", "a dog"))]
  table(tmp_path / "a.parquet", rows)
  before, lengths = counted()
  assert lengths == [2, 2]
  rows = [{**row, "text": f"{row['text']} on a mat"} for row in rows]
  table(tmp_path / "a.parquet", rows)
  after, lengths = counted()
  assert lengths == [5, 5]
  assert after == before  # they are the same records for whoever goes on


@pytest.fixture
def folder(tmp_path):
  table(tmp_path / "a.parquet", rows_of(picture))
  return tmp_path


@pytest.mark.parametrize("kind", ["bytes", "large", "struct", "struct of bytes", "path", "name"])
def test_ways_to_keep_a_picture(tmp_path, kind):
  make, of = {
    "bytes": (picture, BYTES),
    "large": (picture, pyarrow.large_binary()),
    "struct": (lambda i: {"bytes": picture(i), "path": None}, STRUCT),
    "struct of bytes": (lambda i: {"bytes": picture(i)}, pyarrow.struct({"bytes": BYTES})),
    "path": (lambda i: {"bytes": None, "path": f"{i}.png"}, STRUCT),
    "name": (lambda i: f"{i}.png", pyarrow.string()),
  }[kind]
  table(tmp_path / "a.parquet", rows_of(make), image=of)
  if kind in ("path", "name"):
    for i in range(5):
      put(tmp_path, f"imgs/{i}.png", picture(i))
  source = source_of(tmp_path, images="imgs" if kind in ("path", "name") else "")
  assert all_of(source) == EXPECTED[:5]
  assert source[4].name == source.words(4).name == "a.parquet:4"
  assert source.words(3).prompt == CAPTIONS[3]
  assert source.words(3).image is None


def test_one_set_in_four_layouts(tmp_path):
  """The same 12 captioned pictures give equal records as tars, tables and a list."""
  members = {}
  for i in range(12):
    members |= {f"{i:02d}.png": picture(i), f"{i:02d}.txt": CAPTIONS[i].encode()}
    put(tmp_path, f"list/{i}.png", picture(i))
  (tmp_path / "tars").mkdir()
  write_tar(tmp_path / "tars" / "a.tar", members)
  table(tmp_path / "bytes" / "a.parquet", rows_of(picture, 12))
  struct = rows_of(lambda i: {"bytes": picture(i), "path": f"{i}.png"}, 12)
  table(tmp_path / "struct" / "a.parquet", struct, image=STRUCT)
  put(tmp_path, "list/list.jsonl", lines(rows_of(lambda i: f"{i}.png", 12)))
  sources = [TarSource(str(tmp_path / "tars"), Reading())]
  sources += [source_of(tmp_path / "bytes"), source_of(tmp_path / "struct")]
  sources += [JsonlSource(str(tmp_path / "list"), Reading())]
  for source in sources:
    assert all_of(source) == EXPECTED
    assert {source[i].kind for i in range(12)} == {"caption"}


def test_several_pictures_a_row_and_inputs(tmp_path):
  pairs = [{"captions": ["a", "b"], "images": [picture(1), picture(2)]}]
  pairs.append({"captions": ["c", "d"], "images": [picture(3)] * 3})
  table(tmp_path / "pairs.parquet", pairs, images=pyarrow.list_(BYTES))
  source = source_of(tmp_path / "pairs.parquet")
  assert [(source[i].prompt, source[i].image) for i in (0, 1)] == [
    ("a", picture(1)),
    ("b", picture(2)),
  ]
  with pytest.raises(BadRecord, match=r"pairs\.parquet:1/2: 3 pictures for 2 captions") as error:
    source[3]
  assert error.value.kind == "lists"
  assert source.words(3).prompt == "d"
  edits = [
    {
      "prompt": f"edit {n}",
      "input_images": [{"bytes": picture(i), "path": None} for i in range(n)],
      "output_image": {"bytes": picture(9), "path": "x.png"},
    }
    for n in range(3)
  ]
  types = {"input_images": pyarrow.list_(STRUCT), "output_image": STRUCT}
  table(tmp_path / "edits.parquet", edits, **types)
  source = source_of(tmp_path / "edits.parquet")
  assert [source[n].inputs for n in range(3)] == [tuple(map(picture, range(n))) for n in range(3)]
  assert [source.words(n).kind for n in range(3)] == ["caption", "edit", "edit"]


def test_bytes_inside_of_nested_turns(tmp_path):
  turn = {"input_images": [picture(0)], "output_images": [{"bytes": picture(1)}], "prompt": "a"}
  kind = pyarrow.struct(
    {
      "input_images": pyarrow.list_(BYTES),
      "output_images": pyarrow.list_(pyarrow.struct({"bytes": BYTES})),
      "prompt": pyarrow.string(),
    }
  )
  table(tmp_path / "a.parquet", [{"data": [turn, turn]}], data=pyarrow.list_(kind))
  source = source_of(tmp_path)
  assert source[1].inputs == (picture(0),)
  assert source[1].image == picture(1)
  assert (source.words(1).prompt, source[1].name) == ("a", "a.parquet:0/2")


def test_messages_in_columns(tmp_path):
  messages = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "a cat"}]
  row = {"id": 7, "messages": messages, "images": [{"bytes": picture(1), "path": None}]}
  table(tmp_path / "a.parquet", [row], images=pyarrow.list_(STRUCT))
  record = source_of(tmp_path)[0]
  assert (record.prompt, record.answer, record.image) == ("?", "a cat", picture(1))


def test_a_caption_in_a_column_of_bytes(tmp_path):
  rows = [{"words": b"a \xc3\xbc", "image": picture(0)}, {"words": b"\xff", "image": picture(0)}]
  table(tmp_path / "a.parquet", rows, words=BYTES)
  source = source_of(tmp_path, caption="words")
  assert source.words(0).prompt == source[0].prompt == "a ü"
  with pytest.raises(BadRecord, match=r"a\.parquet:1: a text is not UTF-8") as error:
    source[1]
  assert error.value.kind == "text"


def test_a_column_of_text_that_is_not_utf_8(tmp_path):
  bad = pyarrow.array([b"good", b"\xff\xfe", b"fine"], BYTES).view(pyarrow.string())
  pictures = pyarrow.array([picture(i) for i in range(3)])
  parquet.write_table(pyarrow.table({"text": bad, "image": pictures}), tmp_path / "a.parquet")
  source = source_of(tmp_path)
  assert len(source) == 3
  assert source[2].prompt == "fine"
  for read in (source.words, source.__getitem__):
    with pytest.raises(BadRecord, match=r"a\.parquet:1: a text is not UTF-8") as error:
      read(1)
    assert error.value.kind == "text"


def test_indexing_reads_no_pictures(tmp_path, monkeypatch):
  big = [{"text": f"t{i}", "image": np.random.default_rng(i).bytes(200_000)} for i in range(6)]
  table(tmp_path / "a.parquet", big)
  asked = []
  read = groups.read_group
  monkeypatch.setattr(
    groups, "read_group", lambda *args: asked.append((args[2], list(args[3]))) or read(*args)
  )
  source = source_of(tmp_path)
  assert asked == [(group, ["text"]) for group in range(3)]
  asked.clear()
  assert [source.words(i).prompt for i in range(6)] == [f"t{i}" for i in range(6)]
  assert source[4].image == big[4]["image"]
  assert source[5].image == big[5]["image"]
  assert asked[:3] == [(group, ["text"]) for group in range(3)]
  assert [group for group, _ in asked[3:]] == [2], "a row group is read once, and it alone"


def test_row_groups_are_kept_within_bytes():
  kept = groups.Kept(100, len)
  made = []

  def get(key, size):
    return len(kept.get(key, lambda: made.append(key) or bytes(size)))

  assert [get(key, 40) for key in "abab"] == [40] * 4
  assert made == ["a", "b"]
  get("c", 40)  # a is the one that was not used for longest
  get("b", 40)
  get("a", 40)
  assert made == ["a", "b", "c", "a"]
  assert get("large", 500) == get("large", 500) == 500
  assert made[4:] == ["large"]
  with pytest.raises(KeyError):
    kept.get("x", lambda: {}["absent"])
  assert kept.get("x", lambda: b"now") == b"now"


def test_threads_read_a_row_group_once(folder, monkeypatch):
  source = source_of(folder)
  read, asked, gate = groups.read_group, [], threading.Barrier(4)
  monkeypatch.setattr(groups, "read_group", lambda *args: asked.append(args[2]) or read(*args))
  found = {}

  def one(number):
    gate.wait(10)
    found[number] = source[number % 2].image

  threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(10)
  assert found == {number: picture(number % 2) for number in range(4)}
  assert asked == [0]


@pytest.mark.parametrize(
  ("name", "split"),
  [
    ("train-00000-of-00010.parquet", "train"),
    ("data/test-00001-of-00002-0123456789abcdef.parquet", "test"),
    ("default/validation/0000.parquet", "validation"),
    ("dev.parquet", "dev"),
    ("add_part0.parquet", ""),
    ("trains/0.parquet", ""),
  ],
)
def test_the_split_of_a_name(name, split):
  assert split_of(name) == split


def test_splits(tmp_path):
  for i, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
    table(tmp_path / "data" / f"{name}.parquet", [{"text": CAPTIONS[i], "image": picture(i)}])
  with pytest.raises(ValueError, match=r"splits test, train; name one in reading\.split"):
    source_of(tmp_path)
  assert all_of(source_of(tmp_path, split="train")) == EXPECTED[:2]
  assert all_of(source_of(tmp_path / "data", split="test")) == EXPECTED[2:3]
  with pytest.raises(ValueError, match="no file of the split 'val'; splits are test, train"):
    source_of(tmp_path, split="val")
  assert source_of(tmp_path, split="train").parts()[0].name == "data/train-00000-of-00002.parquet"


def test_parts_of_a_set_are_no_splits(tmp_path):
  for i, name in enumerate(("hqedit-00000-of-00001", "omniedit-00000-of-00001")):
    table(tmp_path / f"{name}.parquet", [{"text": CAPTIONS[i], "image": picture(i)}])
  assert all_of(source_of(tmp_path)) == EXPECTED[:2]


def test_a_file_that_is_cut(folder, monkeypatch):
  table(folder / "b.parquet", rows_of(picture, 3))
  data = (folder / "a.parquet").read_bytes()
  (folder / "a.parquet").write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match=r"a\.parquet: truncated .* keeps its table at the end"):
    source_of(folder)
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  source = source_of(folder, partial=True)
  assert all_of(source) == EXPECTED[:3]
  assert any("1 of 2 files left out" in text for text in said)
  assert any(f"{folder}/a.parquet: truncated" in text for text in said)
  (folder / "b.parquet").unlink()
  with pytest.raises(ValueError, match="no record in 1 files"):
    source_of(folder, partial=True)


def test_a_damaged_row_group(folder, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  path = folder / "a.parquet"
  source_of(folder)
  data = bytearray(path.read_bytes())
  column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
  start = column.dictionary_page_offset or column.data_page_offset
  data[start : start + 20] = bytes(20)
  path.write_bytes(data)
  source = source_of(folder)
  assert all_of(source) == [*EXPECTED[:2], EXPECTED[4]]
  assert any("2 rows of damaged row groups, the first 2" in text for text in said)


def test_a_picture_column_that_is_damaged(folder):
  path = folder / "a.parquet"
  column = parquet.ParquetFile(path).metadata.row_group(1).column(1)
  assert column.path_in_schema == "image"
  data = bytearray(path.read_bytes())
  start = column.dictionary_page_offset or column.data_page_offset
  data[start : start + 20] = bytes(20)
  path.write_bytes(data)
  source = source_of(folder)
  assert source.words(2).prompt == CAPTIONS[2]
  with pytest.raises(BadRecord, match=r"a\.parquet:2: cannot be read") as error:
    source[2]
  assert error.value.kind == "read"
  assert source[4].image == picture(4)


@pytest.mark.parametrize(
  ("data", "says"),
  [
    (b"", "it is empty"),
    (b"<html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid x\nsize 9\n", "git-lfs pointer"),
    (b"{}", "no parquet file: it begins with"),
  ],
)
def test_no_table(tmp_path, data, says):
  put(tmp_path, "a.parquet", data)
  with pytest.raises(ValueError, match=says):
    source_of(tmp_path)


def test_columns_that_nobody_knows_are_listed(tmp_path):
  table(tmp_path / "a.parquet", [{"words": "a", "photo": picture(1)}])
  with pytest.raises(ValueError, match=r"2? ?rows without a caption.*The columns are words, photo"):
    source_of(tmp_path)
  assert all_of(source_of(tmp_path, caption="words", image="photo")) == [("a", picture(1))]


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError, match="no such folder"):
    source_of(tmp_path / "absent")
  with pytest.raises(FileNotFoundError, match=r"no \*\.parquet in it"):
    source_of(tmp_path)


def test_a_table_that_changes_while_in_use(folder):
  source = source_of(folder)
  assert source[0].image == picture(0)
  table(folder / "a.parquet", rows_of(picture, 2))
  with pytest.raises(BadRecord, match=r"a\.parquet:0: the file was changed while in use") as error:
    source[0]
  assert error.value.kind == "read"


def test_without_pyarrow(folder, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
  monkeypatch.delattr(pyarrow, "parquet")
  with pytest.raises(
    ValueError, match=r"reading parquet needs pyarrow: pip install blip3o-jax\[pa"
  ):
    source_of(folder)


def test_over_an_address(folder):
  fsspec = pytest.importorskip("fsspec")
  fsspec.filesystem("memory").pipe("/tables/a.parquet", (folder / "a.parquet").read_bytes())
  source = ParquetSource("memory://tables", Reading(), write=False)
  assert all_of(source) == EXPECTED[:5]
