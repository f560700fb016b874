"""Batches loaded ahead by threads, in order. Knows a pipeline, and nothing of what becomes of them.

A row is the unit of work, so that all threads help the batch that is waited for.
"""

import collections
from collections.abc import Iterator
from concurrent import futures

from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import stack


class Loader:
  """Iterates (step, batch) of the steps `start` to `stop`; the same as `batch_at` of each step.

  `Data.threads` threads load the rows, and at most `Data.prefetch` batches are loaded or ready.
  Iteration raises what a row raised, when its step is reached. `close` ends the threads; it is a
  context manager.
  """

  def __init__(self, pipeline: Pipeline, start: int, stop: int):
    self._pipeline, self._steps = pipeline, iter(range(start, stop))
    self._ahead: collections.deque[tuple[int, list[futures.Future[Arrays]]]] = collections.deque()
    self._pool = futures.ThreadPoolExecutor(pipeline.cfg.threads, thread_name_prefix="loader")

  def __iter__(self) -> Iterator[tuple[int, Arrays]]:
    self._fill()
    while self._ahead:
      step, rows = self._ahead[0]
      batch = stack([row.result() for row in rows])
      self._ahead.popleft()
      self._fill()
      yield step, batch

  def __enter__(self) -> "Loader":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the threads, once each has finished the row that it is at."""
    self._pool.shutdown(cancel_futures=True)

  def _fill(self) -> None:
    while len(self._ahead) < self._pipeline.cfg.prefetch:
      step = next(self._steps, None)
      if step is None:
        return
      rows = [self._pool.submit(row) for row in self._pipeline.rows_at(step)]
      self._ahead.append((step, rows))
