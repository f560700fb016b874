"""Damaged conversions, and where output goes: full disks, killed runs, directories that exist."""

import errno
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import checkpoints
import pytest

from blip3o_jax import files
from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.weights import store

ROOT = Path(__file__).parents[3]
TOOL = [sys.executable, str(ROOT / "tools" / "convert.py")]
SHARD = "model-00002-of-00002.safetensors"


def quiet(_: str) -> None:
  """Takes lines about what is done."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
  """A copy of the miniature in two shards."""
  return checkpoints.copy(tmp_path / "source")


def shorten(path: Path, count: int) -> None:
  path.write_bytes(path.read_bytes()[:-count])


# A converted directory ----------------------------------------------------------------------------


@pytest.fixture
def copied(converted: Path, tmp_path: Path) -> Path:
  """A copy of the converted miniature, to be damaged."""
  return Path(shutil.copytree(converted, tmp_path / "copied"))


def test_a_newer_format(copied, tmp_path):
  checkpoints.edit(copied / store.MANIFEST, format_version=store.FORMAT_VERSION + 1)
  for read in (verbs.load, lambda d: exporter.run(d, tmp_path / "out", say=quiet)):
    with pytest.raises(ValueError, match="format_version 2 is newer than 1"):
      read(copied)


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}'])
def test_a_record_that_is_none(copied, text):
  (copied / store.MANIFEST).write_text(text)
  with pytest.raises(ValueError, match="not the manifest of a conversion"):
    store.read_manifest(copied)


def test_an_absent_component(copied):
  shutil.rmtree(copied / store.FOLDER / "visual")
  with pytest.raises(ValueError, match="names components that are absent: visual"):
    verbs.load(copied)


@pytest.mark.parametrize("damage", ["short", "absent", "metadata"])
def test_a_damaged_array(copied, tmp_path, damage):
  folder = copied / store.FOLDER / "backbone" / "backbone.layers.mlp.up_proj.kernel"
  block = folder / "1.0.0"
  message = {
    "short": "truncated or damaged",
    "absent": "is incomplete, it lacks .*up_proj.kernel/1.0.0; copy",
    "metadata": ".zarray",
  }
  if damage == "short":
    shorten(block, 4)
  else:
    (block if damage == "absent" else folder / ".zarray").unlink()
  for read in (verbs.load, lambda d: exporter.run(d, tmp_path / "out", say=quiet)):
    with pytest.raises(ValueError, match=message[damage]):
      read(copied)
  assert not (tmp_path / "out").exists()


def test_a_conversion_of_another_model(copied):
  checkpoints.edit(copied / "config.json", vocab_size=512)
  with pytest.raises(ValueError, match=r"embed_tokens/embedding: expected \(512, 64\), found"):
    verbs.load(copied)


def test_what_cannot_be_exported(source, tmp_path, converted):
  for given, message in (
    (source, "in the released layout already"),
    (tmp_path, "neither a converted directory nor that of a run"),
  ):
    with pytest.raises((ValueError, OSError), match=message):
      exporter.run(given, tmp_path.parent / f"{tmp_path.name}-out", say=quiet)
  with pytest.raises(ValueError, match="a conversion has no average and no steps"):
    exporter.run(converted, tmp_path / "out", weights="ema", say=quiet)


# Where it is written ------------------------------------------------------------------------------


def test_an_output_that_exists_is_left_alone(source, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "notes.txt").write_text("mine")
  with pytest.raises(FileExistsError, match="out: exists already; nothing was written"):
    importer.run(source, out, say=quiet)
  assert (out / "notes.txt").read_text() == "mine"
  with pytest.raises(ValueError, match="must not hold each other"):
    importer.run(source, source / "out", say=quiet)


def test_a_disk_without_room(source, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=50 * 10**6)
  monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
  with pytest.raises(OSError, match=r"50.0 MB free, but \d+.\d MB are needed; nothing was written"):
    importer.run(source, tmp_path / "out", say=quiet)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["import", "export"])
def test_a_disk_that_fills_up(verb, source, converted, tmp_path, monkeypatch):
  """The write fails as on a full disk: the error says so, and nothing is left."""
  fail = OSError(errno.ENOSPC, "No space left on device")
  count = iter(range(10**6))

  def full(*_: object) -> None:
    if next(count) > 40:
      raise fail

  monkeypatch.setattr(store, "write_all", full)
  run, given = (importer.run, source) if verb == "import" else (exporter.run, converted)
  with pytest.raises(OSError, match="out: No space left on device, while writing; nothing is left"):
    run(given, tmp_path / "out", say=quiet)
  assert not list(tmp_path.glob("*out*")) + list(tmp_path.glob(".*out*"))


def test_a_killed_conversion_leaves_nothing_that_looks_finished(source, tmp_path):
  """Killed in the middle; the next one to the same place starts clean."""
  out, partial = tmp_path / "out", tmp_path / ".out.partial"
  slow = (
    "import time\nfrom blip3o_jax.convert import importer\nfrom blip3o_jax.weights import stream\n"
    "copy = stream.copy\n"
    "def late(*args):\n  time.sleep(0.05)\n  return copy(*args)\n"
    f"stream.copy = late\nimporter.run({str(source)!r}, {str(out)!r})\n"
  )
  process = subprocess.Popen([sys.executable, "-c", slow], cwd=ROOT, stderr=subprocess.DEVNULL)
  until = time.monotonic() + 100
  while not list(partial.glob("weights/*/*/0*")) and time.monotonic() < until:
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert partial.is_dir()
  assert not out.exists()
  assert not store.is_converted(partial)
  (partial / "stale.txt").write_text("of the killed one")
  importer.run(source, out, say=quiet)
  assert not partial.exists()
  assert not (out / "stale.txt").exists()
  assert set(store.read_manifest(out)["components"]) == set(blip3o.COMPONENTS.values())


def test_the_command_says_errors_in_one_line(source, tmp_path):
  (source / SHARD).unlink()
  command = [*TOOL, "import", "--source", str(source), "--output", str(tmp_path / "out")]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert done.stderr.startswith("blip3o convert: ")
  assert SHARD in done.stderr
  assert "Traceback" not in done.stderr
