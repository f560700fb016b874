"""Where output goes: written under another name and renamed, so that what exists is whole."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import shutil
from types import TracebackType
from typing import TypeVar

from blip3o_jax.convert.progress import size

T = TypeVar("T")
R = TypeVar("R")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5")
SPARE = 64 * 2**20  # of disk, beside the arrays: JSON, tokenizer, what a file system adds


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


def in_parallel(copy: Callable[[T], R], work: Iterable[T], *, alone: bool = False) -> list[R]:
  """What `copy` returns for each piece of work, in order; the first error ends what has not begun.

  Args:
    alone: one at a time, else as many as keep a disk busy and bound the memory.
  """
  threads = 1 if alone else max(1, min(4, len(os.sched_getaffinity(0))))
  with ThreadPoolExecutor(threads) as pool:
    jobs = [pool.submit(copy, piece) for piece in work]
    try:
      return [job.result() for job in jobs]
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
