"""Lists in JSON: where their rows lie, pictures in folders and tars, and what files go wrong."""

import json
import os

from absl import logging
from fakes import jpeg
from fakes import write_tar
from layouts import lines
from layouts import picture
from layouts import put
import numpy as np
import pytest

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources.jsonl import JsonlSource
from blip3o_jax.data.sources.reading import Reading

ROWS = [{"id": f"r{i}", "image": f"{i}.png", "prompt": f"prompt {i} ü"} for i in range(4)]


@pytest.fixture
def folder(tmp_path):
  put(tmp_path, "list.jsonl", lines(ROWS))
  for i in range(4):
    put(tmp_path, f"{i}.png", picture(i))
  return tmp_path


def source_of(path, **reading):
  return JsonlSource(str(path), Reading(**reading))


def all_of(source):
  return [(r.prompt, r.image) for r in map(source.__getitem__, range(len(source)))]


EXPECTED = [(f"prompt {i} ü", picture(i)) for i in range(4)]


def test_random_access(folder):
  source = source_of(folder)
  assert all_of(source) == EXPECTED
  assert source[3].name == source.words(3).name == "list.jsonl:4"
  assert source.words(2).prompt == "prompt 2 ü"
  assert source.words(2).image is None
  assert source.lengths("letters", lambda r: len(r.prompt)).tolist() == [10] * 4
  assert (folder / ".blip3o").is_dir()


@pytest.mark.parametrize(
  ("name", "data"),
  [
    ("list.ndjson", lines(ROWS)),
    ("bom.jsonl", b"\xef\xbb\xbf" + lines(ROWS)),
    ("windows.jsonl", lines(ROWS).replace(b"\n", b"\r\n")),
    ("gaps.jsonl", b"\n \n" + lines(ROWS).replace(b"\n", b"\n\n")),
    ("no_end.jsonl", lines(ROWS).rstrip()),
    ("list.json", json.dumps(ROWS, ensure_ascii=False).encode()),
    ("ascii.json", json.dumps(ROWS).encode()),
    ("pretty.json", b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=2).encode() + b"\n"),
    ("lines.json", lines(ROWS)),
    ("list.jsonl", json.dumps(ROWS).encode()),
  ],
)
def test_ways_to_write_a_list(folder, name, data):
  (folder / "list.jsonl").unlink()
  path = put(folder, name, data)
  assert all_of(source_of(path)) == EXPECTED
  assert all_of(source_of(folder)) == EXPECTED


def test_a_long_list_is_read_piece_by_piece(folder, monkeypatch):
  rows = [row | {"more": ["]", '\\"', {"x": "}" * i}]} for i, row in enumerate(ROWS)]
  path = put(folder, "long.json", json.dumps(rows, indent=1).encode())
  for size in (7, 64, 1000):
    monkeypatch.setattr("blip3o_jax.data.sources.jsonl._CHUNK", size)
    os.utime(path, ns=(size, size))  # so that it is indexed anew
    assert all_of(source_of(path)) == EXPECTED


def test_ids_decide_the_split_and_not_the_place(folder):
  source = source_of(folder)
  before = source.hashes(0, 4)
  put(folder, "a.jsonl", lines([ROWS[3] | {"id": "other"}]))
  put(folder, "list.jsonl", lines(ROWS[::-1]))
  np.testing.assert_array_equal(source_of(folder).hashes(1, 5), before[::-1])
  put(folder, "turns.json", [{"data": [{"prompt": "a", "image": "1.png"}] * 3}])
  turns = source_of(folder / "turns.json")
  assert [turns[i].name for i in range(3)] == ["turns.json:1", "turns.json:1/2", "turns.json:1/3"]
  assert len(set(turns.hashes(0, 3).tolist())) == 1


def test_pictures_elsewhere(folder, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp("elsewhere")
  for path in folder.glob("*.png"):
    put(elsewhere, f"imgs/{path.name}", path.read_bytes())
    path.unlink()
  assert all_of(source_of(folder, images=str(elsewhere / "imgs"))) == EXPECTED
  (elsewhere / "imgs").rename(folder / "imgs")
  assert all_of(source_of(folder, images="imgs")) == EXPECTED
  with pytest.raises(
    FileNotFoundError, match=r"reading\.images: no folder absent, and none .*absent"
  ):
    source_of(folder, images="absent")


def test_pictures_in_tars(folder):
  for path in folder.glob("*.png"):
    path.unlink()
  for part in range(2):
    members = {f"./{i}.png": picture(i) for i in range(2 * part, 2 * part + 2)}
    write_tar(folder / f"part_{part}.tar", members | {f"more_{part}.png": picture(9)})
  source = source_of(folder)
  assert all_of(source) == EXPECTED
  put(folder, "2.png", jpeg(2))
  assert source_of(folder)[2].image == jpeg(2), "a file comes before a member"
  rows = [{"image": name, "prompt": "a"} for name in ("absent.png", "twice.png")]
  put(folder, "list.jsonl", lines(rows))
  write_tar(folder / "x.tar", {"twice.png": picture(1)})
  write_tar(folder / "y.tar", {"twice.png": picture(1)})
  source = source_of(folder)
  with pytest.raises(
    BadRecord, match=r"picture absent\.png is neither there nor in its 4 tars, wh"
  ):
    source[0]
  with pytest.raises(BadRecord, match=r"twice\.png is in 2 places of its 4 tars"):
    source[1]


def test_a_cut_tar_of_pictures(folder):
  for path in folder.glob("*.png"):
    path.unlink()
  path = write_tar(folder / "a.tar", {f"{i}.png": picture(i) for i in range(4)})
  path.write_bytes(path.read_bytes()[:2000])
  with pytest.raises(ValueError, match=r"a\.tar: truncated"):
    source_of(folder)[0]
  source = source_of(folder, partial=True)
  assert source[0].image == picture(0)
  with pytest.raises(BadRecord, match=r"3\.png is neither"):
    source[3]


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("5.png", r"list\.jsonl:1: its picture 5\.png is not in"),
    ("../secret.png", r"list\.jsonl:1: its picture \.\./secret\.png would lie outside"),
    ("a/../../secret.png", "would lie outside"),
    ("{outside}/secret.png", "would lie outside"),
    ("https://example/1.png", "is an address, https://example/1.png; fetch it"),
    ("a\0b.png", "would lie outside"),
    (".", "cannot be read|is not in"),
    (17, "is int, expected a name or bytes"),
    ({"bytes": None, "path": None}, "is nothing, expected"),
  ],
)
def test_a_picture_that_is_not_there(tmp_path, name, says):
  home = tmp_path / "set"
  put(tmp_path, "secret.png", picture(1))
  if isinstance(name, str):
    name = name.replace("{outside}", str(tmp_path))
  put(home, "list.jsonl", lines([{"image": name, "prompt": "a"}]))
  source = source_of(home)
  assert source.words(0).prompt == "a"
  with pytest.raises(BadRecord, match=says) as error:
    source[0]
  assert error.value.kind == "missing"


def test_a_whole_path_inside_the_folder(folder):
  put(folder, "list.jsonl", lines([{"image": str(folder / "2.png"), "prompt": "a"}]))
  assert source_of(folder)[0].image == picture(2)


def test_lines_that_are_damaged(folder, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  good = lines(ROWS).splitlines()
  bad = [
    b"{broken",
    good[0],
    b'{"prompt": "\xff\xfe", "image": "1.png"}',
    b"[1]",
    b'{"image": "x"}',
  ]
  put(folder, "list.jsonl", b"\n".join([*bad, good[1][:-9]]))
  source = source_of(folder)
  assert len(source) == 2
  assert source[0].prompt == "prompt 0 ü"
  for read in (source.words, source.__getitem__):
    with pytest.raises(BadRecord, match=r"list\.jsonl:3: the row is not UTF-8") as error:
      read(1)
    assert error.value.kind == "text"
  told = "\n".join(said)
  assert "2 lines that are no JSON, the first 1" in told  # and the last, which is cut
  assert "1 rows that are no JSON objects, the first 4" in told
  assert "1 rows without a caption, the first 5" in told
  assert "1 rows have their caption in the field 'prompt'" in told
  assert source.lengths("letters", lambda r: len(r.prompt)).tolist() == [10, 0]


@pytest.mark.parametrize("cut", [40, 100, -1])
def test_a_list_that_is_cut(folder, cut):
  (folder / "list.jsonl").unlink()
  data = json.dumps(ROWS).encode()
  path = put(folder, "list.json", data[:cut])
  whole = data[:cut].count(b"}")
  with pytest.raises(ValueError, match=rf"list\.json: cut .*; {whole} records are whole"):
    source_of(path)
  if whole:
    assert all_of(source_of(path, partial=True)) == EXPECTED[:whole]
  path.write_bytes(data + b"[]")
  with pytest.raises(ValueError, match="something follows its list"):
    source_of(path)


@pytest.mark.parametrize(
  ("data", "says"),
  [
    (b"", "it is empty"),
    (b"\x1f\x8b\x08", "gunzip"),
    ("[]".encode("utf-16"), "save it as UTF-8"),
    (b"<!DOCTYPE html><html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid x\nsize 9\n", "git-lfs pointer"),
    (b"[]", "no record in 1 files; nothing in them"),
    (b'{\n "a": 1\n}', "no record in 1 files; left out: 3 lines that are no JSON"),
    (
      b'{"words": "a", "image": "1.png"}',
      "1 rows without a caption, the first 1. The fields of the first row are words, image",
    ),
  ],
)
def test_no_list(tmp_path, data, says):
  put(tmp_path, "list.jsonl", data)
  with pytest.raises(ValueError, match=says):
    source_of(tmp_path)


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError, match="no such folder"):
    source_of(tmp_path / "absent")
  put(tmp_path, "below/list.jsonl", lines(ROWS))
  with pytest.raises(FileNotFoundError, match=r"no \*\.jsonl.*such as that of below/list\.jsonl"):
    source_of(tmp_path)


def test_a_list_that_changes_while_in_use(folder):
  source = source_of(folder)
  put(folder, "list.jsonl", lines(ROWS[1:]))
  for read in (source.words, source.__getitem__):
    with pytest.raises(
      BadRecord, match=r"list\.jsonl:1: the file was changed while in use"
    ) as error:
      read(0)
    assert error.value.kind == "read"
  assert all_of(source_of(folder)) == EXPECTED[1:]
  source = source_of(folder)
  (folder / "list.jsonl").unlink()
  with pytest.raises(BadRecord, match="cannot be read"):
    source[0]


def test_a_list_of_lists(tmp_path):
  for name in ("a", "b"):
    put(tmp_path, f"pics/{name}/1.png", picture(ord(name)))
    put(tmp_path, f"json/{name}.json", [{"prompt": name, "image": "1.png"}])
  text = f"pics/a,json/a.json,false\n\n{tmp_path}/pics/b, {tmp_path}/json/b.json ,true\n"
  path = put(tmp_path, "data.txt", text.encode())
  assert all_of(source_of(path)) == [(name, picture(ord(name))) for name in "ab"]
  for line, error, says in (
    ("pics/a", ValueError, r"data\.txt:1: expected FOLDER OF PICTURES,LIST,FLAG"),
    ("pics/a,json/c.json,false", FileNotFoundError, r"data\.txt:1: no list .*json/c\.json"),
    ("pics/c,json/a.json,false", FileNotFoundError, "no folder pics/c"),
    ("pics/a,json/a.json\npics/b,json/a.json", ValueError, r"json/a\.json is named twice"),
  ):
    path.write_text(line)
    with pytest.raises(error, match=says):
      source_of(path)


def test_over_an_address():
  fsspec = pytest.importorskip("fsspec")
  files = fsspec.filesystem("memory")
  for name, data in {"list.jsonl": lines(ROWS[:2]), "0.png": picture(0)}.items():
    files.pipe(f"/lists/{name}", data)
  source = JsonlSource("memory://lists", Reading(), write=False)
  assert source[0].image == picture(0)
  assert source.words(1).prompt == "prompt 1 ü"
  with pytest.raises(
    BadRecord, match=r"list\.jsonl:2: its picture 1\.png is not in memory://lists"
  ):
    source[1]
