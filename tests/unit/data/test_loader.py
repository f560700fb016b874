"""Batches loaded ahead: the same ones, in order, by so many threads and so far ahead."""

import threading
import time

from fakes import InMemory
import numpy as np
import pytest

from blip3o_jax.data import loader
from blip3o_jax.data.loader import Loader
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.records import Record

BATCH = 4


class Watched:
  """A transform that notes which records were made, and by which threads."""

  def __init__(self, bad: int = -1):
    self.bad, self.made, self.threads = bad, [], set()
    self.together = threading.Barrier(3)

  def __call__(self, record, rng):
    index = int(record.answer)
    if index == self.bad:
      raise OSError(f"record {index} cannot be read")
    self.made.append(index)
    self.threads.add(threading.current_thread().name)
    return {"index": np.int64(index), "noise": rng.normal(size=2)}

  def tokens(self, record):
    return len(record.prompt)


def pipeline(transform, **fields):
  source = InMemory([Record(prompt="x", answer=str(i)) for i in range(40)])
  cfg = Data(batch=BATCH, buckets=(4,), **fields)
  return Pipeline(source, {4: transform}, cfg)


def loading():
  """Threads that are still there some seconds later."""
  until = time.monotonic() + 30
  found = ["not looked for"]
  while found and time.monotonic() < until:
    time.sleep(0.01)
    found = [t for t in threading.enumerate() if t.name.startswith("loader-")]
  return found


def test_the_batches_of_the_pipeline_in_order():
  p = pipeline(Watched())
  with Loader(p, 7, 25) as batches:
    found = list(batches)
  assert [step for step, _ in found] == list(range(7, 25))
  for step, batch in found:
    assert batch["index"].tolist() == p.ids_at(step)
    for name, value in p.batch_at(step).items():
      np.testing.assert_array_equal(batch[name], value)
  assert not loading()


def test_threads_share_the_rows_of_one_batch():
  """Three rows of the first batch wait for each other, so three threads must be at it."""

  class Together(Watched):
    def __call__(self, record, rng):
      if len(self.threads) < 3:
        self.threads.add(threading.current_thread().name)
        self.together.wait(timeout=60)
      return super().__call__(record, rng)

  transform = Together()
  with Loader(pipeline(transform, threads=3, prefetch=1), 0, 1) as batches:
    assert len(list(batches)) == 1
  assert len(transform.threads) == 3


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_batches_than_asked_for_are_ahead(prefetch):
  transform = Watched()
  with Loader(pipeline(transform, threads=2, prefetch=prefetch), 0, 10) as batches:
    stream = iter(batches)
    next(stream)
    most = BATCH * (1 + prefetch)  # the one that was taken, and those ahead
    until = time.monotonic() + 60
    while len(transform.made) < most and time.monotonic() < until:
      time.sleep(0.01)
    time.sleep(0.1)
    assert len(transform.made) == most


def test_an_error_comes_at_its_step_and_closing_ends_the_threads():
  p = pipeline(Watched(), shuffle=False)
  bad = pipeline(Watched(bad=9), shuffle=False)
  with Loader(bad, 0, 10) as batches:
    stream = iter(batches)
    for step in range(2):
      assert next(stream)[1]["index"].tolist() == p.ids_at(step)
    with pytest.raises(OSError, match="record 9 cannot be read"):
      next(stream)
  assert not loading()


@pytest.mark.parametrize(("short", "alone"), [(60.0, True), (0.0, False)])
def test_one_thread_alone_makes_rows_that_are_short(short, alone, monkeypatch):
  """By a limit that each row is below, or above, however busy the machine is."""
  monkeypatch.setattr(loader, "_SHORT", short)
  monkeypatch.setattr(loader, "_LONG", short)
  monkeypatch.setattr(loader, "_BETWEEN", 8)
  transform = Watched()
  p = pipeline(transform, threads=4)
  with Loader(p, 0, 600) as batches:
    stream = iter(batches)
    for step in range(300):
      number, batch = next(stream)
      assert number == step
      assert batch["index"].tolist() == p.ids_at(step)
    transform.threads.clear()
    crew = batches._crew
    assert crew.is_alone or not alone
    assert [step for step, _ in stream] == list(range(300, 600))
  assert transform.threads == {"loader-0"} if alone else len(transform.threads) > 1
  assert not loading()


def test_the_first_thread_that_works_alone_can_be_closed(monkeypatch):
  monkeypatch.setattr(loader, "_SHORT", 60.0)
  monkeypatch.setattr(loader, "_LONG", 60.0)
  with Loader(pipeline(Watched(), threads=4, prefetch=2), 0, 10**6) as batches:
    stream = iter(batches)
    for _ in range(20):
      next(stream)
  assert not loading()


@pytest.mark.parametrize("rows", [[loader._LONG * 2], [loader._SHORT * 2] * loader._TRIAL])
def test_rows_that_take_long_bring_the_others_back(rows):
  crew = loader.Crew()
  short, late = loader._SHORT / 2, loader._LONG / 2
  for _ in range(1 + loader._TRIAL * 3):
    crew.took(short)
  assert crew.is_alone
  crew.took(late)  # one that waited for something
  assert crew.is_alone
  for row in rows:
    crew.took(row)
  assert not crew.is_alone
  while crew._rows < -1:
    crew.took(short)
    assert not crew.is_alone
  crew.took(short)
  assert crew.is_alone  # asked again
