"""Many pictures to disk: in batches, by several processes, killed at any time, and gone on with."""

import dataclasses
import errno
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys

import numpy as np
from painted import Painted
from painted import pixels
from PIL import Image
import pytest

from blip3o_jax.use import jobs
from blip3o_jax.use import manifest
from blip3o_jax.use import picture
from blip3o_jax.use.job import How
from blip3o_jax.use.job import Job

TESTS = Path(__file__).parents[2]


def many(count: int, seeds: int = 1) -> list[Job]:
  return [
    Job(f"{i // 4}/{i:05d}.png", f"prompt {i}", tuple(range(i * seeds, (i + 1) * seeds)))
    for i in range(count)
  ]


def drawn(output: Path) -> dict[str, np.ndarray]:
  found = sorted(output.rglob("*.png"))
  return {p.relative_to(output).as_posix(): np.asarray(Image.open(p)) for p in found}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def run(model, found, output, how=None, **more):
  return jobs.run(model, found, output, how, say=lambda line: None, **more)


def test_batches_are_full_and_pictures_keep_what_they_are(tmp_path):
  model = Painted()
  done = run(model, many(11), tmp_path, How(options={"steps": 6}, batch=4), about={"set": "mine"})
  assert [len(batch) for batch in model.batches] == [4, 4, 3]
  assert (done.drawn, done.skipped) == (11, 0)
  found = drawn(tmp_path)
  assert len(found) == 11
  for i, (name, image) in enumerate(found.items()):
    assert np.array_equal(image, pixels(f"prompt {i}", i))
    told = picture.read(tmp_path / name)
    assert (told["prompt"], told["seed"], told["steps"]) == (f"prompt {i}", i, 6)
    assert (told["fingerprint"], told["verb"]) == ("blake3:1", "generate")
  lines = manifest.read(tmp_path)
  assert [line["file"] for line in lines] == list(found)
  assert all(line["seconds"] >= 0 and line["fingerprint"] == "blake3:1" for line in lines)
  settings = json.loads((tmp_path / jobs.present.SETTINGS).read_text())
  assert (settings["set"], settings["steps"], settings["guidance"]) == ("mine", 6, 2.0)
  assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", settings["commit"])


def test_a_grid_is_row_by_row_and_fills_batches(tmp_path):
  model = Painted()
  run(model, many(3, seeds=4), tmp_path, How(batch=5))
  assert [len(batch) for batch in model.batches] == [5, 5, 2]  # of 12 pictures
  image = np.asarray(Image.open(tmp_path / "0" / "00001.png"))
  tiles = [image[:8, :8], image[:8, 8:], image[8:, :8], image[8:, 8:]]
  for seed, tile in zip((4, 5, 6, 7), tiles, strict=True):
    assert np.array_equal(tile, pixels("prompt 1", seed))
  told = picture.read(tmp_path / "0" / "00001.png")
  assert (told["seeds"], told["grid"]) == ([4, 5, 6, 7], [2, 2])


def test_webp_keeps_its_metadata_beside(tmp_path):
  job = Job("images/000.webp", "p", (3, 4, 5, 6), about={"key": "000"}, sidecar="told/000.json")
  run(Painted(), [job], tmp_path)
  told = json.loads((tmp_path / "told" / "000.json").read_text())
  assert (told["prompt"], told["seeds"], told["about"]) == ("p", [3, 4, 5, 6], {"key": "000"})
  found = np.asarray(Image.open(tmp_path / "images" / "000.webp").convert("RGB"))
  assert np.array_equal(found, jobs.tiled([pixels("p", s) for s in (3, 4, 5, 6)]))  # lossless
  again = Painted()
  assert run(again, [job], tmp_path).skipped == 1
  assert not again.batches


def test_a_second_call_draws_what_is_absent_only(tmp_path):
  run(Painted(), many(6), tmp_path)
  (tmp_path / "0" / "00002.png").unlink()
  model = Painted()
  done = run(model, many(9), tmp_path)
  assert (done.drawn, done.skipped) == (4, 5)
  assert [p for batch in model.batches for p, _ in batch] == [f"prompt {i}" for i in (2, 6, 7, 8)]
  assert len(manifest.read(tmp_path)) == 9


def changed(**fields) -> list[Job]:
  """Four jobs, the last of which is another one."""
  found = many(4)
  return [*found[:3], dataclasses.replace(found[3], **fields)]


@pytest.mark.parametrize(
  ("asked", "model", "options", "said"),
  [
    (changed(prompt="another"), {}, {}, "another prompt"),
    (changed(seeds=(9,)), {}, {}, "another seed"),
    (changed(about={"key": 1}), {}, {}, "another about"),
    (many(4), {}, {"steps": 9}, "another steps: 4, and 9 is"),
    (many(4), {"fingerprint": "blake3:2"}, {}, "another fingerprint"),
    (changed(image={"image_sha256": "1"}), {}, {}, "another image_sha256: null"),
    (changed(image={"friendly": False}), {}, {}, "another friendly: null, and false is"),
  ],
  ids=["prompt", "seed", "about", "steps", "weights", "image", "reading"],
)
@pytest.mark.parametrize("settings", [True, False])
def test_what_contradicts_is_refused_before_any_work(
  asked, model, options, said, settings, tmp_path
):
  run(Painted(), many(4), tmp_path)
  if not settings:
    (tmp_path / "settings.json").unlink()
  painted = Painted(**model)
  with pytest.raises(ValueError, match=said) as told:
    run(painted, [*many(8)[4:], *asked], tmp_path, How(options=options))
  of_all = settings and (model or options)
  assert ("settings.json" if of_all else "0000") in str(told.value)
  assert not painted.batches
  assert not (tmp_path / "1").exists()


def test_a_strange_file_is_refused(tmp_path):
  (tmp_path / "0").mkdir()
  Image.new("RGB", (8, 8)).save(tmp_path / "0" / "00001.png")
  model = Painted()
  with pytest.raises(ValueError, match=r"00001\.png is there, but not from this package"):
    run(model, many(3), tmp_path)
  assert not model.batches


def test_processes_share_without_talking(tmp_path):
  alone, shared = tmp_path / "alone", tmp_path / "shared"
  run(Painted(), many(11), alone)
  models = [Painted() for _ in range(3)]
  for i, model in enumerate(models):
    run(model, many(11), shared, How(batch=2, process=i, processes=3))
  assert [sum(map(len, m.batches)) for m in models] == [4, 4, 3]
  assert same(drawn(alone), drawn(shared))
  assert [line["file"] for line in manifest.read(shared)] == list(drawn(alone))
  # Another number of processes goes on with the same folder.
  (shared / "0" / "00003.png").unlink()
  assert run(Painted(), many(11), shared, How(process=1, processes=2)).drawn == 1
  assert len(manifest.read(shared)) == 11


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from painted import Painted
from blip3o_jax.use import jobs, manifest, picture
from blip3o_jax.use.job import How, Job

where, at = {where!r}, {at}

def die():
  os.kill(os.getpid(), signal.SIGKILL)

def batch(number):
  if where == "batch" and number == at:
    die()

write, count = picture.write, 0
def half(target, data):
  global count
  count += 1
  if where == "write" and count == at:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(f".{{target.name}}.0123456789ab.partial").write_bytes(data[: len(data) // 2])
    die()
  write(target, data)
picture.write = half

add = manifest.Manifest.add
def line(self, value):
  global count
  if where in ("line", "torn") and count == at:
    if where == "torn":
      with open(self._path, "a") as handle:
        handle.write('{{"file": "0/0000')
    die()
  add(self, value)
manifest.Manifest.add = line

found = [Job(f"{{i // 4}}/{{i:05d}}.png", f"prompt {{i}}", (i,)) for i in range(12)]
jobs.run(Painted(before=batch), found, Path({output!r}), How(batch=3))
"""


@pytest.mark.parametrize(
  ("where", "at", "left"), [("batch", 2, 6), ("write", 5, 4), ("line", 5, 5), ("torn", 7, 7)]
)
def test_killed_at_any_time_it_goes_on(where, at, left, tmp_path):
  output = tmp_path / "out"
  paths = [str(TESTS), str(TESTS.parent)]
  script = SCRIPT.format(paths=paths, where=where, at=at, output=str(output))
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert len(drawn(output)) == left  # of the batch that ran at most
  assert not (output / "manifest.jsonl").exists()
  if where == "write":
    assert list(output.rglob(".*.partial"))
  run(Painted(), many(12), tmp_path / "whole")
  model = Painted()
  finished = run(model, many(12), output, How(batch=3))
  assert (finished.drawn, finished.skipped) == (12 - left, left)
  assert same(drawn(output), drawn(tmp_path / "whole"))
  assert not list(output.rglob(".*.partial"))
  lines = manifest.read(output)
  assert [line["file"] for line in lines] == list(drawn(output))
  assert sum(line.get("seconds") is None for line in lines) == (where in ("line", "torn"))


def test_a_partial_file_of_another_process_stays(tmp_path):
  run(Painted(), many(2), tmp_path, How(process=0, processes=2))
  other = tmp_path / "0" / ".00001.png.0123456789ab.partial"
  other.write_bytes(b"being written")
  (tmp_path / "0" / ".00000.png.0123456789ab.partial").write_bytes(b"left")
  run(Painted(), many(2), tmp_path, How(process=0, processes=2))
  assert [p.name for p in (tmp_path / "0").glob(".*")] == [other.name]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
  write = picture.write

  def full(target, data):
    if target.name == "00005.png":
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    write(target, data)

  monkeypatch.setattr(picture, "write", full)
  with pytest.raises(OSError, match=r"00005\.png: No space left on device; 5 of 8 files") as told:
    run(Painted(), many(8), tmp_path, How(batch=4))
  assert "\n" not in str(told.value)
  monkeypatch.undo()
  assert run(Painted(), many(8), tmp_path).skipped == 5


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  for output in (tmp_path / "file", tmp_path / "file" / "below"):
    model = Painted()
    with pytest.raises(OSError, match="file") as told:
      run(model, many(2), output)
    assert "\n" not in str(told.value)
    assert not model.batches
  if os.geteuid() != 0:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OSError, match=r"closed: Permission denied; nothing was drawn"):
      run(Painted(), many(2), tmp_path / "closed")


@pytest.mark.parametrize(
  ("found", "how", "said"),
  [
    ([], How(), "nothing to draw"),
    ([Job("../x.png", "p", (0,))], How(), "not a name of a file below"),
    ([Job("/x.png", "p", (0,))], How(), "not a name of a file below"),
    ([Job("x.webp", "p", (0,))], How(), "and a sidecar"),
    ([Job("x.png", "p", (0,)), Job("X.png", "q", (1,))], How(), "file of two prompts: 'p' and 'q'"),
    ([Job("x.png", "p", (0, 1))], How(), "2 pictures are no grid"),
    (many(1), How(process=2, processes=2), "process 2 of 2"),
    (many(1), How(options={"stepz": 3}), "has no option 'stepz'; it has: steps, guidance"),
    (many(1), How(verb="edit"), "cannot edit|no picture to edit"),
  ],
)
def test_jobs_that_cannot_be(found, how, said, tmp_path):
  with pytest.raises(ValueError, match=said):
    run(Painted(), found, tmp_path / "out", how)
  assert not (tmp_path / "out").exists()


def test_pictures_to_edit_are_opened_when_they_are_needed(tmp_path):
  opened = []

  def shown(name):
    def read():
      opened.append(name)
      return Image.new("RGB", (8, 8))

    return read

  found = [Job(f"{i}.png", f"make it {i}", (i,), shown(i)) for i in range(5)]
  model = Painted(verbs=("edit",))
  run(model, found[:2], tmp_path, How(verb="edit", batch=2))
  assert opened == [0, 1]
  run(model, found, tmp_path, How(verb="edit", batch=2))
  assert opened == [0, 1, 2, 3, 4]


def test_it_says_how_far_it_is(tmp_path, monkeypatch):
  monkeypatch.setattr(jobs, "EVERY", 0.0)
  lines: list[str] = []
  jobs.run(Painted(), many(8), tmp_path, How(batch=2), say=lines.append)
  assert re.fullmatch(r"2 of 8 pictures, \S+ a second, .* left", lines[0])
  assert re.fullmatch(r"8 pictures in .*", lines[-1])
