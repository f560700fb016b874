"""Parameters by path, wherever they are: a converted directory, a released one, a run, or layers.

All offer the shapes as a mapping, `dtype(path)`, and `read(path, index)` for one slice.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
import threading

import jax
import numpy as np

from blip3o_jax.systems.parts import opened
from blip3o_jax.train import checkpoint
from blip3o_jax.weights import store
from blip3o_jax.weights.table import Index
from blip3o_jax.weights.table import Shape


class Run(Mapping[str, Shape]):
  """The leaves that a run trained; one whole leaf is in memory at a time.

  Args:
    item: "params", or "ema" for their average. step: of the checkpoint.

  Raises:
    FileNotFoundError, ValueError: see `checkpoint.stored`.
  """

  def __init__(self, run: Path, item: checkpoint.Item, step: int):
    self._run, self._item, self._step = run, item, step
    self._stored = checkpoint.stored(run, item=item, step=step)
    self._lock = threading.Lock()
    self._held: tuple[str, np.ndarray | None] = ("", None)

  def __getitem__(self, path: str) -> Shape:
    return tuple(self._stored[path].shape)

  def __iter__(self) -> Iterator[str]:
    return iter(self._stored)

  def __len__(self) -> int:
    return len(self._stored)

  def dtype(self, path: str) -> np.dtype:
    """The stored dtype of a leaf."""
    return np.dtype(self._stored[path].dtype)

  def read(self, path: str, index: Index) -> np.ndarray:
    """One slice of a leaf."""
    with self._lock:
      if self._held[0] != path:
        self._held = ("", None)  # lets go of the last one before the next is there
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        leaf = self._stored[path]
        wanted = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)}
        found = checkpoint.restore_params(self._run, wanted, item=self._item, step=self._step)
        self._held = path, np.asarray(found[path])
      whole = self._held[1]
    assert whole is not None
    return whole[index]


class Layers(Mapping[str, Shape]):
  """Several of them, the later ones first.

  Args:
    layers: each with the paths that it may give.
  """

  def __init__(self, layers: Sequence[tuple["Leaves", set[str]]]):
    self._of: dict[str, Leaves] = {}
    for leaves, paths in layers:
      self._of |= dict.fromkeys(sorted(paths & set(leaves)), leaves)

  def __getitem__(self, path: str) -> Shape:
    return self._of[path][path]

  def __iter__(self) -> Iterator[str]:
    return iter(self._of)

  def __len__(self) -> int:
    return len(self._of)

  def dtype(self, path: str) -> np.dtype:
    """The stored dtype of a parameter."""
    return self._of[path].dtype(path)

  def read(self, path: str, index: Index) -> np.ndarray:
    """One slice of a parameter."""
    return self._of[path].read(path, index)


Leaves = store.Arrays | opened.Released | Run | Layers
