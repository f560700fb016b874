"""One run at a time in a folder: alive, killed, elsewhere, taken over."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from blip3o_jax.train import lock

HOLDER = """
import sys, time
from blip3o_jax.train import lock

with lock.Lock(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""


def _holder(folder):
  env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(folder)], env=env, stdout=subprocess.PIPE, text=True
  )
  assert process.stdout is not None
  assert process.stdout.readline() == "held\n"
  return process


def test_a_living_run_is_named_and_a_killed_one_holds_nothing(tmp_path, caplog):
  process = _holder(tmp_path)
  try:
    with pytest.raises(lock.InUseError, match=rf"in use by {process.pid} on "):
      lock.Lock(tmp_path).take()
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert (tmp_path / lock.NAME).exists()
  with lock.Lock(tmp_path):
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
  assert f"the lock of {process.pid} on" in caplog.text
  assert not list(tmp_path.iterdir())


def test_one_of_another_machine_is_watched(tmp_path):
  """A file system may not pass the kernel's lock on: the beat decides."""
  other = {"pid": 12, "host": "far", "machine": "another", "start": "1", "id": "x", "beat": 0}
  code = (
    "import json, sys, time\n"
    "for beat in range(600):\n"
    "  open(sys.argv[1], 'w').write(json.dumps(json.loads(sys.argv[2]) | {'beat': beat}))\n"
    "  print(flush=True)\n"
    "  time.sleep(0.1)\n"
  )
  path = tmp_path / lock.NAME
  process = subprocess.Popen(
    [sys.executable, "-c", code, str(path), json.dumps(other)], stdout=subprocess.PIPE
  )
  try:
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(lock.InUseError, match="in use by 12 on far"):
      lock.Lock(tmp_path, beat=1, stale=60).take()
  finally:
    process.kill()
    process.wait()
  path.write_text(json.dumps(other))
  with lock.Lock(tmp_path, beat=0.2, stale=1) as mine:
    path.write_text(json.dumps(other | {"id": "y"}))  # one that took it over
    assert mine._thread is not None
    mine._thread.join(60)
    with pytest.raises(lock.InUseError, match="taken over by 12 on far"):
      mine.check()
  assert path.exists()


def test_a_folder_that_is_not_there_yet(tmp_path):
  with lock.Lock(tmp_path / "run") as mine:
    (tmp_path / "run").mkdir()
    mine.take()
    with pytest.raises(lock.InUseError, match=f"in use by {os.getpid()} on"):
      lock.Lock(tmp_path / "run").take()
