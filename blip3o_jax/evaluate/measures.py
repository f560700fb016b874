"""Numbers of folders of pictures: features by an extractor, then a distance or cosines."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_jax.evaluate import distances
from blip3o_jax.evaluate import pictures
from blip3o_jax.evaluate.distances import Statistics
from blip3o_jax.evaluate.extractors import Extractor

SCORE = 100.0  # times the cosine is the CLIP score, which is never below 0


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder with its pictures, which begin as pictures do.

  Attributes:
    path: of the folder. paths: of its pictures, by name. fingerprint: of names and bytes.
  """

  path: Path
  paths: Sequence[Path]
  fingerprint: str

  @property
  def about(self) -> dict[str, Any]:
    return {"name": str(self.path), "fingerprint": self.fingerprint}


def folder(path: Path) -> Folder:
  """Args, Raises: as `pictures.listed` and `pictures.check`."""
  found = pictures.listed(path)
  pictures.check(found)
  return Folder(path, found, pictures.fingerprint(path, found))


def statistics(of: Folder, extractor: Extractor, batch: int) -> Statistics:
  """The statistics of the features of a folder's pictures."""
  found: Statistics | None = None
  parts = pictures.told(pictures.batches(of.paths, batch), len(of.paths), f"features of {of.path}")
  for _, pixels in parts:
    features = extractor(pixels)
    found = distances.added(found or distances.empty(features.shape[1]), features)
  assert found is not None
  return dataclasses.replace(found, about={"folder": of.about, "extractor": extractor.about})


def reference(
  path: Path, extractor: Extractor, batch: int, cache: Path | None = None
) -> Statistics:
  """The statistics of a folder, or of a file of them.

  Args:
    path: of pictures, or of a file .npz. cache: of a folder, the file that keeps them, or has them
      already.

  Raises:
    ValueError: statistics of another folder or extractor.
  """
  if path.suffix.lower() == ".npz" and not path.is_dir():
    found = distances.load(path)
    _same(path, found.about, "extractor", extractor.about)
    return found
  of = folder(path)
  if cache is not None and cache.exists():
    found = distances.load(cache)
    _same(cache, found.about, "extractor", extractor.about)
    _same(cache, found.about, "folder", of.about)
    return found
  made = statistics(of, extractor, batch)
  if cache is not None:
    made.save(cache)
  return made


def _same(path: Path, about: Mapping[str, Any], what: str, wanted: Mapping[str, Any]) -> None:
  """Raises ValueError for statistics that are of something else; its name may be another."""
  found = about.get(what, {})
  if found.get("fingerprint") != wanted["fingerprint"]:
    raise ValueError(
      f"{path}: statistics of another {what}: {found.get('name')} ({found.get('fingerprint')}); "
      f"expected {wanted['name']} ({wanted['fingerprint']}); remove the file, or name another"
    )


def features(of: Sequence[Path], extractor: Extractor, batch: int, what: str) -> np.ndarray:
  """float64[n, D] of n pictures, in their order."""
  out: np.ndarray | None = None
  for places, pixels in pictures.told(pictures.batches(of, batch), len(of), what):
    found = extractor(pixels)
    out = np.empty((len(of), found.shape[1])) if out is None else out
    if found.shape[1] != out.shape[1]:
      raise ValueError(
        f"{extractor.name}: gave {found.shape[1]} numbers a picture, and {out.shape[1]} before"
      )
    out[places] = found
  assert out is not None
  return out


def text_features(texts: Sequence[str], extractor: Extractor, batch: int) -> np.ndarray:
  """float64[n, D] of n texts; a text that stands there often is computed once."""
  once = list(dict.fromkeys(texts))
  parts = [extractor(once[i : i + batch]) for i in range(0, len(once), batch)]
  places = {text: i for i, text in enumerate(once)}
  return np.concatenate(parts)[[places[text] for text in texts]]


def mean(values: np.ndarray) -> dict[str, float]:
  """The mean of float64[n], and its standard error where n > 1."""
  out = {"value": float(values.mean())}
  if len(values) > 1:
    out["standard_error"] = float(values.std(ddof=1) / np.sqrt(len(values)))
  return out
