"""Batches loaded ahead by threads, in order. Knows a pipeline, and nothing of what becomes of them.

A row is the unit of work, so that all threads help the batch that is waited for.
"""

from collections.abc import Iterator

import grain

from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import stack


class Loader:
  """Iterates (step, batch) of the steps `start` to `stop`; the same as `batch_at` of each step.

  `Data.threads` threads load the rows, and at most `Data.prefetch` batches are loaded or ready.
  Iteration raises what a row raised, when its step is reached. `close` ends the threads, each after
  the row that it is at; it is a context manager.
  """

  def __init__(self, pipeline: Pipeline, start: int, stop: int):
    self._pipeline, self._steps = pipeline, range(start, stop)
    cfg, rows = pipeline.cfg, pipeline.rows
    options = grain.ReadOptions(num_threads=cfg.threads, prefetch_buffer_size=cfg.prefetch * rows)
    places = grain.MapDataset.range(start * rows, stop * rows)
    self._loaded = iter(places.map(self._load).to_iter_dataset(options))

  def __iter__(self) -> Iterator[tuple[int, Arrays]]:
    for step in self._steps:
      yield step, stack([next(self._loaded) for _ in range(self._pipeline.rows)])

  def __enter__(self) -> "Loader":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the threads."""
    self._loaded.close()

  def _load(self, place: int) -> Arrays:
    return self._pipeline.row_at(*divmod(place, self._pipeline.rows))
