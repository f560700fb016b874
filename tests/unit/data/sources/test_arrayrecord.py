"""Packed sets: the bytes of a record, the chunks of a file, packing that is stopped, cut files."""

from concurrent import futures
import dataclasses
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import textwrap

from array_record.python import array_record_module
from fakes import jpeg
from fakes import npy
from fakes import write_tar
import fsspec
from ml_dtypes import bfloat16
from numbered import Numbers
from numbered import packs
import numpy as np
import pytest

from blip3o_jax import cli
from blip3o_jax import files
from blip3o_jax.data import packed
from blip3o_jax.data import packing
from blip3o_jax.data import sources
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources import chunks
from blip3o_jax.data.sources.arrayrecord import ArrayRecordSource
from blip3o_jax.data.sources.reading import Reading

ROOT = Path(__file__).parents[4]
GRID = np.random.default_rng(0).normal(size=(4, 4, 6)).astype(np.float32)
FULL = Record(
  image=jpeg(1),
  inputs=(jpeg(2), np.zeros((2, 3, 3), np.uint8), b""),
  features=GRID.astype(bfloat16),
  prompt="ein Bär \udcff 熊",
  answer="yes",
  turns=(("a?", "b"), ("c?", "")),
  extra={
    "score": 5.8,
    "list": [1, None, "x"],
    "mask": np.ones((2, 2), bool),
    "raw": b"\0\1",
    "refused": (b"a", b""),
  },
  kind="vqa",
)


def same(a, b):
  """Whether two values are equal, arrays with their types."""
  if isinstance(a, np.ndarray):
    return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
  if isinstance(a, dict):
    return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
  if isinstance(a, tuple):
    return len(a) == len(b) and all(map(same, a, b))
  return type(a) is type(b) and a == b


def equal(a, b):
  """Whether two records are, but for their names."""
  fields = [field.name for field in dataclasses.fields(Record) if field.name != "name"]
  return all(same(getattr(a, field), getattr(b, field)) for field in fields)


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def folder(tmp_path):
  packs(tmp_path / "set", Numbers(10), source={"path": "numbers"}, licence="CC0")
  return tmp_path / "set"


@pytest.fixture
def tars(tmp_path):
  members = {}
  for i in range(5):
    members |= {f"{i}.jpg": jpeg(i), f"{i}.txt": f"caption {i} ü".encode()}
  (tmp_path / "tars").mkdir()
  write_tar(tmp_path / "tars" / "a.tar", members)
  more = {"5.npy": npy(GRID.astype(bfloat16)), "5.txt": b"cached", "6.txt": b"\xff", "6.jpg": b"x"}
  write_tar(tmp_path / "tars" / "b.tar", more)
  return str(tmp_path / "tars")


@pytest.mark.parametrize("record", [FULL, Record(), Record(image=np.zeros((3, 2, 3), np.uint8))])
def test_a_record_and_its_bytes(record):
  data = packed.pack(record, "a.tar:1", 2**32 - 1)
  assert data == packed.pack(record, "a.tar:1", 2**32 - 1)
  assert equal(packed.unpack(data, "x"), record)
  head, end = packed.header(data, "x")
  assert (head["id"], head["hash"], end % 64) == ("a.tar:1", 2**32 - 1, 0)
  assert packed.texts(head, "x").turns == record.turns


@pytest.mark.parametrize("dtype", [np.float16, np.float32, bfloat16])
def test_features_are_read_without_a_copy(dtype):
  data = np.frombuffer(packed.pack(Record(features=GRID.astype(dtype)), "1", 0), np.uint8)
  features = packed.unpack(data, "x").features
  np.testing.assert_array_equal(features, GRID.astype(dtype))
  assert features.dtype == dtype
  assert np.shares_memory(features.view(np.uint8), data)


@pytest.mark.parametrize(
  ("record", "match"),
  [
    (Record(extra={"f": print}), "a:1: its extra fields have no JSON"),
    (Record(extra={"f": float("nan")}), "a:1: its extra fields have no JSON"),
    (Record(features=np.zeros(2, np.complex64)), "a:1: features is complex64; expected one of"),
    (Record(features=np.zeros(2, ">f4")), "a:1: features is >f4; expected one of bfloat16"),
  ],
)
def test_what_has_no_place_in_the_layout(record, match):
  with pytest.raises(ValueError, match=match):
    packed.pack(record, "a:1", 0)


def test_damage_is_a_bad_record_or_another_picture():
  data = packed.pack(FULL, "a:1", 0)
  for cut in range(0, len(data.rstrip(b"\0")), 37):
    with pytest.raises(BadRecord, match=r"^where: "):
      packed.unpack(data[:cut], "where")
  rng = np.random.default_rng(0)
  _, end = packed.header(data, "x")
  refused = 0
  for _ in range(500):
    bad = bytearray(data)
    bad[rng.integers(end)] = rng.integers(256)
    try:
      packed.unpack(bytes(bad), "where")
    except BadRecord:
      refused += 1
  assert refused > 250


def test_chunks_are_what_array_record_reads(tmp_path):
  # Sizes at which headers of chunks and of blocks fall together, and one of many blocks.
  rng = np.random.default_rng(0)
  sizes = [65_000, *range(400, 560, 9), 4, 5, 70_000, 65_512, 65_467, 65_466, 65_468, 3_000_000]
  sizes += rng.integers(4, 140_000, 60).tolist()
  path = str(tmp_path / "a")
  writer = array_record_module.ArrayRecordWriter(path, packing.OPTIONS)
  records = [packed.MAGIC + rng.bytes(size - 4) for size in sizes]
  for record in records:
    writer.write(record)
  writer.close()
  found = list(chunks.walk(path, packed.MAGIC))
  assert [chunk.size for chunk in found] == sizes
  reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
  theirs = reader.read_all()
  for chunk, record, other in zip(found, records, theirs, strict=True):
    assert chunks.read(path, chunk.position, chunk.size).tobytes() == record == other
    assert record.startswith(chunk.head)
    half = chunk.size // 2
    assert (
      chunks.read(path, chunk.position + half, 9).tobytes()[: chunk.size - half]
      == (record[half : half + 9])
    )
  assert len(chunks.read(path, found[-1].position, 2**25)) < os.path.getsize(path)


def test_random_access(folder):
  source = sources.opened(str(folder), Reading())
  assert isinstance(source, ArrayRecordSource)
  assert len(source) == 10
  with futures.ThreadPoolExecutor(8) as pool:
    got = list(pool.map(source.__getitem__, [*range(10)] * 20))
  assert all(equal(record, Numbers(10)[i % 10]) for i, record in enumerate(got))
  assert got[7].name == "set-00001-of-00003.arrayrecord:n:7"
  none = {"pictures": 0, "inputs": 0}
  assert equal(source.words(3), dataclasses.replace(source[3], features=None, extra=none))
  np.testing.assert_array_equal(source.hashes(2, 9), Numbers(10).hashes(2, 9))
  assert source.manifest["licence"] == "CC0"
  assert [part.records for part in source.parts()] == [4, 4, 2]
  with pytest.raises(IndexError):
    source[10]


def test_the_command_keeps_pictures_and_the_split(tars, tmp_path, capsys):
  out = tmp_path / "out"
  assert cli.main(["pack", tars, "--output", str(out), "--records-per-shard", "4"]) == 0
  assert "6 records in 2 files" in (said := capsys.readouterr().out)
  assert "1 damaged records were left out" in said
  before = sources.opened(tars, Reading())
  source = ArrayRecordSource(str(out), Reading())
  for i in range(6):
    assert equal(source[i], before[i])
  assert source[0].image == jpeg(0)
  assert source[5].features.dtype == bfloat16
  np.testing.assert_array_equal(source.hashes(0, 6), before.hashes(0, 6))
  manifest = json.loads((out / "manifest.json").read_text())
  assert manifest["shards"][1]["left"] == {"text": 1}
  assert manifest["shards"][0]["fields"] == {"image": 4}
  assert manifest["source"]["path"] == tars
  names = {"manifest.json", "out-00000-of-00002.arrayrecord", "out-00001-of-00002.arrayrecord"}
  assert set(contents(out)) == names
  assert cli.main(["pack", tars, "--output", str(out)]) == 1
  assert "holds a packed set already" in capsys.readouterr().err


def test_packing_that_is_killed_goes_on_to_the_same_bytes(folder, tmp_path, monkeypatch):
  out = tmp_path / "out"
  program = f"""
    import sys
    sys.path[:0] = {[str(Path(__file__).parent), str(ROOT)]}
    from pathlib import Path
    import numbered as t
    t.packs(Path({str(out)!r}), t.Numbers(10, fatal=9), source={{"path": "numbers"}}, licence="CC0")
  """
  done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
  assert done.returncode == 9
  there = sorted(path.name for path in out.iterdir())
  assert "manifest.json" not in there
  kept = [name for name in there if name.endswith(".arrayrecord")]
  assert kept
  with pytest.raises(FileNotFoundError, match=r"manifest\.json: not there.*not finished"):
    ArrayRecordSource(str(out), Reading())
  with pytest.raises(ValueError, match="was begun with licence 'CC0', and now it is 'MIT'"):
    packs(out, Numbers(10), source={"path": "numbers"}, licence="MIT")
  packs(out, Numbers(10), source={"path": "numbers"}, licence="CC0")
  assert contents(out) == contents(folder)


def test_a_full_disk_leaves_no_half_shard(tmp_path):
  program = f"""
    import resource, signal, sys
    sys.path[:0] = {[str(Path(__file__).parent), str(ROOT)]}
    from pathlib import Path
    import numbered as t
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
      t.packs(Path({str(tmp_path / "out")!r}), t.Numbers(16), per_shard=16)
    except OSError as error:
      print(error)
  """
  command = [sys.executable, "-c", textwrap.dedent(program)]
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  assert "set-00000-of-00001.arrayrecord: cannot be written: " in done.stdout
  assert "File too large" in done.stdout
  assert set(contents(tmp_path / "out")) == {"packing.json"}
  packs(tmp_path / "out", Numbers(16), per_shard=16)
  assert len(ArrayRecordSource(str(tmp_path / "out"), Reading())) == 16


def test_damaged_records_are_left_out_and_counted(tmp_path, caplog):
  manifest = packs(tmp_path / "out", Numbers(10, bad=(1, 8, 9)))
  assert manifest["records"] == 7
  assert [shard["left"] for shard in manifest["shards"]] == [{"picture": 1}, {}]
  assert "left out: record 8 is bad" in caplog.text
  source = ArrayRecordSource(str(tmp_path / "out"), Reading())
  assert [record.prompt for record in map(source.words, range(2))] == ["number 0", "number 2"]
  with pytest.raises(ValueError, match="no record could be packed"):
    packs(tmp_path / "none", Numbers(2, bad=(0, 1)))


@pytest.mark.parametrize("place", ["record", "header", "boundary", "index", "nothing"])
def test_a_cut_file_is_named_and_what_is_whole_is_read(folder, place):
  file = folder / "set-00001-of-00003.arrayrecord"
  third = list(chunks.walk(str(file), packed.MAGIC))[2].position
  begin = chunks._place(third) - 45  # of its chunk: header, and how long the record is
  cut = {"record": begin + 5000, "header": begin + 10, "boundary": begin, "nothing": 0}
  os.truncate(file, cut.get(place, file.stat().st_size - 100))
  with pytest.raises(ValueError, match=rf"{file.name}.*(cut|empty)"):
    ArrayRecordSource(str(folder), Reading())
  source = ArrayRecordSource(str(folder), Reading(partial=True))
  whole = {"nothing": 0, "index": 4}.get(place, 2)
  prompts = [source[i].prompt for i in range(len(source))]
  assert prompts == [f"number {i}" for i in (0, 1, 2, 3, *range(4, 4 + whole), 8, 9)]


def test_files_that_are_not_there(folder, caplog):
  (folder / "set-00001-of-00003.arrayrecord").unlink()
  shutil.copy(folder / "set-00000-of-00003.arrayrecord", folder / "other.arrayrecord")
  with pytest.raises(ValueError, match="1 files with 4 records are not there, such as set-00001"):
    ArrayRecordSource(str(folder), Reading())
  assert len(ArrayRecordSource(str(folder), Reading(partial=True))) == 6
  assert "1 files are not in its manifest.json, so not read, such as other" in caplog.text
  with pytest.raises(FileNotFoundError, match="absent: no such folder"):
    ArrayRecordSource(str(folder / "absent"), Reading())


@pytest.mark.parametrize(
  ("options", "data", "match"),
  [
    ("group_size:1", b"\n\x05\n\x03abc" * 9, "of other records, or of compressed ones.*tfds"),
    ("group_size:1,uncompressed", b"example", "of other records, or of compressed ones"),
    ("group_size:1", packed.pack(Record(prompt="x"), "1", 0), "or of compressed ones"),
    ("", files.POINTER + b"v1\noid sha256:00\nsize 1000\n", "a git-lfs pointer"),
    ("", b"x" * 70_000, "does not begin as an ArrayRecord file"),
  ],
  ids=["compressed", "plain", "ours compressed", "pointer", "noise"],
)
def test_files_of_another_kind(folder, options, data, match):
  path = folder / "set-00001-of-00003.arrayrecord"
  path.write_bytes(data)
  if options:
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    writer.write(data)
    writer.close()
  with pytest.raises(ValueError, match=rf"{path.name}: .*{match}"):
    ArrayRecordSource(str(folder), Reading())


def test_a_folder_of_others_files(tmp_path):
  writer = array_record_module.ArrayRecordWriter(str(tmp_path / "a.arrayrecord"), "group_size:1")
  writer.write(b"example")
  writer.close()
  with pytest.raises(FileNotFoundError, match="ArrayRecord files of TFDS: name the folder with"):
    ArrayRecordSource(str(tmp_path), Reading())
  (tmp_path / "manifest.json").write_text('{"layout": "other", "version": 1, "shards": []}')
  with pytest.raises(ValueError, match="layout 'other', version 1, 0 files; expected 'blip3o-"):
    ArrayRecordSource(str(tmp_path), Reading())
  (tmp_path / "manifest.json").write_text("[]")
  with pytest.raises(ValueError, match="not the manifest of a packed set"):
    ArrayRecordSource(str(tmp_path), Reading())
  (tmp_path / "manifest.json").unlink()
  with pytest.raises(ValueError, match=r"a\.arrayrecord is of no packing that was begun here"):
    packing.Shards(tmp_path, "set", 1, {})


def test_a_file_that_changes_while_in_use(folder):
  source = ArrayRecordSource(str(folder), Reading())
  path = folder / "set-00001-of-00003.arrayrecord"
  data = path.read_bytes()
  path.write_bytes(data[:100_000])
  with pytest.raises(BadRecord, match=rf"{path.name}:n:5: the file was changed while in use"):
    source[5]
  path.unlink()
  with pytest.raises(BadRecord, match=rf"{path.name}:n:5: cannot be read"):
    source[5]
  assert source[0].prompt == "number 0"


def test_a_record_that_is_damaged(folder):
  path = folder / "set-00001-of-00003.arrayrecord"
  second = list(chunks.walk(str(path), packed.MAGIC))[1].position
  data = bytearray(path.read_bytes())
  data[chunks._place(second) + 9] ^= 0x80  # in the JSON of its header
  path.write_bytes(data)
  source = ArrayRecordSource(str(folder), Reading())
  assert len(source) == 9
  assert source.index.left == {"records whose header is damaged": 1}
  assert source[5].prompt == "number 6"


def test_behind_an_address(folder, monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  memory = fsspec.filesystem("memory")
  for name, data in contents(folder).items():
    memory.pipe(f"/packed/{name}", data)
  source = sources.opened("memory://packed", Reading())
  assert all(equal(source[i], Numbers(10)[i]) for i in range(10))
  memory.rm("/packed", recursive=True)


def test_a_packed_record_has_one_caption(folder):
  with pytest.raises(ValueError, match="caption 'long': a packed record has 'prompt' only"):
    ArrayRecordSource(str(folder), Reading(caption="long"))
