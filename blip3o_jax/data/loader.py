"""Batches loaded ahead by threads, in order. Knows a pipeline, and nothing of what becomes of them.

A row is the unit of work, so that all threads help the batch that is waited for. Each is written to
its place in the batch at once, by the thread that made it. Threads meet at the ends of batches
alone: of cached features a row takes microseconds, and a lock would be half of them.
"""

from collections.abc import Iterator
import itertools
import threading

from blip3o_jax.data.batch import Arrays
from blip3o_jax.data.batch import Batch
from blip3o_jax.data.batch import Memory
from blip3o_jax.data.pipeline import Pipeline


class Loader:
  """Iterates (step, batch) of the steps `start` to `stop`; the same as `batch_at` of each step.

  `Data.threads` threads load the rows, and at most `Data.prefetch` batches are loaded or ready
  beside the one that was taken last. Iteration raises what a row raised, when its step is reached.
  `close` ends it, and the threads, each after the row that it is at; it is a context manager.
  """

  def __init__(self, pipeline: Pipeline, start: int, stop: int):
    self._pipeline, self._rows = pipeline, pipeline.rows
    self._steps, self._stop = iter(range(start, stop)), stop
    self._places = itertools.count(start * self._rows)  # of all steps' rows together, the next
    self._batches: dict[int, Batch] = {}  # those that may be begun
    self._changed, self._memory = threading.Condition(), Memory()
    self._closed = False
    self._allow(start, pipeline.cfg.prefetch)
    self._threads = [
      threading.Thread(target=self._work, name=f"loader-{i}", daemon=True)
      for i in range(pipeline.cfg.threads)
    ]
    for thread in self._threads:
      thread.start()

  def __iter__(self) -> Iterator[tuple[int, Arrays]]:
    for step in self._steps:
      with self._changed:
        while not self._closed and not self._batches[step].is_done:
          self._changed.wait()
        if self._closed:
          return
        batch = self._batches.pop(step)
        self._allow(step + self._pipeline.cfg.prefetch, 1)
        self._changed.notify_all()
      yield step, batch.taken()

  def __enter__(self) -> "Loader":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the threads."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
    for thread in self._threads:
      thread.join()

  def _allow(self, first: int, count: int) -> None:
    for step in range(first, min(first + count, self._stop)):
      self._batches[step] = Batch(self._rows, self._memory)

  def _work(self) -> None:
    pipeline, rows, batches = self._pipeline, self._rows, self._batches
    while not self._closed:
      step, row = divmod(next(self._places), rows)
      if step >= self._stop:
        return
      batch = batches.get(step)
      if batch is None:
        with self._changed:
          while not self._closed and step not in batches:
            self._changed.wait()
          if self._closed:
            return
          batch = batches[step]
      try:
        batch.put(row, pipeline.row_at(step, row))
      except BaseException as error:  # a panic of a library in Rust is no Exception
        batch.fail(row, error)
      if batch.is_done:
        with self._changed:
          self._changed.notify_all()
