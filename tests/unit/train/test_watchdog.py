"""The watchdog's fields, and what it must let pass; that it ends a run is in tests/mesh."""

import math
import threading
import time

import pytest

from blip3o_jax.train import goodput
from blip3o_jax.train import watchdog


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    (dict(times=0.5), r"watchdog\.times 0\.5: expected 0 \(off\), or more than 1"),
    (dict(times=math.nan), r"watchdog\.times nan"),
    (dict(seconds=0.0), r"watchdog\.seconds 0\.0: expected more than 0"),
  ],
)
def test_bad_fields(fields, said):
  with pytest.raises(ValueError, match=said):
    watchdog.Watchdog(**fields)


@pytest.mark.parametrize("kind", ["compile", "save", "restore", "evaluation", "sampling", "other"])
def test_what_takes_long_by_nature_is_let_pass(tmp_path, kind):
  """Were it not, this process would end here."""
  cfg = watchdog.Watchdog(times=2, seconds=0.1)
  with (
    goodput.Clock(tmp_path) as clock,
    watchdog.Watcher(cfg, clock),
    clock.spent("step"),
    clock.spent(kind),
  ):
    time.sleep(0.3)
  assert not [t for t in threading.enumerate() if t.name == "watchdog"]


def test_off_starts_no_thread(tmp_path):
  clock = goodput.Clock(tmp_path)
  with watchdog.Watcher(watchdog.Watchdog(times=0), clock), clock.spent("step"):
    assert not [t for t in threading.enumerate() if t.name == "watchdog"]
