"""Which layout a folder or file has, by what lies in it."""

import json

from fakes import write_tar
from layouts import lines
from layouts import put
import pytest

from blip3o_jax.data import sources
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.data.sources.tars import TarSource

LIST, LINES = json.dumps([{"a": 1}]).encode(), lines([{"a": 1}, {"a": 2}])
CAPTIONED, BARE = {"k.jpg": b"x", "k.txt": b"t"}, {"image/1.png": b"x", "image/2.png": b"x"}
ARRAYS = {"manifest.json": b"{}", "a-0.arrayrecord": b"x"}

# Files of a folder (a dict is a tar), and the layout.
FOLDERS = {
  "tars": ({"a.tar": CAPTIONED}, "tars"),
  "a split tar": ({"a.tar.split.000": b"x", "a.tar.split.001": b"x"}, "tars"),
  "tars without captions": ({"a.tar": BARE}, "tars"),
  "tars and what describes them": ({"a.tar": CAPTIONED, "_info.json": b'{"shards": 1}'}, "tars"),
  "img2dataset": (
    {"0.tar": CAPTIONED, "0.parquet": b"x", "0_stats.json": b'{\n "count": 1\n}'},
    "tars",
  ),
  "tars in a folder": ({"train/a.tar": CAPTIONED}, "tars"),
  "tables": ({"a.parquet": b"x", "README.md": b"x"}, "parquet"),
  "tables in a folder, as on the hub": (
    {"data/a.parquet": b"x", "dataset_infos.json": b"{}"},
    "parquet",
  ),
  "tables of names, and tars in a folder": ({"P/a.parquet": b"x", "S/a.tar": BARE}, "parquet"),
  "lines": ({"a.jsonl": b"{}", "imgs/1.png": b"x"}, "jsonl"),
  "a list": ({"a.json": LIST}, "jsonl"),
  "lines in a file .json": ({"a.json": LINES}, "jsonl"),
  "a list, and tars of its pictures": ({"a.json": LIST, "a.tar": BARE}, "jsonl"),
  "a list of lists": ({"data.txt": b"a,b,c", "x/1.png": b"x"}, "jsonl"),
  "lines in a folder": ({"train/a.jsonl": b"{}"}, "jsonl"),
  "packed": (ARRAYS, "arrayrecord"),
  "prepared by TFDS": (
    {"dataset_info.json": b"{}", "features.json": b"{}", "x.array_record-0-of-1": b"x"},
    "tfds",
  ),
}


def make(home, files):
  home.mkdir()
  for name, data in files.items():
    path = put(home, name, b"")
    if isinstance(data, dict):
      write_tar(path, data)
    else:
      path.write_bytes(data)
  return str(home)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder(tmp_path, name):
  files, layout = FOLDERS[name]
  assert sources.recognise(make(tmp_path / "set", files)) == layout
  assert layout in sources.LAYOUTS


@pytest.mark.parametrize(
  ("name", "layout"),
  [
    ("a.parquet", "parquet"),
    ("a.JSONL", "jsonl"),
    ("data.txt", "jsonl"),
    ("a.json", "jsonl"),
    ("a.tar", "tars"),
    ("a.arrayrecord", "arrayrecord"),
  ],
)
def test_a_file(tmp_path, name, layout):
  assert sources.recognise(str(put(tmp_path, name, b"x"))) == layout


@pytest.mark.parametrize(
  ("files", "says"),
  [
    ({}, "has no layout that is known. In it: nothing. Name its layout in reading.layout, of tars"),
    ({"1.jpg": b"x", "2.jpg": b"x"}, r"no layout .*In it: 1\.jpg, 2\.jpg\. .*parquet: \*\.parquet"),
    ({"a.tar": CAPTIONED, "list.json": LIST}, r"fits several layouts.* of tars \(.*; jsonl \("),
    ({"a.parquet": b"x", "b.jsonl": b"{}"}, r"fits several layouts.* of parquet \(.*; jsonl \("),
    ({"data-0.arrow": b"x", "state.json": b"{}"}, r"save_to_disk \(\*\.arrow\).*to_parquet"),
    ({f"{i}.txt": b"" for i in range(20)}, "and 8 more"),
  ],
)
def test_what_cannot_be_told(tmp_path, files, says):
  with pytest.raises(ValueError, match=says):
    sources.recognise(make(tmp_path / "set", files))


def test_nothing_there(tmp_path):
  with pytest.raises(FileNotFoundError, match="no such folder"):
    sources.recognise(str(tmp_path / "absent"))
  with pytest.raises(ValueError, match="of a kind that is not known"):
    sources.recognise(str(put(tmp_path, "a.rar", b"x")))


def test_a_layout_that_is_named_is_not_looked_for(tmp_path):
  path = make(tmp_path / "set", {"a.tar": CAPTIONED, "list.json": LIST})
  assert isinstance(sources.opened(path, Reading(layout="tars")), TarSource)
  with pytest.raises(FileNotFoundError, match=r"no \*\.parquet"):
    sources.opened(path, Reading(layout="parquet"))
