"""Batches loaded ahead by threads, in order. Knows a pipeline, and nothing of what becomes of them.

A row is the unit of work, so that all threads help the batch that is waited for. Each is written to
its place in the batch at once, by the thread that made it. Threads meet at the ends of batches
alone: of cached features a row takes microseconds, and a lock would be half of them. One thread
alone makes such rows, see `Crew`.
"""

from collections.abc import Iterator
import itertools
import threading
import time

from blip3o_jax.data.batch import Arrays
from blip3o_jax.data.batch import Batch
from blip3o_jax.data.batch import Memory
from blip3o_jax.data.images import reuse_memory
from blip3o_jax.data.pipeline import Pipeline

_SHORT = 200e-6  # seconds; two threads make rows that take less no faster than one
_LONG = 4e-3  # seconds of a trial's rows together that are worth the others, though most be short
_TRIAL, _BETWEEN = 8, 512  # rows of the first thread: to know their time, and until the next try


class Crew:
  """Whether the first of several threads works alone: it does while most of its rows are short.

  Each row gives up Python's lock twice, to read and to copy. Threads that do this every few
  microseconds mostly wait to be woken: of cached features two make fewer rows than one, and sixteen
  half as many. Now and then the others stand back for some rows of the first one, and where those
  take longer it is no more than half of a trial.
  """

  def __init__(self) -> None:
    self._changed = threading.Condition()
    self._rows, self._long, self._spent = -1, 0, 0.0  # the first row opens files
    self.is_alone = False

  def took(self, seconds: float) -> None:
    """A row of the first thread."""
    self._rows += 1
    if self._rows > 0:
      self._long += seconds > _SHORT
      self._spent += seconds
    if self._long > _TRIAL // 2 or self._spent > _LONG:
      self.together()
    elif self._rows in (0, _TRIAL):
      self._rows, self._long, self._spent, self.is_alone = 0, 0, 0.0, True

  def stand_back(self) -> None:
    """Another thread waits here while the first one works alone."""
    with self._changed:
      while self.is_alone:
        self._changed.wait()

  def together(self) -> None:
    """All work again."""
    with self._changed:
      self._rows, self._long, self._spent, self.is_alone = -_BETWEEN, 0, 0.0, False
      self._changed.notify_all()


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
    self._crew = Crew()
    self._closed = False
    self._allow(start, pipeline.cfg.prefetch)
    reuse_memory(pipeline.cfg.threads)
    self._threads = [
      threading.Thread(target=self._work, args=(i == 0,), name=f"loader-{i}", daemon=True)
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
    self._crew.together()
    for thread in self._threads:
      thread.join()

  def _allow(self, first: int, count: int) -> None:
    for step in range(first, min(first + count, self._stop)):
      self._batches[step] = Batch(self._rows, self._memory)

  def _work(self, is_first: bool) -> None:
    try:
      self._rows_of_a_thread(is_first)
    finally:
      if is_first:
        self._crew.together()  # nobody waits for a thread that is gone

  def _rows_of_a_thread(self, is_first: bool) -> None:
    pipeline, rows, batches, crew = self._pipeline, self._rows, self._batches, self._crew
    while not self._closed:
      if crew.is_alone and not is_first:
        crew.stand_back()
        continue
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
      began = time.perf_counter()
      try:
        batch.put(row, pipeline.row_at(step, row))
      except BaseException as error:  # a panic of a library in Rust is no Exception
        batch.fail(row, error)
      if is_first:
        crew.took(time.perf_counter() - began)
      if batch.is_done:
        with self._changed:
          self._changed.notify_all()
