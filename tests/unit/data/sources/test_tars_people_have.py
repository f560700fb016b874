"""Tars as people have them: each kind with the records that must come of it, and what is said."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import zipfile

from commands import command
from fakes import jpeg
from fakes import npy
import numpy as np
import pytest

from blip3o_jax.data import index
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources import members
from blip3o_jax.data.sources import tars

A, B, MASK = jpeg(0), jpeg(1), b"\x89PNG a mask"


def pack(path, members, **options):
  """Writes [(name, bytes, or the TarInfo's fields of a link)] as a tar; names may stand twice."""
  with tarfile.open(path, "w", errors="surrogateescape", **options) as tar:
    for name, data in members:
      info = tarfile.TarInfo(name)
      if isinstance(data, dict):
        for field, value in data.items():
          setattr(info, field, value)
        tar.addfile(info)
      else:
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  return path


def record(key, image=A, text=b"a cat"):
  return [(f"{key}.jpg", image), (f"{key}.txt", text)]


def link(target, kind=tarfile.LNKTYPE):
  return {"type": kind, "linkname": target}


BOM, TWIN = b"\xef\xbb\xbf", b"\0\5\26\7"
# name: (members, [(caption, picture)], what is said)
KINDS = {
  "a mask beside the picture": (
    [("x.png", MASK), *record("x")],
    [("a cat", A)],
    "1 further pictures, captions or features of a key",
  ),
  "the mask last": ([*record("x"), ("x.png", MASK)], [("a cat", A)], "1 further pictures"),
  "a WebP and a PNG": (
    [("x.png", MASK), ("x.webp", B), ("x.txt", b"a cat")],
    [("a cat", B)],
    "1 further pictures",
  ),
  "the same ending in capitals": (
    [*record("x"), ("x.JPG", B), ("x.TXT", b"a dog")],
    [("a cat", A)],
    "2 further pictures",
  ),
  "keys that begin anew": (
    [*record("0"), *record("1", B, b"a dog"), *record("0", B, b"a cow"), *record("1", A, b"a hen")],
    [("a cat", A), ("a dog", B), ("a cow", B), ("a hen", A)],
    "4 records have a key that stands in their tar more than once, the first 0",
  ),
  "a copy without a caption": (
    [*record("0"), *record("1", B, b"a dog"), ("0.jpg", B)],
    [("a cat", A), ("a dog", B)],
    "1 copies of a key that stands in the tar again, not whole",
  ),
  "a copy at once": (
    [*record("0"), *record("0", B, b"a dog")],
    [("a cat", A), ("a dog", B)],
    "2 records have a key",
  ),
  "a copy in capitals elsewhere": (
    [("0.png", A), ("0.TXT", b"a cat"), *record("1"), *record("0", B, b"a dog")],
    [("a cat", A), ("a cat", A), ("a dog", B)],
    "2 records have a key",
  ),
  "copies that cannot be told apart": (
    [("0.jpg", A), ("0.jpg", B), ("0.txt", b"a cat"), ("0.txt", b"a dog"), *record("1")],
    [("a cat", A)],
    "2 copies of a key that stands in the tar again",
  ),
  "pictures first, then captions": (
    [("0.jpg", A), ("1.jpg", B), ("0.txt", b"a cat"), ("1.txt", b"a dog")],
    [("a cat", A), ("a dog", B)],
    "",
  ),
  "a byte order mark": (record("x", A, BOM + "ein Kätzchen".encode()), [("ein Kätzchen", A)], ""),
  "captions with nothing in them": (
    [
      *record("0", A, b""),
      *record("1", A, b" \n\t"),
      *record("2", A, BOM + b"\n"),
      *record("3", B),
    ],
    [("a cat", B)],
    "3 captions that are empty or white space, the first 0.txt",
  ),
  "an empty picture": (
    [*record("0", b""), *record("1", B)],
    [("a cat", B)],
    "1 pictures or features of no bytes, the first 0.jpg",
  ),
  "twins of a Mac": (
    [
      *[
        (f"./{folder}._{key}", b"\0\5\26\7")
        for folder in ("", "__MACOSX/")
        for key in ("x.jpg", "x.txt")
      ],
      *record("./x"),
    ],
    [("a cat", A)],
    "4 twins from a Mac (._NAME), the first ._x.jpg",
  ),
  "a name that is not UTF-8": (
    [*record(b"caf\xe9".decode("utf-8", "surrogateescape")), *record("x", B)],
    [("a cat", A), ("a cat", B)],
    "",
  ),
  "a name with a line break": (record("a\nb"), [("a cat", A)], ""),
  "hard links": (
    [*record("0"), ("1.jpg", link("0.jpg")), ("1.txt", link("./0.txt"))],
    [("a cat", A), ("a cat", A)],
    "",
  ),
  "links that lead nowhere": (
    [*record("0"), ("1.jpg", link("gone.jpg")), ("2.jpg", link("0.jpg", tarfile.SYMTYPE))],
    [("a cat", A)],
    "2 symbolic links, or links to what the tar does not hold (tar --dereference packs files), "
    "the first 1.jpg",
  ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_what_becomes_of_it(kind, form, tmp_path, caplog, capsys):
  members, expected, said = KINDS[kind]
  pack(tmp_path / "a.tar", members, format=form)
  assert command("index_tars")(tmp_path) == 0
  assert f"{len(expected)} records in 1 tars" in capsys.readouterr().out
  first = [r.getMessage() for r in caplog.records]
  assert any(said in line and "a.tar: " in line for line in first) if said else not first
  caplog.clear()
  source = tars.TarSource(str(tmp_path))
  found = [source[i] for i in range(len(source))]
  assert [(r.prompt, r.image) for r in found] == expected
  assert all(r.name.isprintable() and r.name.startswith("a.tar:") for r in found)
  again = [r.getMessage() for r in caplog.records]  # from the index
  assert len(again) == bool(said)
  assert all(said.partition(",")[0].split(" (")[0] in line for line in again)


def test_archives_that_were_joined(tmp_path, caplog):
  """`cat a.tar b.tar` is read to its end, and one cut in the second part is an error."""
  first = pack(tmp_path / "1", record("0")).read_bytes()
  second = pack(tmp_path / "2", record("0", B, b"a dog")).read_bytes()
  (tmp_path / "a.tar").write_bytes(first + second)
  source = tars.TarSource(str(tmp_path))
  assert [(r.prompt, r.image) for r in (source[0], source[1])] == [("a cat", A), ("a dog", B)]
  (tmp_path / "a.tar").write_bytes(first + second[:1000])
  with pytest.raises(ValueError, match=r"a\.tar: truncated or damaged .*; 1 records are whole"):
    tars.TarSource(str(tmp_path))
  (tmp_path / "a.tar").write_bytes(first + b"signed by me".ljust(512))
  assert len(tars.TarSource(str(tmp_path))) == 1
  assert "1 bytes behind the end that are no archive" in caplog.text


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize(
  "form", ["gnu", "pax", "pax --sparse-version=0.0", "pax --sparse-version=0.1"]
)
def test_members_with_holes(form, tmp_path):
  """GNU tar writes zeros as holes with --sparse, and the second name of a file as a link."""
  features = np.zeros((64, 64, 16), np.float32)
  features[5, 5], features[60] = 1, 2
  folder = tmp_path / "files"
  folder.mkdir()
  data = npy(features)
  with open(folder / "0.npy", "wb") as file:
    for at in range(0, len(data), 4096):
      if data[at : at + 4096].strip(b"\0"):
        os.pwrite(file.fileno(), data[at : at + 4096], at)
    file.truncate(len(data))
  (folder / "0.txt").write_bytes(b"a cat")
  os.link(folder / "0.npy", folder / "1.npy")
  (folder / "1.txt").write_bytes(b"a dog")
  (folder / "2.npy").write_bytes(npy(features + 1))
  (folder / "2.txt").write_bytes(b"a hen")
  arguments = ["--sparse", *f"--format={form}".split(), "--sort=name"]
  made = ["tar", *arguments, "-C", folder, "-cf", tmp_path / "a.tar", "."]
  subprocess.run(made, check=True)
  assert (tmp_path / "a.tar").stat().st_size < 1.7 * features.nbytes  # of 3
  source = tars.TarSource(str(tmp_path))
  found = {r.prompt: r.features for r in map(source.__getitem__, range(len(source)))}
  assert found.keys() == {"a cat", "a dog", "a hen"}
  for prompt, more in (("a cat", 0), ("a dog", 0), ("a hen", 1)):
    np.testing.assert_array_equal(found[prompt], features + more)


def zipped(data):
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as file:
    file.writestr("0.txt", data)
  return out.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FOREIGN = {
  "gzip": (gzip.compress, "not a plain tar but gzip: undo it with `gunzip`"),
  "bzip2": (bz2.compress, "not a plain tar but bzip2: undo it with `bunzip2`"),
  "xz": (lzma.compress, "not a plain tar but xz: undo it with `unxz`"),
  "zstd": (lambda tar: b"\x28\xb5\x2f\xfd" + tar, "zstd: undo it with `zstd -d`"),
  "zip": (zipped, "zip: unpack it, and pack it with `tar`"),
  "parquet": (lambda tar: b"PAR1" + tar, "not a plain tar but parquet: call it NAME.parquet"),
  "pointer": (lambda tar: LFS, "a git-lfs pointer, not the file of 12.3 kB"),
  "page": (lambda tar: b"\n<!doctype html><p>404", "a web page, not the file"),
  "answer": (lambda tar: b'{"error": "gated repo"}', "a page of text, .*gated repo"),
  "empty": (lambda tar: b"", "it is empty. Fetch it again"),
  "zeros": (lambda tar: bytes(10**6), "it holds nothing but zeros.*0 records are whole"),
}


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "partial"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_tar(kind, partial, tmp_path, capsys):
  make, message = FOREIGN[kind]
  pack(tmp_path / "a.tar", record("0"))
  pack(tmp_path / "b.tar", record("1"))
  (tmp_path / "b.tar").write_bytes(make((tmp_path / "b.tar").read_bytes()))
  if partial and kind == "zeros":
    assert command("index_tars")(tmp_path, "--partial") == 0
    return
  status = command("index_tars")(tmp_path, *["--partial"] * partial)
  lines = capsys.readouterr().err.splitlines()
  assert (status, len(lines)) == (1, 1)
  assert f"{tmp_path}/b.tar: " in lines[0]
  with pytest.raises(ValueError, match=message):
    tars.TarSource(str(tmp_path))
  assert not list(tmp_path.glob(".blip3o/*/*/index.json"))


@pytest.mark.parametrize(
  ("name", "given", "message"),
  [
    ("data/a.tar.gz", "data", r"no \*\.tar in it; undo the compression of a.tar.gz"),
    ("data/deep/a.tar", "data", "name the folder that holds them, such as .*data/deep"),
    ("data/a.tar.md", "data", r"data: no \*\.tar in it$"),
    ("data/._a.tar", "data", r"data: no \*\.tar in it$"),
    ("data/a.tar", "data/a.tar", "a.tar: a file; expected the folder that holds it"),
    ("data/a.tar", "date", "date: no such folder"),
  ],
)
def test_folders_without_a_tar(name, given, message, tmp_path, capsys):
  (tmp_path / name).parent.mkdir(parents=True)
  pack(tmp_path / name, record("0"))
  assert command("index_tars")(tmp_path / given) == 1
  (line,) = capsys.readouterr().err.splitlines()
  with pytest.raises(FileNotFoundError, match=message) as error:
    tars.TarSource(str(tmp_path / given))
  assert str(error.value) in line


def test_nothing_but_what_is_left_out(tmp_path, capsys):
  pack(tmp_path / "a.tar", [("0.jpg", A), ("0.json", b"{}"), *record("1", A, b"")])
  assert command("index_tars")(tmp_path) == 1
  (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("blip3o index: ")]
  assert "no record in 1 tars (KEY.txt with KEY.jpg or KEY.npy); left out: 1 members of" in line
  assert "the first 0.json; 1 keys without caption or picture, the first 0.jpg; 1 capt" in line


def test_a_caption_in_another_encoding(tmp_path):
  pack(tmp_path / "a.tar", record("0", A, "a cat".encode("utf-16")))
  with pytest.raises(BadRecord, match=r"a\.tar:0: the caption is not UTF-8 but UTF-16"):
    tars.TarSource(str(tmp_path))[0]


def test_a_twin_of_a_tar_is_no_tar(tmp_path):
  pack(tmp_path / "a.tar", record("0"))
  (tmp_path / "._a.tar").write_bytes(TWIN)
  assert len(tars.TarSource(str(tmp_path))) == 1


def test_a_tar_that_is_written_anew_while_in_use(tmp_path):
  """Of the same size, so that every place still is one."""
  pack(tmp_path / "a.tar", record("0"))
  source = tars.TarSource(str(tmp_path))
  pack(tmp_path / "a.tar", record("0", A, b"a dog"))
  os.utime(tmp_path / "a.tar", ns=(1, 1))
  with pytest.raises(BadRecord, match=r"a\.tar:0: the tar was changed while in use"):
    source[0]


def test_an_index_of_an_earlier_version_is_made_again(tmp_path, monkeypatch):
  """One of another file beside the tars, of the versions before, is left alone."""
  pack(tmp_path / "a.tar", [*record("0"), *record("0", B)])
  (tmp_path / "index.npz").write_bytes(b"as it was")
  monkeypatch.setattr(index, "VERSION", 0)
  tars.TarSource(str(tmp_path))
  monkeypatch.undo()
  scanned = []
  scan = members.scan
  monkeypatch.setattr(
    members, "scan", lambda path, **how: scanned.append(path) or scan(path, **how)
  )
  assert len(tars.TarSource(str(tmp_path))) == len(tars.TarSource(str(tmp_path))) == 2
  assert scanned == [str(tmp_path / "a.tar")]
  assert (tmp_path / "index.npz").read_bytes() == b"as it was"
