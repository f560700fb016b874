"""The thread that owns the model, and the queue before it.

What waits are pictures and conversations, not requests: the oldest one decides what is drawn next,
and those that may be drawn with it, by the same verb and options, join until the batch is full or
nothing more comes for a few milliseconds.
"""

from collections import deque
from collections.abc import Hashable
from collections.abc import Sequence
import math
import threading
import time
from typing import Any

from blip3o_jax.serve import faults
from blip3o_jax.serve import warming
from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.interface import Answer
from blip3o_jax.serve.interface import Model
from blip3o_jax.serve.interface import Progress
from blip3o_jax.serve.jobs import DRAWS
from blip3o_jax.serve.jobs import Answered
from blip3o_jax.serve.jobs import Drawn
from blip3o_jax.serve.jobs import Failed
from blip3o_jax.serve.jobs import Item
from blip3o_jax.serve.jobs import Job
from blip3o_jax.serve.jobs import Preview
from blip3o_jax.serve.jobs import Said
from blip3o_jax.serve.metrics import Metrics
from blip3o_jax.serve.settings import Settings

EVERY = 0.1  # seconds between two looks at whether a batch is still wanted
ENDING = "the server is shutting down"


class _Abandoned(Exception):
  """Nobody waits for any picture of the batch, or the server ends."""


class Worker:
  """See the module.

  Attributes:
    facts: about the model's pictures; None until it is warm.
    fault: what went wrong while it was warmed.
  """

  def __init__(self, model: Model, settings: Settings, metrics: Metrics):
    self._model, self._settings, self._metrics = model, settings, metrics
    self._changed = threading.Condition()
    self._waiting: deque[Item] = deque()
    self._keys: dict[int, Hashable] = {}  # of the jobs that wait, by id
    self._running: list[Item] = []
    self._pixels = 0
    self._ending = self._stopped = False
    self._seconds = 1.0  # that a batch takes, about
    self._begun = False  # whether the model is at work on the batch
    self.facts: warming.Facts | None = None
    self.fault: Exception | None = None
    self._thread = threading.Thread(target=self._run, name="blip3o-model", daemon=True)

  # Of any thread ---------------------------------------------------------------------------------

  def start(self) -> None:
    """Begins to warm the model, and then to work."""
    self._thread.start()

  def submit(self, job: Job) -> None:
    """Takes all items of a job.

    Raises:
      Refused: 429 where they do not fit, with the seconds after which they may; 400 where they
        never do; 503 at the end.
    """
    with self._changed:
      if self._ending:
        raise Refused(503, ENDING, code="shutting_down")
      most, pixels = self._settings.queue, self._settings.limits.waiting_pixels
      if len(job.items) > most or job.pixels > pixels:  # however long it waited
        raise Refused(
          400,
          f"{len(job.items)} pictures to draw, of {job.pixels} pixels that are shown: at most "
          f"{most} and {pixels} may wait",
          code="too_many",
        )
      if len(self._waiting) + len(job.items) > most or self._pixels + job.pixels > pixels:
        batches = 1 + len(self._waiting) / self._settings.batch
        raise Refused(
          429,
          f"{len(self._waiting)} pictures or answers wait already; try again later",
          code="queue_full",
          retry=max(1, math.ceil(batches * self._seconds)),
        )
      self._pixels += job.pixels
      self._keys[id(job)] = job.key
      self._waiting.extend(job.items)
      self._changed.notify()

  def leave(self, job: Job) -> None:
    """Nobody waits for a job any more: what waits is dropped, what runs for it alone ends."""
    with self._changed:
      if not job.left:
        job.left = True
        self._pixels -= job.pixels if self._keys.pop(id(job), None) is not None else 0
        if any(item.job is job for item in self._waiting):
          self._waiting = deque(item for item in self._waiting if item.job is not job)

  def end(self) -> None:
    """Takes nothing more; what was taken is finished."""
    with self._changed:
      self._ending = True
      self._changed.notify()

  def stop(self, seconds: float = 5.0) -> bool:
    """Ends also what runs, at its next step; returns whether the thread has ended in time."""
    with self._changed:
      self._ending = self._stopped = True
      left = {id(item.job): item.job for item in (*self._waiting, *self._running)}
      self._waiting.clear()
      self._changed.notify()
    for job in left.values():
      job.post(Failed(Refused(503, ENDING, code="shutting_down")))
    if self._thread.ident is not None:
      self._thread.join(seconds)
    return not self._thread.is_alive()

  def counts(self) -> tuple[int, int]:
    """How many items wait, and how many are being worked on."""
    with self._changed:
      return len(self._waiting), len(self._running)

  # Of the worker's thread ------------------------------------------------------------------------

  def _run(self) -> None:
    try:
      self.facts = warming.warm(self._model, self._settings, self._check)
    except _Abandoned:
      return
    except Exception as error:
      faults.LOG.error("the model could not be warmed", exc_info=error)
      self.fault = error
      return
    while items := self._take():
      begun = time.monotonic()
      try:
        self._work(items)
      finally:
        seconds = time.monotonic() - begun
        self._seconds += (seconds - self._seconds) / 4
        self._metrics.ran(items[0].job.verb, len(items), seconds)
        with self._changed:
          self._running = []
        del items  # or their pictures would stay until the next batch

  def _take(self) -> list[Item]:
    """The next batch; empty at the end."""
    with self._changed:
      until = 0.0  # when what is there is enough
      while True:
        if not self._waiting:
          if self._ending:
            return []
          self._changed.wait()
          until = time.monotonic() + self._settings.wait
          continue
        found = self._alike()
        left = until - time.monotonic()
        if left > 0 and len(found) < self._settings.batch and not self._ending:
          self._changed.wait(left)
          continue
        taken = {id(item) for item in found}
        self._waiting = deque(item for item in self._waiting if id(item) not in taken)
        self._running = found
        return found

  def _alike(self) -> list[Item]:
    """The oldest item and those that may be drawn with it."""
    key, most = self._keys[id(self._waiting[0].job)], self._settings.batch
    if self._waiting[0].job.verb == "stream":
      return [self._waiting[0]]
    return [item for item in self._waiting if self._keys[id(item.job)] == key][:most]

  def _work(self, items: Sequence[Item]) -> None:
    """Works on a batch; every job of it is told how it ended."""
    self._begun = False
    try:
      self._call(items)
    except _Abandoned:
      pass
    except Exception as error:
      jobs = {id(item.job): item.job for item in items}
      if isinstance(error, ValueError) and not self._begun and len(jobs) > 1:
        for job in jobs.values():  # one of them is refused, which is no fault of the others
          self._work([item for item in items if item.job is job])
        return
      for job in jobs.values():
        self._post(job, Failed(faults.of_model(error, begun=self._begun)))

  def _call(self, items: Sequence[Item]) -> None:
    job = items[0].job
    if all(item.job.left for item in items):
      return
    if job.verb in DRAWS:
      pictures = self._draw(items)
      for item, picture in zip(items, pictures, strict=True):
        self._post(item.job, Drawn(item.place, picture))
    elif len(items) == 1:  # piece by piece, so that it ends when nobody waits for it
      self._post(job, Answered(self._tell(items[0])))
    else:
      talks, seeds = [item.messages for item in items], [item.seed for item in items]

      def hear(which: int, piece: str) -> None:
        self._begun = True
        self._check(items)

      answers = self._model.chat(talks, seed=seeds, hear=hear, **job.options)
      for item, answer in zip(items, answers, strict=True):
        self._post(item.job, Answered(answer))

  def _tell(self, item: Item) -> Answer:
    """The answer to one conversation; its pieces are told where they are wanted."""
    pieces = self._model.stream(item.messages, seed=item.seed, **item.job.options)
    try:
      while True:
        self._check([item])
        piece = next(pieces)
        self._begun = True
        if item.job.verb == "stream":
          self._post(item.job, Said(piece))
    except StopIteration as end:
      answer: Answer = end.value
      return answer
    finally:
      pieces.close()

  def _draw(self, items: Sequence[Item]) -> Sequence[Any]:
    """The pictures of items of one verb and the same options."""

    def progress(step: Progress) -> None:
      self._begun = True
      self._check(items)
      self._show(items, step)

    how: dict[str, Any] = dict(items[0].job.options, batch=len(items), progress=progress)
    if not any(item.job.previews for item in items):
      how["every"] = EVERY
    texts, seeds = [item.text for item in items], [item.seed for item in items]
    images = [item.image for item in items]
    if items[0].job.verb == "generate":
      return self._model.generate(texts, seeds, **how)
    if items[0].job.verb == "edit":
      return self._model.edit(images, texts, seeds, **how)
    return self._model.reconstruct(images, seeds, **how)

  def _show(self, items: Sequence[Item], step: Progress) -> None:
    """Tells those who asked for it what their pictures will look like."""
    if step.preview is None or not 0 < step.done < step.total:
      return
    due = [item.job.previews and not item.job.left and _due(step, item) for item in items]
    if not any(due):
      return
    for item, shown, now in zip(items, step.preview(), due, strict=True):
      if now:
        self._post(item.job, Preview(item.place, item.shown, shown))
        item.shown += 1

  def _check(self, items: Sequence[Item] = ()) -> None:
    """Raises _Abandoned where going on is for nobody."""
    if self._stopped or (items and all(item.job.left for item in items)):
      raise _Abandoned

  def _post(self, job: Job, event: Any) -> None:
    if not job.left:
      job.post(event)


def _due(step: Progress, item: Item) -> bool:
  """Whether a picture has shown fewer previews than it should have by this step."""
  most = item.job.previews
  by_now = sum(step.done * (most + 1) >= step.total * (i + 1) for i in range(most))
  return by_now > item.shown
