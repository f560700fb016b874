"""Loading that is killed, by SIGKILL, goes on with the record that was next, whatever it reads."""

import json
from pathlib import Path
import subprocess
import sys
import time

from fakes import write_tar
from killed_worker import made
import pytest

WORKER, STEPS = Path(__file__).with_name("killed_worker.py"), 60
BASE = dict(batch=8, buckets=(6, 12), threads=3, prefetch=3, seed=5)


def folder(home, **tars):
  home.mkdir(exist_ok=True)
  for tar, count in tars.items():
    members = {f"{tar}{i}.jpg": b"x" for i in range(count)}
    members |= {f"{tar}{i}.txt": b"x" * (1 + 7 * i % 11) for i in range(count)}
    write_tar(home / f"{tar}.tar", members)
  return str(home)


def wait(home, lines):
  """Until the worker has written so many lines."""
  deadline = time.monotonic() + 120
  file = home / "ids.jsonl"
  while not file.exists() or file.read_bytes().count(b"\n") < lines:
    assert time.monotonic() < deadline
    time.sleep(0.005)


def run(home, asked, rows, kill_at=0):
  """A worker to its end, or killed after so many lines."""
  home.mkdir(exist_ok=True)
  (home / "asked.json").write_text(json.dumps({**asked, "rows": list(rows)}))
  process = subprocess.Popen([sys.executable, str(WORKER), str(home), str(STEPS)])
  if kill_at:
    wait(home, kill_at)
    process.kill()
    process.wait()
  else:
    assert process.wait(120) == 0


def came(home):
  """{step: (names, noise)}; a step that was written twice was the same twice."""
  out = {}
  for line in (home / "ids.jsonl").read_text().splitlines():
    found = json.loads(line)
    value = (found["names"], found["noise"])
    assert out.setdefault(found["step"], value) == value
  return out


@pytest.mark.parametrize("kind", ["one set", "mixture", "window", "processes", "grown"])
def test_killed_twice(kind, tmp_path):
  path = folder(tmp_path / "a", a=90, b=70)
  asked = BASE | {"path": path}
  if kind == "mixture":
    other = folder(tmp_path / "b", c=30)
    sets = [{"path": path, "weight": 3.0}, {"path": other, "weight": 1.0}]
    asked = BASE | {"mixture": sets}
  if kind == "window":
    asked["window"] = 32
  home, whole = tmp_path / "killed", tmp_path / "whole"
  whole.mkdir()
  (whole / "asked.json").write_text(json.dumps({**asked, "rows": list(range(8))}))
  one = made(whole)
  batches = {step: one.batch_at(step) for step in range(STEPS)}
  steps = range(STEPS)
  run(home, asked, range(8), kill_at=7)
  if kind == "grown":  # within the second epoch, which goes on as it would have
    run(home, asked, range(8), kill_at=one.steps_per_epoch + 4)
    folder(tmp_path / "a", d=24)
    steps = range(2 * one.steps_per_epoch)
  if kind == "processes":  # the first half of the rows is loaded by this one
    for part, rows in (("0", range(4)), ("1", range(4, 8))):
      other = tmp_path / f"killed{part}"
      other.mkdir()
      (other / "position.json").write_text((home / "position.json").read_text())
      run(other, asked, rows)
    first = json.loads((home / "position.json").read_text())[0]
    halves = came(tmp_path / "killed0"), came(tmp_path / "killed1")
    for step in range(first, STEPS):
      names = halves[0][step][0] + halves[1][step][0]
      assert names == batches[step]["name"].tolist()
    return
  run(home, asked, range(8))
  found = came(home)
  assert sorted(found) == list(range(STEPS))
  for step in steps:
    assert found[step][0] == batches[step]["name"].tolist()
    assert found[step][1] == batches[step]["noise"][:, 0].tolist()
