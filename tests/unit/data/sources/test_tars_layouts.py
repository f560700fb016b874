"""Layouts of tars: captions in JSON, dots in names, split tars, large ones, lists beside them."""

import io
import json
import os
import random
import tarfile

from commands import command
from fakes import jpeg
import fsspec
import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest
import webdataset

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources import split
from blip3o_jax.data.sources import tars
from blip3o_jax.data.sources.reading import Reading

PICTURES = [jpeg(i) for i in range(4)]
A, B, C, D = PICTURES


def pack(path, members, form=tarfile.PAX_FORMAT):
  with tarfile.open(path, "w", format=form) as tar:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def told(caplog):
  lines = "\n".join(record.getMessage() for record in caplog.records)
  caplog.clear()
  return lines


def read(path, **reading):
  source = tars.TarSource(str(path), Reading(**reading))
  found = [source[i] for i in range(len(source))]
  assert [source.words(i).prompt for i in range(len(source))] == [r.prompt for r in found]
  return [(record.prompt, record.image) for record in found]


def js(**fields):
  return json.dumps(fields).encode()


CAPTIONED = [
  *[("0.jpg", A), ("0.txt", b"a cat"), ("0.json", js(caption="of 0", long="a long cat"))],
  *[("1.jpg", B), ("1.json", js(caption="a dog", prompt="the dog", long="a long dog"))],
  *[("2.jpg", C), ("2.json", js(caption="a cow", long=["a long", "cow"]))],
  *[("3.jpg", D), ("3.json", js(caption=" ", long=""))],
  *[("4.jpg", D), ("4.json", b"{damaged"), ("5.jpg", D), ("5.json", b"[1]")],
]


@pytest.mark.parametrize(
  ("caption", "expected", "said"),
  [
    (
      "",
      [("a cat", A), ("the dog", B), ("a cow", C)],
      ["1 captions are the field 'prompt'", "1 captions are the field 'caption'", "3.json"],
    ),
    ("txt", [("a cat", A)], ["6 members of other kinds", "5 keys without caption"]),
    (
      "long",
      [("a long cat", A), ("a long dog", B)],
      ["no text but a list, an object or a number of KEY.json, the first 2.json", "2 captions in"],
    ),
    ("caption", [("of 0", A), ("a dog", B), ("a cow", C)], ["1 captions that are empty"]),
  ],
)
def test_the_caption_may_be_a_field(caption, expected, said, tmp_path, caplog):
  pack(tmp_path / "a.tar", CAPTIONED)
  assert read(tmp_path, caption=caption) == expected
  lines = told(caplog)
  assert all(words in lines for words in said), lines


@pytest.mark.parametrize("name", ["", "l.json", "l.jsonl"])
def test_a_field_inside_a_field(name, tmp_path):
  long = {"captions": {"long": "a long cat"}}
  pack(tmp_path / "a.tar", [("0.jpg", A), *([] if name else [("0.json", js(**long))])])
  if name:
    write_list(tmp_path / name, [{"image": "0.jpg", **long}])
  assert read(tmp_path, joined=name, caption="captions.long") == [("a long cat", A)]


def test_a_field_that_nobody_has(tmp_path):
  pack(tmp_path / "a.tar", CAPTIONED)
  needs = r"KEY\.json, its field 'short', with KEY\.jpg.*there: KEY\.json has no such field"
  with pytest.raises(ValueError, match=needs):
    tars.TarSource(str(tmp_path), Reading(caption="short"))


def odd_tars(folder, form, seed):
  """Tars as they are valid, with whatever may stand in a name."""
  rng = random.Random(seed)
  long = "/".join(["a folder of a long name " * 4] * 3)
  for number in range(3):
    members = []
    for i in range(40):
      stem = rng.choice(["x", "v1.0_img", "a.b", ".hidden", "ü_日本", "a b", f"{long}/y"])
      key = rng.choice(["", "deep/", "with.dot/", "./"]) + f"{stem}{i if stem != '.hidden' else ''}"
      if rng.random() < 0.2:
        key = f"again{number % 2}"  # in another shard; here not twice in a row
        if members and members[-1][0].startswith("again"):
          continue
      parts = [
        (f"{key}.{rng.choice(['jpg', 'JPG', 'Png', 'webp', 'jpeg'])}", b"%d.%d" % (number, i)),
        (f"{key}.{rng.choice(['txt', 'TXT'])}", b"caption %d of %d" % (i, number)),
        (f"{key}.{rng.choice(['seg.png', 'cls', 'v2.txt', 'json'])}", b"{}"),
      ]
      rng.shuffle(parts)
      members += parts
    pack(folder / f"{number}.tar", members, form)


@pytest.mark.parametrize(("form", "seed"), [(tarfile.GNU_FORMAT, 7), (tarfile.PAX_FORMAT, 33)])
def test_the_first_dot_gives_the_records_of_webdataset(form, seed, tmp_path):
  odd_tars(tmp_path, form, seed)
  paths = [str(tmp_path / f"{number}.tar") for number in range(3)]
  expected = []
  for sample in webdataset.WebDataset(paths, shardshuffle=False):
    picture = [sample[kind] for kind in ("jpg", "jpeg", "webp", "png") if kind in sample]
    if picture and "txt" in sample:
      key = sample["__key__"].removeprefix("./")
      expected.append((key, sample["txt"].decode(), picture[0]))
  source = tars.TarSource(str(tmp_path), Reading(dots="first"))
  found = [
    (source.index.key(i).decode(), source[i].prompt, source[i].image) for i in range(len(source))
  ]
  assert len(expected) > 40
  assert found == expected


def test_no_rule_of_dots_is_taken_in_silence(tmp_path, caplog, capsys):
  pack(tmp_path / "a.tar", [("v1.0.jpg", A), ("v1.0.txt", b"a cat"), ("2.jpg", B), ("2.txt", b"b")])
  assert read(tmp_path) == read(tmp_path, dots="last") == [("a cat", A), ("b", B)]
  caplog.clear()
  tars.TarSource(str(tmp_path))
  said = "by the rule of the first dot, which the webdataset package has, 1 records are others, the"
  assert f"{said} first v1.0" in told(caplog)
  tars.TarSource(str(tmp_path), Reading(dots="last"))
  assert not told(caplog)
  assert command("index_tars")(tmp_path, "--dots", "first") == 0
  assert "1 records in 1 tars" in capsys.readouterr().out
  assert "1 records are others where the key ends at the other dot of a name" in told(caplog)
  assert read(tmp_path, dots="first") == [("b", B)]
  pack(tmp_path / "a.tar", [("x.seg.png", B), ("x.jpg", A), ("x.txt", b"a cat")])  # not of records
  assert read(tmp_path) == read(tmp_path, dots="first") == [("a cat", A)]
  assert " dot " not in told(caplog)


def test_a_tar_of_more_than_four_gigabytes(tmp_path):
  """Of holes: a member of 5 GB of zeros, and a record behind it."""
  with open(tmp_path / "a.tar", "wb") as file:
    info = tarfile.TarInfo("zeros.bin")
    info.size = 5 * 2**30
    file.write(info.tobuf(tarfile.GNU_FORMAT))
    file.seek(512 + info.size)
    file.write(pack(tmp_path / "b", [("0.jpg", A), ("0.txt", b"a cat")]).read_bytes())
  source = tars.TarSource(str(tmp_path))
  assert (source[0].prompt, source[0].image) == ("a cat", A)
  assert 512 * int(source.index.column("image_block")[0]) > 5 * 2**30


NUMBERED = {
  "split": ".split.{:03d}",
  "bare": ".{:02d}",
  "part": ".part{}",
  "from one": ".{:03d}",
  "letters": ".a{}",
}


@pytest.mark.parametrize("kind", NUMBERED)
def test_split_tars(kind, tmp_path):
  """Cut where they are cut, also inside headers, pictures and captions."""
  members = [(f"{i}.{e}", d) for i in range(9) for e, d in (("jpg", jpeg(i)), ("txt", b"c%d" % i))]
  data = pack(tmp_path / "whole", members).read_bytes()
  pack(tmp_path / "z.tar", [("9.jpg", A), ("9.txt", b"c9")])
  size = len(data) // 12 + 1
  first = int(kind == "from one")
  for i, at in enumerate(range(0, len(data), size), first):
    ending = NUMBERED[kind].format(chr(ord("a") + i) if kind == "letters" else i)
    (tmp_path / f"x.tar{ending}").write_bytes(data[at : at + size])
  found = read(tmp_path)
  assert [caption for caption, _ in found] == [f"c{i}" for i in range(10)]
  assert [picture for _, picture in found] == [*map(jpeg, range(9)), A]
  source = tars.TarSource(str(tmp_path))
  assert source.index.files[1:] == ["z.tar"]
  assert source.name(0) == f"{source.index.files[0]}:0"
  ending = NUMBERED[kind].format("f" if kind == "letters" else 5)
  (tmp_path / f"x.tar{ending}").write_bytes(b"other")
  with pytest.raises(BadRecord, match="was changed while in use"):
    source[0]
  (tmp_path / f"x.tar{ending}").unlink()
  with pytest.raises(ValueError, match=rf"/x\.tar{ending}: this part of a split tar is not there"):
    tars.TarSource(str(tmp_path))


def test_split_tars_that_are_no_whole(tmp_path, caplog):
  data = pack(tmp_path / "x.tar", [("0.jpg", A), ("0.txt", b"a cat")]).read_bytes()
  for i in range(3):
    (tmp_path / f"x.tar.split.00{i}").write_bytes(data[1000 * i : 1000 * (i + 1)])
  assert read(tmp_path) == [("a cat", A)]
  assert "x.tar.split.000..002: passed over, the tar is there as a whole" in told(caplog)
  (tmp_path / "x.tar").unlink()
  with pytest.raises(ValueError, match=r"x\.tar\.split\.000\.\.002: truncated"):
    tars.TarSource(str(tmp_path))  # the last part is not there
  (tmp_path / "x.tar.split.000").unlink()
  (tmp_path / "x.tar.split.001").unlink()
  with pytest.raises(ValueError, match=r"x\.tar\.split\.000: this part .*002 is. Fetch it"):
    tars.TarSource(str(tmp_path))


def test_parts_beyond_the_digits():
  assert split.parts("a/x.tar.part8..11") == [f"a/x.tar.part{i}" for i in (8, 9, 10, 11)]
  assert split.parts("x.tar.ay..bb") == ["x.tar.ay", "x.tar.az", "x.tar.ba", "x.tar.bb"]
  assert split.parts("a..b/x.tar") == ["a..b/x.tar"]
  names = ["x.tar.gz", "x.tar.md", "x.tar.idx", "x.tar.20240101", "y.tar"]
  assert split.files(names, "") == (["y.tar"], [])


IMAGES = [("imgs/a.jpg", A), ("imgs/b.v1.png", B), ("other/a.jpg", C), ("imgs/d.jpg", D)]
ROWS = [
  {"img_path": "d.jpg", "caption": "by base name"},
  {"img_path": "imgs/a.jpg", "caption": "by path"},
  {"img_path": "a", "caption": "of two pictures"},
  {"img_path": "/imgs/b.v1", "caption": "without ending ü"},
  {"img_path": "imgs/gone.jpg", "caption": "of no picture"},
  {"img_path": "imgs/d", "caption": "of a picture again"},
  {"img_path": "imgs/d.jpg", "caption": ""},
]
JOINED = [
  ("by path", A),
  ("without ending ü", B),
  ("by base name", D),
  ("of a picture again", D),
]


def write_list(path, rows):
  if path.suffix == ".parquet":
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
  elif path.suffix == ".jsonl":
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
  elif path.stem == "object":
    path.write_text(json.dumps({row["img_path"]: row for row in rows}))
  elif path.stem == "texts":
    path.write_text(json.dumps({row["img_path"]: row["caption"] for row in rows}))
  else:
    path.write_text(json.dumps(rows))


@pytest.mark.parametrize("name", ["l.json", "l.jsonl", "l.parquet", "object.json", "texts.json"])
def test_captions_in_a_list(name, tmp_path, caplog):
  pack(tmp_path / "a.tar", [*IMAGES[:2], ("notes.md", b"")])
  pack(tmp_path / "b.tar", IMAGES[2:])
  rows = ROWS[:6] if name.endswith("s.json") or name.startswith("o") else ROWS
  write_list(tmp_path / name, rows)
  assert read(tmp_path, joined=name) == JOINED
  caplog.clear()
  source = tars.TarSource(str(tmp_path), Reading(joined=str(tmp_path / name)))
  lines = told(caplog)
  assert "2 rows without a picture" in lines
  assert "1 pictures without a row in the list" in lines
  assert ("whose caption is empty" in lines) == (rows is ROWS)
  if name.startswith("l"):
    assert "rows have their picture's name in the field 'img_path'" in lines
  assert [source.index.key(i) for i in range(4)] == [b"imgs/a", b"imgs/b.v1", b"imgs/d", b"imgs/d"]
  assert source.name(0) == "a.tar:imgs/a"
  hashes = source.hashes(0, 4)
  # More tars, and a list that grew: what was there keeps its place among the tars and its id.
  pack(tmp_path / "0.tar", [("new.jpg", C)])
  write_list(tmp_path / name, [*rows, {"img_path": "new", "caption": "new"}])
  more = tars.TarSource(str(tmp_path), Reading(joined=name))
  assert [more[i].prompt for i in range(5)] == ["new", *(caption for caption, _ in JOINED)]
  np.testing.assert_array_equal(more.hashes(1, 5), hashes)
  assert more.parts()[1:] == source.parts()
  if name == "l.jsonl":
    with pytest.raises(BadRecord, match="changed while in use"):
      source[0]


def test_what_a_list_is_told_of(tmp_path, caplog):
  pack(tmp_path / "a.tar", IMAGES)
  write_list(tmp_path / "l.json", ROWS)
  tars.TarSource(str(tmp_path), Reading(joined="l.json"))
  lines = told(caplog)
  assert "1 rows whose picture is not there, the first imgs/gone.jpg" in lines
  assert "1 rows whose name several have, the first a" in lines
  assert "1 pictures without a row in the list, the first other/a.jpg" in lines
  with pytest.raises(ValueError, match=r"no field text; they have caption, img_path\. Name one"):
    tars.TarSource(str(tmp_path), Reading(joined="l.json", caption="text"))
  with pytest.raises(FileNotFoundError, match="absent"):
    tars.TarSource(str(tmp_path), Reading(joined="absent.json"))
  (tmp_path / "l.json").write_text("[{]")
  with pytest.raises(ValueError, match=r"l\.json: not valid JSON"):
    tars.TarSource(str(tmp_path), Reading(joined="l.json"))
  write_list(tmp_path / "l.jsonl", ROWS)
  text = (tmp_path / "l.jsonl").read_text()
  (tmp_path / "l.jsonl").write_text(text[: text.index('"of no') + 3])
  with pytest.raises(ValueError, match=r"l\.jsonl: cut in its last line .* 4 records are whole"):
    tars.TarSource(str(tmp_path), Reading(joined="l.jsonl"))
  found = read(tmp_path, joined="l.jsonl", partial=True)
  assert [caption for caption, _ in found] == ["by path", "without ending ü", "by base name"]


def test_edits_whose_rows_name_pictures_in_tars(tmp_path, caplog):
  """As ShareGPT-4o-Image and ImgEdit have them: inputs may lie in another tar."""
  pack(tmp_path / "a.tar", IMAGES[:2])
  pack(tmp_path / "b.tar", IMAGES[2:])
  rows = [
    {"say": "make it blue", "before": ["imgs/b.v1.png", "imgs/d.jpg"], "after": ["imgs/a.jpg"]},
    {"say": "from nothing", "before": None, "after": ["imgs/d.jpg"]},
    {"say": "of what is gone", "before": ["gone.jpg"], "after": ["imgs/d.jpg"]},
    {"say": "two", "before": [], "after": ["imgs/d.jpg", "imgs/a.jpg"]},
  ]
  write_list(tmp_path / "l.json", rows)
  reading = Reading(joined="l.json", caption="say", join="after", inputs="before")
  source = tars.TarSource(str(tmp_path), reading)
  assert "1 rows that name no picture, or more than one" in told(caplog)
  found = [(r.prompt, r.image, r.inputs) for r in map(source.__getitem__, range(len(source)))]
  assert found == [("make it blue", A, (B, D)), ("from nothing", D, ())]
  pack(tmp_path / "b.tar", [("first.jpg", C), *IMAGES[2:]])
  with pytest.raises(
    BadRecord, match=r"a\.tar:imgs/a: the tar was changed while in use \(b\.tar\)"
  ):
    source[0]
  assert source.words(0).prompt == "make it blue"
  assert tars.TarSource(str(tmp_path), reading)[0].inputs == (B, D)


def test_a_joined_tar_that_is_cut(tmp_path):
  pack(tmp_path / "a.tar", IMAGES)
  write_list(tmp_path / "l.json", ROWS)
  data = (tmp_path / "a.tar").read_bytes()
  (tmp_path / "a.tar").write_bytes(data[: data.rindex(D) + 10])
  with pytest.raises(ValueError, match=r"a\.tar: truncated or damaged .*; 3 records are whole"):
    tars.TarSource(str(tmp_path), Reading(joined="l.json"))
  assert read(tmp_path, joined="l.json", partial=True) == JOINED[:2]


def test_several_cut_tars_are_named(tmp_path, caplog):
  for name in ("a", "b", "c"):
    pack(tmp_path / f"{name}.tar", [("0.jpg", A), ("0.txt", b"x"), ("1.jpg", B), ("1.txt", b"y")])
  for name in ("a", "c"):
    os.truncate(tmp_path / f"{name}.tar", 4096)
  with pytest.raises(ValueError, match=r"a\.tar: truncated.* So are 1 more, the next c\.tar"):
    tars.TarSource(str(tmp_path))
  assert [caption for caption, _ in read(tmp_path, partial=True)] == ["x", "x", "y", "x"]
  assert "c.tar: truncated; only its whole records are used" in told(caplog)


@pytest.mark.parametrize("joined", ["", "l.jsonl", "l.parquet"])
def test_an_address(joined, tmp_path, monkeypatch, request):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  files = fsspec.filesystem("memory")
  home = f"/{request.node.name}"
  members = IMAGES if joined else [("0.jpg", A), ("0.txt", b"a cat"), ("1.jpg", B), ("1.txt", b"b")]
  data = pack(tmp_path / "a.tar", members).read_bytes()
  for i in range(3):
    size = len(data) // 3 + 1
    files.pipe(f"{home}/x.tar.split.00{i}", data[size * i : size * (i + 1)])
  more = [("9.jpg", C)] if joined else [("9.jpg", C), ("9.txt", b"more")]
  files.pipe(f"{home}/y.tar", pack(tmp_path / "y.tar", more).read_bytes())
  if joined:
    write_list(tmp_path / joined, ROWS)
    files.pipe(f"{home}/{joined}", (tmp_path / joined).read_bytes())
  expected = JOINED if joined else [("a cat", A), ("b", B), ("more", C)]
  assert read(f"memory:/{home}", joined=joined) == expected
  assert list((tmp_path / "cache").rglob("index.json"))
  assert not [name for name in files.find(home) if "blip3o" in name]
