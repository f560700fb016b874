"""Many pictures to disk: jobs are cut into batches, and a call that was killed goes on.

A job is one file. Those that are there and are what is asked for are not drawn again; one that is
something else ends the call before anything is drawn. Several processes may share the jobs without
a word between them: each takes every N-th.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import io
import json
import math
from pathlib import Path
import time
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np
from PIL import Image

from blip3o_jax import files
from blip3o_jax.use import job as job_rules
from blip3o_jax.use import manifest
from blip3o_jax.use import picture
from blip3o_jax.use import present
from blip3o_jax.use import provenance
from blip3o_jax.use.job import How
from blip3o_jax.use.job import Job
from blip3o_jax.use.picture import Picture

EVERY = 10.0  # seconds between lines of progress
Say = Callable[[str], None]


class Done(NamedTuple):
  """What a call did: files drawn, files that were there, seconds, and the merged manifest."""

  drawn: int
  skipped: int
  seconds: float
  manifest: Path


class Model(Protocol):
  """What draws: `use.model.Model`, of which this is asked for."""

  name: str
  options: Callable[[Any], Mapping[str, Any]]
  settings: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
  generate: Callable[..., list[Picture]]
  edit: Callable[..., list[Picture]]


def run(
  model: Model,
  jobs: Sequence[Job],
  output: Path,
  how: How | None = None,
  *,
  about: Mapping[str, Any] | None = None,
  begin: Callable[[], None] = lambda: None,
  say: Say = print,
) -> Done:
  """Draws the jobs of this process that are not there yet.

  Args:
    output: the folder; it gets settings.json and manifest.jsonl too.
    about: of JSON, what settings.json says beside the model's settings.
    begin: called before the first is drawn, when all is known to be well.
    say: takes lines about how far it is.

  Raises:
    ValueError: before anything is drawn: a job that cannot be, a file that is there and is
      something else. OSError: what cannot be written; what is written stays.
  """
  how = how or How()
  job_rules.check(jobs, how)
  asked = expected(model, how)
  present.writable(output)
  if manifest.begun(output):
    present.same_settings(output, {**(about or {}), **asked})
  there = [job for job in jobs if present.is_there(output, job, asked)]
  mine = jobs[how.process :: how.processes]
  names = {job.file for job in there}
  left = [job for job in mine if job.file not in names]
  present.sweep(output, mine)
  with _told(output, lambda: 0, len(left)):
    begin()
    written = manifest.Manifest(output, how.process, how.processes)
    kept = {**(about or {}), **asked, "commit": provenance.commit()}
    with files.replacing(output / present.SETTINGS, shared=True) as partial:
      partial.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    known = written.known()
    for job in mine:
      if job.file in names and job.file not in known:  # killed between picture and line
        written.add({"file": job.file, **present.metadata(output, job), "seconds": None})
  if skipped := len(mine) - len(left):
    say(f"{skipped} of {len(mine)} files are there already")
  start = time.monotonic()
  _draw(model, left, output, how, written, say)
  taken = time.monotonic() - start
  with _told(output, lambda: len(left), len(left)):
    whole = written.merge()
  return Done(len(left), skipped, taken, whole)


def expected(model: Model, how: How) -> dict[str, Any]:
  """What a picture's metadata has to say beside prompt and seed, as JSON would hold it.

  Raises:
    ValueError: a verb that the model has not, or an option of it.
  """
  takes = dict(model.options(how.verb))
  if odd := [name for name in how.options if name not in takes]:
    known = ", ".join(takes) or "none"
    raise ValueError(f"{model.name}: {how.verb} has no option {odd[0]!r}; it has: {known}")
  given = {name: value for name, value in how.options.items() if value is not None}
  settings = model.settings(how.verb, given)
  settings.pop("version", None)  # another version may go on
  return json.loads(json.dumps(settings, default=str))


def _draw(
  model: Model, jobs: Sequence[Job], output: Path, how: How, written: manifest.Manifest, say: Say
) -> None:
  """Draws and writes; batches are full whatever the jobs' numbers of pictures."""
  units = [(job, seed) for job in jobs for seed in job.seeds]
  waiting: list[Picture] = []
  spent, done = 0.0, 0  # seconds of the pictures that wait; jobs that are written
  clock = _Clock(len(units), say)
  for first in range(0, len(units), how.batch):
    part = units[first : first + how.batch]
    start = time.monotonic()
    waiting += _pictures(model, part, how)
    spent += time.monotonic() - start
    with _told(output, lambda: done, len(jobs)):  # noqa: B023
      while done < len(jobs) and len(waiting) >= (count := len(jobs[done].seeds)):
        seconds = spent * count / len(waiting)
        line = _save(output, jobs[done], waiting[:count])
        written.add({"file": jobs[done].file, **line, "seconds": round(seconds, 3)})
        waiting, spent, done = waiting[count:], spent - seconds, done + 1
    clock.tell(first + len(part))
  clock.end()


def _pictures(model: Model, part: Sequence[tuple[Job, int]], how: How) -> list[Picture]:
  texts, seeds = [job.prompt for job, _ in part], [seed for _, seed in part]
  opened: dict[int, Image.Image] = {}  # of a job with several pictures once
  for job, _ in part:
    if job.shown is not None and id(job) not in opened:
      opened[id(job)] = job.shown()
  shown = [opened.get(id(job)) for job, _ in part]
  if how.verb == "edit":
    return model.edit(shown, texts, seeds, batch=how.batch, **how.options)
  more = {"images": shown} if opened else {}
  return model.generate(texts, seeds, batch=how.batch, **more, **how.options)


def _save(output: Path, job: Job, pictures: Sequence[Picture]) -> dict[str, Any]:
  """Writes a job's file, and returns its metadata."""
  commit = {"commit": provenance.commit()} if provenance.commit() else {}
  line = {**pictures[0].settings, **commit, **job.metadata}
  pixels = tiled([each.pixels for each in pictures])
  if not job.sidecar:
    picture.write(output / job.file, picture.encode(pixels, line))
    return line
  # First, so that no picture is ever there without it.
  text = json.dumps({"file": job.file, **line}, indent=1, ensure_ascii=False) + "\n"
  picture.write(output / job.sidecar, text.encode())
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, "WEBP", lossless=True)
  picture.write(output / job.file, data.getvalue())
  return line


def tiled(pictures: Sequence[np.ndarray]) -> np.ndarray:
  """uint8[n, H, W, 3] as one picture of as many rows as columns, row by row, without borders."""
  side = math.isqrt(len(pictures))
  rows = [np.concatenate(pictures[i * side : (i + 1) * side], axis=1) for i in range(side)]
  return np.concatenate(rows)


class _Clock:
  """Says how far the drawing is, and how long the rest will take."""

  def __init__(self, total: int, say: Say):
    self._total, self._say = total, say
    self._start = self._last = time.monotonic()
    self._warm: tuple[float, int] | None = None  # after the first batch, which compiles

  def tell(self, done: int) -> None:
    now = time.monotonic()
    if self._warm is None:
      self._warm = now, done
    if now - self._last < EVERY or done >= self._total:
      return
    self._last = now
    since, before = self._warm if done > self._warm[1] else (self._start, 0)
    rate = (done - before) / max(now - since, 1e-9)
    left = files.duration((self._total - done) / rate)
    self._say(f"{done} of {self._total} pictures, {rate:.2g} a second, {left} left")

  def end(self) -> None:
    if self._total:
      taken = files.duration(time.monotonic() - self._start)
      self._say(f"{self._total} pictures in {taken}")


@contextlib.contextmanager
def _told(output: Path, done: Callable[[], int], count: int) -> Iterator[None]:
  """An error of the disk in one line, with how much is there."""
  try:
    yield
  except OSError as error:
    where, why = error.filename or output, error.strerror or str(error)
    raise OSError(
      f"{where}: {why}; {done()} of {count} files were drawn, and the same call goes on with the "
      "rest"
    ) from error
