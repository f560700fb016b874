"""Where time goes: kinds of time, steps in flight, several starts, lost steps, a damaged file."""

import json
import threading
import time

import jax
import numpy as np
import pytest

from blip3o_jax.train import goodput


class Slow:
  """Stands for what a step gives: ready when it is told so."""

  def __init__(self):
    self.done = threading.Event()

  def block_until_ready(self):
    self.done.wait(60)
    return self


def test_time_is_of_the_kind_it_is_spent_on(tmp_path):
  with goodput.Clock(tmp_path) as clock:
    with clock.spent("evaluation"):
      time.sleep(0.2)
      with clock.spent("compile"):
        time.sleep(0.1)
    found = clock.totals()
  assert found["evaluation"] >= 0.2
  assert found["compile"] >= 0.1
  assert found["step"] == 0
  with pytest.raises(ValueError, match="whatever"), clock.spent("save"):
    raise ValueError("whatever")
  assert clock.kind == "other"


def test_while_a_step_is_in_flight_the_time_is_its(tmp_path):
  with goodput.Clock(tmp_path) as clock:
    step = Slow()
    clock.steps.follow(step)
    with clock.spent("data"):
      time.sleep(0.2)
      step.done.set()
      until = time.monotonic() + 60
      while not clock.steps.finished and time.monotonic() < until:
        time.sleep(0.001)
      time.sleep(0.1)
    found = clock.totals()
  assert found["step"] >= 0.2
  assert found["data"] >= 0.1
  assert clock.steps.finished == clock.steps.dispatched == 1


def test_the_median_is_of_the_time_between_finished_steps(tmp_path):
  with goodput.Clock(tmp_path) as clock:
    assert clock.steps.median() == 0
    for _ in range(4):
      clock.steps.follow(jax.numpy.ones(3) * 2)
      time.sleep(0.05)
    until = time.monotonic() + 60
    while clock.steps.finished < 4 and time.monotonic() < until:
      time.sleep(0.001)
    assert clock.steps.median() >= 0.02


def _started(folder, step, seconds=0.1):
  clock = goodput.Clock(folder)
  clock.begin(step)
  with clock.spent("step"):
    time.sleep(seconds)
  return clock


def test_starts_add_up_and_steps_that_are_done_again_are_lost(tmp_path):
  first = _started(tmp_path, 0)
  values = first.write(10)
  assert 0 < values["goodput"] <= 1
  assert values["goodput"] == pytest.approx(
    values["seconds/step"] / sum(values[f"seconds/{kind}"] for kind in goodput.KINDS)
  )
  before = json.loads((tmp_path / goodput.NAME).read_text())
  assert (before["step"], before["done"], before["lost"], before["starts"]) == (10, 10, 0, 1)
  # It goes on from step 6, so four of ten steps are done again.
  second = _started(tmp_path, 6)
  second.write(12)
  after = json.loads((tmp_path / goodput.NAME).read_text())
  assert (after["step"], after["done"], after["lost"], after["starts"]) == (12, 12, 4, 2)
  assert after["seconds"]["lost"] == pytest.approx(0.4 * before["seconds"]["step"], abs=2e-3)
  assert after["seconds"]["step"] >= 0.6 * before["seconds"]["step"] + 0.1 - 2e-3
  assert "in 2 starts" in second.summary()
  assert "(4 steps done again)" in second.summary()
  # Nothing was lost where it goes on from where it stood.
  third = _started(tmp_path, 12)
  third.write(13)
  assert json.loads((tmp_path / goodput.NAME).read_text())["lost"] == 4


@pytest.mark.parametrize("text", ["", "[]", '{"step": 3}', '{"seconds": null}'])
def test_a_damaged_file_is_named_and_counting_begins_anew(tmp_path, text, caplog):
  (tmp_path / goodput.NAME).write_text(text)
  clock = _started(tmp_path, 5, 0)
  assert f"{tmp_path / goodput.NAME}: cannot be read" in caplog.text
  clock.write(6)
  found = json.loads((tmp_path / goodput.NAME).read_text())
  assert (found["step"], found["done"], found["lost"], found["starts"]) == (6, 1, 0, 1)


def test_waiting_for_batches_is_data(tmp_path):
  def batches():
    for i in range(3):
      time.sleep(0.05)
      yield i

  with goodput.Clock(tmp_path) as clock:
    assert list(clock.waiting(batches())) == [0, 1, 2]
    assert clock.totals()["data"] >= 0.15
  assert np.isfinite(list(clock.totals().values())).all()
