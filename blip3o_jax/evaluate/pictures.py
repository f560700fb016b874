"""Folders of pictures: what lies in one, its fingerprint, and its pictures in batches."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
from pathlib import Path
import sys
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from blip3o_jax import files
from blip3o_jax.data import images

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
WAITING = 8  # batches that pictures of different shapes may fill before one is cut short


def listed(folder: Path) -> list[Path]:
  """The pictures below a folder, by name; hidden files and folders are passed over.

  Raises:
    FileNotFoundError: no such folder. ValueError: no picture in it.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder}: no such folder of pictures")
  found = [path for path in files.walk(folder) if path.suffix.lower() in ENDINGS]
  if not found:
    raise ValueError(f"{folder}: no pictures in it ({', '.join(ENDINGS)})")
  return found


def check(paths: Sequence[Path]) -> None:
  """Raises ValueError for a file that does not begin as a picture does; decodes none."""
  for path in paths:
    try:
      with Image.open(path):
        pass
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
      raise ValueError(f"{path}: not a picture that can be read ({error})") from None


def fingerprint(folder: Path, paths: Sequence[Path]) -> str:
  """The hash "sha256:..." of the names, below the folder, and the bytes of pictures."""
  digest = hashlib.sha256()
  for path in paths:
    with path.open("rb") as handle:
      own = hashlib.file_digest(handle, "sha256").hexdigest()
    digest.update(f"{path.relative_to(folder).as_posix()} {own}\n".encode())
  return f"sha256:{digest.hexdigest()}"


def batches(paths: Sequence[Path], size: int) -> Iterator[tuple[list[int], np.ndarray]]:
  """Pictures of one shape at a time: (their places in `paths`, uint8[B, H, W, 3]), B <= size.

  Raises:
    ValueError: a picture that does not decode, by its file.
  """
  waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
  for place, path in enumerate(paths):
    pixels = np.asarray(images.decode(path.read_bytes(), str(path)))
    group = waiting.setdefault(pixels.shape, [])
    group.append((place, pixels))
    if len(group) < size and sum(map(len, waiting.values())) < WAITING * size:
      continue
    yield _cut(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
  for group in waiting.values():
    yield _cut(group)


def _cut(group: Sequence[tuple[int, np.ndarray]]) -> tuple[list[int], np.ndarray]:
  return [place for place, _ in group], np.stack([pixels for _, pixels in group])


def told(parts: Iterable[Any], total: int, what: str) -> Iterator[Any]:
  """Passes on (places, ...) tuples, and tells on standard error how far they are of `total`."""
  quick = 0.5 if sys.stderr.isatty() else 10.0  # seconds between lines
  with tqdm(total=total, desc=what, unit="", mininterval=quick, file=sys.stderr) as bar:
    for part in parts:
      yield part
      bar.update(len(part[0]))
