"""Files that are whole or not there: written under another name and renamed; JSON; how far work is.

Imports no jax.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import shutil
import stat
import threading
import time
from types import TracebackType
from typing import Any
import uuid

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5")
POINTER = b"version https://git-lfs.github.com/spec/"
SPARE = 64 * 2**20  # of disk, beside the arrays: JSON, tokenizer, what a file system adds
Say = Callable[[str], None]


class Unreachable(Exception):
  """A place that does not answer, after all attempts: nothing is wrong, and it may answer later.

  No OSError, which is what a damaged file gives: of that one record would be missed.
  """


def usual_mode(path: Path) -> int:
  """The permissions that a new file at `path` has by the umask; an empty one is made there."""
  path.unlink(missing_ok=True)
  path.touch()
  return stat.S_IMODE(path.stat().st_mode)


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
  """Another name beside a file, to write to: renamed at the end, and removed after an error.

  A crash leaves the earlier file as it was.

  Args:
    shared: several processes may write the file at once; each has a name of its own.
  """
  partial = path.with_name(f".{path.name}.{f'{uuid.uuid4().hex[:12]}.' if shared else ''}partial")
  try:
    yield partial
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def read_json(path: Path, *, nulls: bool = False) -> dict[str, Any]:
  """A JSON object of a file that others may have written, where null means absent.

  Args:
    nulls: keep the fields that are null, of a file that is written back.

  Raises:
    FileNotFoundError, or ValueError naming the file when it is not a JSON object.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8-sig"))
  except ValueError as error:
    refuse_stranger(path)
    raise ValueError(f"{path}: not valid JSON: {error}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected a JSON object")
  return value if nulls else without_nulls(value)


def without_nulls(value: Any) -> Any:
  """A JSON value without the fields that are null, at any depth."""
  if isinstance(value, dict):
    return {name: without_nulls(each) for name, each in value.items() if each is not None}
  return [without_nulls(each) for each in value] if isinstance(value, list) else value


def write_text(path: Path, text: str) -> None:
  """Writes a text file that is whole or not there."""
  with replacing(path) as partial:
    partial.write_text(text)


def stranger(data: bytes) -> str:
  """What stands in place of a file that was not fetched, in words; "" for anything else.

  Args:
    data: how the file begins, some hundred bytes of it.
  """
  head = data[:400].lstrip().lower()
  if data.startswith(POINTER):
    size_of = next((line[5:] for line in data[:400].splitlines() if line.startswith(b"size ")), b"")
    whole = f" of {size(int(size_of))}" if size_of.isdigit() else ""
    return (
      f"a git-lfs pointer, not the file{whole} that it stands for; fetch it with "
      "git lfs pull, or the whole model with hf download OWNER/NAME --local-dir DIR"
    )
  if head.startswith((b"<!doctype html", b"<html")):
    return "a web page, not the file; what the server answered was saved in its place"
  return ""


def refuse_stranger(path: Path) -> None:
  """Raises ValueError for a file that is a git-lfs pointer or a web page; see `stranger`."""
  with open(path, "rb") as handle:
    if what := stranger(handle.read(400)):
      raise ValueError(f"{path}: {what}")


class Place:
  """The directory that a conversion writes; a context in which it has a name of its own.

  Left without an error, it gets its name. Left with one, it is removed. What a killed conversion
  left behind has the other name and is removed by the next one to the same output.

  Args:
    output: must not exist, or be an empty directory. source: must not hold it, nor be held by it.

  Raises:
    FileExistsError: output that exists and is not empty. ValueError: one inside the other.
  """

  def __init__(self, output: Path, source: Path):
    self.output = output.absolute()
    if self.output.is_dir() and not any(self.output.iterdir()):
      pass
    elif self.output.exists():
      raise FileExistsError(f"{output}: exists already; nothing was written")
    mine, other = self.output.resolve(), source.resolve()
    if mine == other or mine in other.parents or other in mine.parents:
      raise ValueError(f"{output}: the output and the source {source} must not hold each other")
    self.partial = self.output.with_name(f".{self.output.name}.partial")

  def make_room(self, wanted: int) -> None:
    """Removes what a killed run left, then as `has_room`."""
    shutil.rmtree(self.partial, ignore_errors=True)
    self.has_room(wanted)

  def has_room(self, wanted: int) -> None:
    """Refuses output that the disk has no room for.

    Raises:
      OSError: with both sizes.
    """
    home = next(p for p in self.output.parents if p.exists())
    free = shutil.disk_usage(home).free
    if free < wanted + SPARE:
      raise OSError(
        f"{home}: {size(free)} free, but {size(wanted + SPARE)} are needed; nothing was written"
      )

  def __enter__(self) -> Path:
    shutil.rmtree(self.partial, ignore_errors=True)
    self.partial.mkdir(parents=True)
    return self.partial

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if kind is not None:
      shutil.rmtree(self.partial, ignore_errors=True)
      if isinstance(error, OSError) and error.errno is not None:
        text = f"{self.output}: {error.strerror}, while writing; nothing is left of it"
        raise OSError(error.errno, text) from error
      return
    if self.output.exists():
      self.output.rmdir()
    self.partial.rename(self.output)


def copy_files(source: Path, target: Path, *, skip: set[Path]) -> list[str]:
  """Copies all files that are no weights, links followed; returns weight files left out.

  Args:
    skip: files and folders that are not copied, nor returned.
  """
  left = []
  for path in walk(source, skip):
    name = path.relative_to(source)
    if path.suffix in WEIGHTS:
      left.append(str(name))
      continue
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target / name)
  return left


def walk(directory: Path, skip: Collection[Path] = ()) -> Iterator[Path]:
  """All files below a directory, by name; hidden ones and those in `skip` are passed over."""
  for path in sorted(directory.iterdir()):
    if path.name.startswith(".") or path in skip:
      continue
    if path.is_dir():
      yield from walk(path, skip)
    elif path.is_file():
      yield path


class Progress:
  """Counts bytes from several threads and says a line every few seconds.

  Args:
    verb: what is done. total: bytes in all. say: takes a line. every: seconds between lines.
  """

  def __init__(self, verb: str, total: int, say: Say, *, every: float = 10.0):
    self._verb, self._total, self._say, self._every = verb, total, say, every
    self._lock, self._done = threading.Lock(), 0
    self._start = self._last = time.monotonic()

  def add(self, count: int) -> None:
    """Counts bytes as done."""
    with self._lock:
      self._done += count
      now = time.monotonic()
      if now - self._last < self._every:
        return
      self._last = now
      rate = self._done / (now - self._start)
      left = (self._total - self._done) / max(rate, 1.0)
      line = f"{self._verb} {size(self._done)} of {size(self._total)}, {rate / 1e6:.0f} MB/s"
    self._say(f"{line}, {duration(left)} left")

  def end(self) -> None:
    """Says what the whole took."""
    taken = time.monotonic() - self._start
    rate = self._done / max(taken, 1e-3) / 1e6
    self._say(f"{self._verb} {size(self._done)} in {duration(taken)}, {rate:.0f} MB/s")


def size(count: float) -> str:
  """Bytes in decimal units, as files are listed: "24.1 GB"."""
  for unit in ("B", "kB", "MB"):
    if count < 1000:
      return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
    count /= 1000
  return f"{count:.2f} GB"


def duration(seconds: float) -> str:
  """Seconds as "8 s", "2 min 5 s" or "3 h 10 min"."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60} s"
  return f"{whole // 3600} h {whole % 3600 // 60} min"
