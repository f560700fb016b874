"""Tars: random access, cached features, stale indices, truncation, damaged members."""

import dataclasses
import os
from pathlib import Path
import subprocess
import sys
import zlib

from fakes import jpeg
from fakes import npy
from fakes import write_tar
from ml_dtypes import bfloat16
import numpy as np
import pytest

from blip3o_jax import files
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources import members as members_of
from blip3o_jax.data.sources import tars
from blip3o_jax.data.sources.reading import Reading

ROOT = Path(__file__).parents[4]


def members(count, start=0):
  out = {}
  for i in range(start, start + count):
    out[f"{i:06d}.jpg"], out[f"{i:06d}.txt"] = jpeg(i), f"caption {i} ü".encode()
  return out


@pytest.fixture
def folder(tmp_path):
  write_tar(tmp_path / "a.tar", members(3))
  write_tar(tmp_path / "b.tar", members(2, 3))
  return tmp_path


def test_random_access(folder):
  source = tars.TarSource(str(folder))
  assert len(source) == 5
  assert source[4].prompt == "caption 4 ü"
  assert source[1].image == jpeg(1)
  assert source[3].name == "b.tar:000003"
  extra = {"pictures": 1, "inputs": 0}
  words, whole = source.words(4), dataclasses.replace(source[4], image=None, extra=extra)
  assert dataclasses.asdict(words) == dataclasses.asdict(whole)
  lengths = source.lengths("bytes", lambda record: len(record.prompt.encode()))
  np.testing.assert_array_equal(lengths, [12] * 5)
  assert [path.name for path in folder.glob(".*")] == [".blip3o"]
  assert not list((folder / ".blip3o").rglob(".*"))


def test_index_is_reused_until_a_tar_changes(folder, monkeypatch):
  tars.TarSource(str(folder))
  scanned = []
  scan = members_of.scan

  def scans(path, **options):
    scanned.append(Path(path).name)
    return scan(path, **options)

  monkeypatch.setattr(members_of, "scan", scans)
  tars.TarSource(str(folder))
  assert scanned == []
  write_tar(folder / "b.tar", members(4, 3))
  write_tar(folder / "c.tar", members(1, 7))
  assert len(tars.TarSource(str(folder))) == 8
  assert scanned == ["b.tar", "c.tar"]
  os.utime(folder / "a.tar", ns=(1, 1))
  (folder / "c.tar").unlink()
  assert [r.prompt for r in map(tars.TarSource(str(folder)).__getitem__, range(3))] == [
    f"caption {i} ü" for i in range(3)
  ]
  assert scanned[2:] == ["a.tar"]
  for path in folder.glob(".blip3o/*/*/index.json"):
    path.write_bytes(b"damaged")
  assert len(tars.TarSource(str(folder))) == 7


def test_hashes_do_not_depend_on_the_other_tars(folder):
  before = tars.TarSource(str(folder)).hashes(0, 5)
  write_tar(folder / "0.tar", members(2, 9))
  np.testing.assert_array_equal(tars.TarSource(str(folder)).hashes(2, 7), before)
  crc = [zlib.crc32(f"{i:06d}".encode()) for i in range(1, 4)]
  np.testing.assert_array_equal(tars.TarSource(str(folder)).hashes(3, 6), crc)


@pytest.mark.parametrize("where", ["data", "header", "boundary", "end"])
def test_truncated_tar_is_named_with_what_is_whole(folder, where):
  index = tars.TarSource(str(folder), write=False).index
  assert not (folder / ".blip3o").exists()
  image = 512 * int(index.column("image_block")[2])  # of the third record of a.tar
  text = 512 * int(index.column("text_block")[1])
  cut = {"data": image + 100, "header": image - 200, "boundary": image - 512, "end": text + 5}
  file = folder / "a.tar"
  file.write_bytes(file.read_bytes()[: cut[where]])
  whole = 1 if where == "end" else 2
  with pytest.raises(ValueError, match=rf"a\.tar: truncated .*; {whole} records are whole"):
    tars.TarSource(str(folder))
  assert len(tars.TarSource(str(folder), Reading(partial=True))) == whole + 2
  assert len(tars.TarSource(str(folder), Reading(partial=True))) == whole + 2
  with pytest.raises(ValueError, match=rf"{whole} records are whole.*reading\.partial"):
    tars.TarSource(str(folder))  # also with an index: each call says what it accepts


def test_garbage_is_no_tar(folder):
  (folder / "b.tar").write_bytes(b"x" * 2000)
  with pytest.raises(ValueError, match=r"b\.tar: truncated or damaged"):
    tars.TarSource(str(folder))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, bfloat16])
@pytest.mark.parametrize("shape", [(16, 6), (4, 4, 6)])
def test_cached_features(tmp_path, dtype, shape):
  x = np.random.default_rng(0).normal(size=shape).astype(dtype)
  write_tar(tmp_path / "a.tar", {"k.npy": npy(x), "k.txt": b"caption"})
  record = tars.TarSource(str(tmp_path))[0]
  assert record.image is None
  assert record.features.dtype == dtype
  np.testing.assert_array_equal(record.features, x.reshape(4, 4, 6))


@pytest.mark.parametrize(
  ("member", "match"),
  [
    ({"k.npy": b"junk"}, r"a\.tar:k: cached features are damaged"),
    ({"k.npy": npy(np.zeros((15, 6), np.float16))}, r"shape \(15, 6\)"),
    ({"k.npy": npy(np.zeros((16, 6), np.int32))}, "int32"),
    ({"k.jpg": b"x", "k.txt": b"\xff\xfe\xff"}, r"a\.tar:k: the caption is not UTF-8"),
  ],
)
def test_damaged_members_are_named(tmp_path, member, match):
  write_tar(tmp_path / "a.tar", {"k.txt": b"caption"} | member)
  with pytest.raises(BadRecord, match=match):
    tars.TarSource(str(tmp_path))[0]


def test_a_tar_that_shrinks_while_in_use(folder):
  source = tars.TarSource(str(folder))
  (folder / "b.tar").write_bytes(b"")
  with pytest.raises(BadRecord, match=r"b\.tar:000003: the tar was changed while in use"):
    source[3]
  (folder / "b.tar").unlink()
  with pytest.raises(BadRecord, match="cannot be read"):
    source[3]


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no \*\.tar in it"):
    tars.TarSource(str(tmp_path))
  with pytest.raises(FileNotFoundError, match="no such folder"):
    tars.TarSource(str(tmp_path / "absent"))
  write_tar(tmp_path / "a.tar", {"k.txt": b"a caption alone", "note.md": b"x"})
  with pytest.raises(ValueError, match="no record in 1 tars"):
    tars.TarSource(str(tmp_path))


def test_tool(folder):
  done = subprocess.run(
    [sys.executable, ROOT / "tools" / "index_tars.py", folder],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  assert "5 records in 2 tars: 5 with an image, 0 with cached features" in done.stdout


def test_a_pointer_in_place_of_a_tar(folder):
  (folder / "b.tar").write_bytes(files.POINTER + b"v1\noid sha256:00\nsize 1000\n")
  with pytest.raises(ValueError, match=r"b\.tar: a git-lfs pointer, not the file of 1\.0 kB"):
    tars.TarSource(str(folder))
