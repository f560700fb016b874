"""From a data config to its records, and to those of them that are used."""

from collections.abc import Iterable
import itertools
import math
from pathlib import PurePosixPath

from absl import logging
import numpy as np

from blip3o_jax.data import sources
from blip3o_jax.data.chosen import Chosen
from blip3o_jax.data.options import Data
from blip3o_jax.data.options import Ingredient
from blip3o_jax.data.records import Source
from blip3o_jax.data.shapes import source as embedded
from blip3o_jax.data.sources import mixed
from blip3o_jax.data.sources import synthetic


def open_source(cfg: Data, field: str = "data") -> Source:
  """The records of a data config, those of the other split among them: see `used`.

  Args:
    field: of a run's config, for errors.

  Raises:
    FileNotFoundError, ValueError: see the sources; no path.
  """
  if cfg.source == "shapes":
    if cfg.mixture:
      return _mixed(_shapes(cfg, one) for one in cfg.mixture)
    home = cfg.path if cfg.features else ""
    return embedded.EmbeddedSource(cfg.split, cfg.records, cfg.shapes, features=home)
  if cfg.source == "synthetic":
    return synthetic.SyntheticSource(cfg.records)
  if not (cfg.path or cfg.mixture):
    raise ValueError(f"config.{field}.path: expected a folder, file or address (docs/data.md)")
  sets = cfg.mixture or (Ingredient(cfg.path, reading=cfg.reading),)
  pieces: list[mixed.Piece] = []
  for each in sets:
    shares = each.reading.captions()
    name = each.name or PurePosixPath(each.path).name
    for caption, share in shares.items():
      source = sources.opened(each.path, each.reading.alone(caption))
      called = f"{name}.{caption}" if len(shares) > 1 else name
      weight = each.weight * share / sum(shares.values())
      pieces.append(mixed.Piece(source, called, weight, each.records))
  return _mixed(pieces) if cfg.mixture or len(pieces) > 1 else pieces[0].source


def _shapes(cfg: Data, one: Ingredient) -> mixed.Piece:
  alone = cfg.alone(one)
  return mixed.Piece(open_source(alone), one.name or alone.split, one.weight)


def _mixed(pieces: Iterable[mixed.Piece]) -> mixed.Mixed:
  """Sets of different names as one source."""
  out = mixed.Mixed(list(pieces))
  names = [piece.name for piece in out.pieces]
  if double := {name for name in names if names.count(name) > 1}:
    raise ValueError(
      f"config.data.mixture: {sorted(double)[0]!r} is the name of several; name them"
    )
  return out


def used(source: Source, cfg: Data) -> Chosen:
  """Which of a source's records are of the split that `cfg` names, and within its limits.

  Raises:
    ValueError: none are.
  """
  count, limit = len(source), math.floor(cfg.holdout * 2**32)
  if cfg.source != "files":
    return Chosen.all(count)
  if cfg.holdout or cfg.split == "test":
    test = cfg.split == "test"
    out = Chosen.where(count, lambda a, z: (source.hashes(a, z) < limit) == test)
  else:
    out = Chosen.all(count)
  kept = np.zeros(len(out.bits), np.uint8)
  pieces = mixed.pieces(source)
  for piece, (start, end) in zip(pieces, itertools.pairwise(mixed.starts(pieces)), strict=True):
    of, most = out.within(start, end), piece.records or cfg.records
    kept |= (of.first(most) if most else of).bits
  out = Chosen(kept, count)
  if not len(out):
    where = cfg.path or "config.data.mixture"
    raise ValueError(f"{where}: the split {cfg.split!r} is empty; holdout is {cfg.holdout}")
  if cfg.holdout:
    logging.info("split %r: %d of %d records", cfg.split, len(out), count)
  return out
