"""Tars: random access, cached features, stale indices, truncation, damaged members."""

import os
from pathlib import Path
import subprocess
import sys

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
  source = tars.TarSource(folder)
  assert len(source) == 5
  assert source[4].prompt == "caption 4 ü"
  assert source[1].image == jpeg(1)
  assert source[3].name == "b.tar:000003"
  np.testing.assert_array_equal(source.lengths(), [12] * 5)
  assert (folder / "index.npz").exists()
  assert not list(folder.glob(".*"))


def test_index_is_reused_until_a_tar_changes(folder, monkeypatch):
  tars.TarSource(folder)
  scanned = []
  scan = members_of.scan
  monkeypatch.setattr(members_of, "scan", lambda file: scanned.append(file.name) or scan(file))
  tars.TarSource(folder)
  assert scanned == []
  write_tar(folder / "b.tar", members(4, 3))
  write_tar(folder / "c.tar", members(1, 7))
  assert len(tars.TarSource(folder)) == 8
  assert scanned == ["b.tar", "c.tar"]
  os.utime(folder / "a.tar", ns=(1, 1))
  (folder / "c.tar").unlink()
  assert [r.prompt for r in map(tars.TarSource(folder).__getitem__, range(3))] == [
    f"caption {i} ü" for i in range(3)
  ]
  assert scanned[2:] == ["a.tar"]
  (folder / "index.npz").write_bytes(b"damaged")
  assert len(tars.TarSource(folder)) == 7


def test_hashes_do_not_depend_on_the_other_tars(folder):
  before = tars.TarSource(folder).hashes()
  write_tar(folder / "0.tar", members(2, 9))
  np.testing.assert_array_equal(tars.TarSource(folder).hashes()[2:], before)


@pytest.mark.parametrize("where", ["data", "header", "boundary", "end"])
def test_truncated_tar_is_named_with_what_is_whole(folder, where):
  index = tars.index_folder(folder, write=False)
  image = int(index["offset"][2, 0])  # of the third record of a.tar
  text = int(index["offset"][1, 1])
  cut = {"data": image + 100, "header": image - 200, "boundary": image - 512, "end": text + 5}
  file = folder / "a.tar"
  file.write_bytes(file.read_bytes()[: cut[where]])
  whole = 1 if where == "end" else 2
  with pytest.raises(ValueError, match=rf"a\.tar: truncated .*; {whole} records are whole"):
    tars.TarSource(folder)
  assert len(tars.TarSource(folder, partial=True)) == whole + 2
  assert len(tars.TarSource(folder)) == whole + 2  # the index was made on purpose


def test_garbage_is_no_tar(folder):
  (folder / "b.tar").write_bytes(b"x" * 2000)
  with pytest.raises(ValueError, match=r"b\.tar: truncated or damaged"):
    tars.TarSource(folder)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, bfloat16])
@pytest.mark.parametrize("shape", [(16, 6), (4, 4, 6)])
def test_cached_features(tmp_path, dtype, shape):
  x = np.random.default_rng(0).normal(size=shape).astype(dtype)
  write_tar(tmp_path / "a.tar", {"k.npy": npy(x), "k.txt": b"caption"})
  record = tars.TarSource(tmp_path)[0]
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
    tars.TarSource(tmp_path)[0]


def test_a_tar_that_shrinks_while_in_use(folder):
  source = tars.TarSource(folder)
  (folder / "b.tar").write_bytes(b"")
  with pytest.raises(BadRecord, match=r"b\.tar:000003: the tar was changed while in use"):
    source[3]
  (folder / "b.tar").unlink()
  with pytest.raises(BadRecord, match="cannot be read"):
    source[3]


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no \*\.tar in it"):
    tars.TarSource(tmp_path)
  with pytest.raises(FileNotFoundError, match="no such folder"):
    tars.TarSource(tmp_path / "absent")
  write_tar(tmp_path / "a.tar", {"k.txt": b"a caption alone", "note.md": b"x"})
  with pytest.raises(ValueError, match="no record in 1 tars"):
    tars.TarSource(tmp_path)


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
    tars.TarSource(folder)
