"""Looks at picture files as they lie: whole or cut, how large, which are alike, what they say.

A PNG is not decoded: its chunks have sums, and equal pixels from one encoder are equal bytes.
"""

from collections import Counter
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib
import io
import json
from pathlib import Path
import struct
from typing import Any
import warnings
import zlib

import numpy as np
from PIL import Image

from blip3o_jax.evaluate.benchmarks.layout import ALL_WRONG
from blip3o_jax.evaluate.benchmarks.layout import LOOK
from blip3o_jax.evaluate.benchmarks.layout import SOME_WRONG
from blip3o_jax.evaluate.benchmarks.layout import Report

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_PNG = b"\x89PNG\r\n\x1a\n"
_KEY = b"blip3o\0"  # of the text chunk that `use.picture` writes
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Look:
  """A picture file.

  Attributes:
    wrong: why it cannot be read; "" where it can. kind: "PNG", "JPEG", ... width, height: pixels.
    digest: equal for equal pixels of one encoder. metadata: what this package wrote in it.
    black: how many of its quarters are wholly black, of a file that is no PNG.
  """

  wrong: str = ""
  kind: str = ""
  width: int = 0
  height: int = 0
  digest: bytes = b""
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  black: int = 0

  @property
  def size(self) -> tuple[int, int]:
    return self.width, self.height


def is_picture(path: Path) -> bool:
  """Whether a file's name says that it is a picture."""
  return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def look_at(root: Path, names: Iterable[str]) -> dict[str, Look]:
  """{name: what lies there}, of names below a folder."""
  found = list(names)
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return dict(zip(found, pool.map(lambda name: _look(root / name), found), strict=True))


def _look(path: Path) -> Look:
  try:
    data = path.read_bytes()
  except OSError as error:
    return Look(wrong=error.strerror or str(error))
  if not data:
    return Look(wrong="empty")
  if data.startswith(_PNG):
    return _png(data)
  try:
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
      kind = image.format or ""
      pixels = image.convert("RGB")
  except Exception as error:  # Pillow's readers raise many kinds on damaged bytes
    text = str(error)
    return Look(wrong="no picture" if "cannot identify" in text else text)
  x = np.asarray(pixels)
  high, wide = (x.shape[0] + 1) // 2, (x.shape[1] + 1) // 2
  quarters = (x[:high, :wide], x[:high, wide:], x[high:, :wide], x[high:, wide:])
  black = sum(not quarter.any() for quarter in quarters)
  digest = hashlib.blake2b(x.tobytes(), digest_size=16).digest()
  return Look("", kind, *pixels.size, digest, black=black)


def _png(data: bytes) -> Look:
  """A PNG by its chunks."""
  at, size, ended = len(_PNG), (0, 0), False
  pixels = hashlib.blake2b(digest_size=16)
  metadata: Mapping[str, Any] = {}
  while at + 12 <= len(data) and not ended:
    (length,) = struct.unpack_from(">I", data, at)
    kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
    at += 12 + length
    if at > len(data):
      break
    (wanted,) = struct.unpack_from(">I", data, at - 4)
    if zlib.crc32(kind + body) != wanted:
      return Look(wrong="damaged, a chunk does not have its sum", kind="PNG")
    if kind == b"IHDR" and length >= 8:
      width, height = struct.unpack_from(">II", body)
      size = width, height
    if kind in (b"IHDR", b"PLTE", b"IDAT"):
      pixels.update(body)
    if kind == b"iTXt" and body.startswith(_KEY):
      metadata = _metadata(body)
    ended = kind == b"IEND"
  if not ended or 0 in size:
    return Look(wrong="truncated", kind="PNG")
  return Look("", "PNG", *size, pixels.digest(), metadata)


def _metadata(body: bytes) -> Mapping[str, Any]:
  """The JSON of a text chunk: key, two flags, language, key again, text."""
  compressed = body[len(_KEY)]
  text = body[len(_KEY) + 2 :].split(b"\0", 2)[-1]
  try:
    value = json.loads(zlib.decompress(text) if compressed else text)
  except (ValueError, zlib.error):
    return {}
  return value if isinstance(value, dict) else {}


# Findings that every layout has -------------------------------------------------------------------


def readable(report: Report, looks: Mapping[str, Look], harm: int, does: str) -> dict[str, Look]:
  """The pictures that can be read; finds those that cannot.

  Args:
    does: what the scorer does with one that cannot.
  """
  wrong = {name: look.wrong for name, look in looks.items() if look.wrong}
  for why, _ in Counter(wrong.values()).most_common():
    names = [name for name in wrong if wrong[name] == why]
    report.add(harm, f"cannot be read ({why}): {does}", names)
  return {name: look for name, look in looks.items() if not look.wrong}


def alike(report: Report, looks: Mapping[str, Look], owners: Mapping[str, str]) -> None:
  """Finds equal pictures.

  Args:
    owners: {name: the prompt, or what else makes two pictures differ}.
  """
  groups: dict[bytes, list[str]] = defaultdict(list)
  for name, look in looks.items():
    groups[look.digest].append(name)
  same = [names for names in groups.values() if len(names) > 1]
  across = [names for names in same if len({owners[name] for name in names}) > 1]
  within = [names for names in same if len({owners[name] for name in names}) == 1]
  report.of(
    SOME_WRONG,
    [name for names in across for name in names],
    "pictures are equal to that of another prompt: files mixed up, or a drawing that failed",
  )
  report.of(
    SOME_WRONG,
    [name for names in within for name in names],
    "pictures are equal to another of the same prompt: the seed was not used, so that they "
    "count as one",
  )


def one_size(report: Report, looks: Mapping[str, Look], harm: int = LOOK, does: str = "") -> None:
  """Finds pictures of another size than most."""
  sizes = Counter(look.size for look in looks.values())
  if len(sizes) < 2:
    return
  (width, height), most = sizes.most_common(1)[0]
  odd = [name for name, look in looks.items() if look.size != (width, height)]
  report.of(harm, odd, f"pictures are not {width} x {height} as the other {most} are{does}")


def said(report: Report, looks: Mapping[str, Look], prompts: Mapping[str, str]) -> None:
  """Finds pictures that were drawn from another text than the benchmark's prompt.

  Args:
    prompts: {name: the prompt}.
  """
  told = {name: look.metadata.get("prompt") for name, look in looks.items()}
  other = [
    n for n, text in told.items() if text is not None and n in prompts and text != prompts[n]
  ]
  if other:
    first = other[0]
    report.of(
      LOOK,
      other,
      "pictures were drawn from a rewritten prompt: say so beside the score, rewriting alone "
      f"moves it ({prompts[first]!r} was drawn as {told[first]!r})",
    )


def absent(report: Report, wanted: Sequence[str], looks: Mapping[str, Any], does: str) -> None:
  """Finds files that the scorer looks for and that are not there."""
  missing = [name for name in wanted if name not in looks]
  harm = ALL_WRONG if missing and len(missing) == len(wanted) else SOME_WRONG
  report.of(harm, missing, f"{{n}} of {len(wanted)} files are absent: {does}")


def seams(path: Path) -> tuple[float, float]:
  """How much sharper a picture's middle column and row are than the lines near them.

  Of a grid of two by two different pictures both are far above 1. Of one picture they are near 1,
  wherever its objects end: the step counts that half of a line has.
  """
  with Image.open(path) as image:
    x = np.asarray(image.convert("RGB"), np.float32)
  return _seam(x), _seam(x.swapaxes(0, 1))


def _seam(x: np.ndarray) -> float:
  """Of float32[H, W, 3], over its columns."""
  middle = x.shape[1] // 2
  reach = min(8, middle - 1)
  if reach < 2:
    return 1.0
  near = x[:, middle - reach : middle + reach]
  steps = np.median(np.abs(np.diff(near, axis=1)).mean(2), axis=0)  # the middle one is the seam
  others = np.delete(steps, reach - 1)
  return float((steps[reach - 1] + 0.5) / (others.mean() + 0.5))
