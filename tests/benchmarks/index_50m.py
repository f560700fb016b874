"""How long a large index takes to open, and how much memory: one JSON line.

python tests/benchmarks/index_50m.py [--records 50000000] [--earlier 5000000] [--folder DIR]

Tars that are not there stand for real ones; their records come from numbers, in the columns that
tars have. The index is made through `index.opened`, as any other, then opened in a process of its
own. `earlier` is the format of the versions before, one .npz that is read whole, in the same run.
"""

import argparse
from collections.abc import Sequence
import functools
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time

import numpy as np

from blip3o_jax.data import index
from blip3o_jax.data import storage
from blip3o_jax.data.sources import members

A_FILE = 50_000  # records
KEY = b"%09d"


def scan(path: str, *, records: int) -> index.Scanned:
  """The records of one synthetic tar: pictures of 100 kB with captions, 9 digits for a key."""
  number = int(Path(path).stem)
  first = number * A_FILE
  count = min(A_FILE, records - first)
  numbers = np.arange(count, dtype=np.int32)
  absent = np.full(count, -1, np.int32)
  columns = {
    "image_block": 1 + 200 * numbers,
    "image_bytes": (90_000 + numbers % 1000).astype(np.uint32),
    "text_block": 199 + 200 * numbers,
    "text_bytes": (300 + numbers % 97).astype(np.uint32),
    "features_block": absent,
    "features_bytes": np.zeros(count, np.uint32),
    "sparse": np.zeros(count, np.uint8),
    "field": np.zeros(count, np.uint8),
  }
  return index.Scanned(columns, [KEY % i for i in range(first, first + count)], {}, {})


def opened(home: str, records: int) -> index.Index:
  """The index of so many records, made first where it is not there."""
  files = [f"{number:05d}.tar" for number in range(-(-records // A_FILE))]
  how = functools.partial(scan, records=records)
  return index.opened(home, files, how, layout="synthetic", stat=stat, workers=os.cpu_count() or 1)


def stat(path: str) -> storage.Stat:
  """Of a tar that is not there."""
  return storage.Stat(A_FILE * 100_000, "synthetic")


def resident_mb() -> float:
  """Memory of this process, in 10^6 bytes, what is mapped and in use included."""
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(home: str, records: int, earlier: bool) -> dict[str, float]:
  """What opening takes; to be called first in a process."""
  before = resident_mb()
  start = time.perf_counter()
  if earlier:
    with np.load(Path(home, "index.npz")) as file:
      found = {name: file[name] for name in file.files}
    assert len(found["key"]) == records
    assert found["key"][records - 1] == KEY % (records - 1)
  else:
    made = opened(home, records)
    assert len(made) == records
    assert made.key(records - 1) == KEY % (records - 1)
    assert int(made.column("image_block")[0]) == 1
  seconds = time.perf_counter() - start
  out = {"open_seconds": seconds, "resident_mb": resident_mb(), "before_mb": before}
  return {name: round(value, 3) for name, value in out.items()} | {"records": records}


def write_earlier(home: str, records: int) -> None:
  """The file of the versions before, with the columns that it had."""
  offset = np.stack([np.arange(records) * 512, np.arange(records) * 512 + 90_000], 1)
  table = np.concatenate([offset, np.full((records, 1), -1)], 1).astype(np.int64)
  np.savez(
    Path(home, "index.npz"),
    key=np.array([KEY % i for i in range(records)]),
    tar=(np.arange(records) // A_FILE).astype(np.int32),
    offset=table,
    size=np.abs(table) % 90_000,
    sparse=np.zeros((records, len(members.PARTS)), bool),
  )


def alone(home: str, records: int, *options: str) -> dict[str, float]:
  """`measure` in a process of its own."""
  arguments = ["--records", str(records), "--folder", home, "--measure", *options]
  command = [sys.executable, __file__, *arguments]
  path = os.pathsep.join(sys.path)
  done = subprocess.run(
    command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
  )
  return json.loads(done.stdout)


def run(records: int, earlier: int = 0, folder: str = "") -> dict[str, object]:
  """Makes an index and opens it.

  Args:
    records: of it. earlier: records of a file of the versions before, 0 for none. folder: to keep
      it in; by default it is removed.
  """
  with tempfile.TemporaryDirectory() as temporary:
    home = folder or temporary
    start = time.perf_counter()
    opened(home, records)
    made = time.perf_counter() - start
    out: dict[str, object] = {**alone(home, records), "make_seconds": round(made, 1)}
    folder_of = Path(opened(home, records).folder)
    size = sum(path.stat().st_size for path in folder_of.iterdir())
    out["bytes_a_record"] = round(size / records, 2)
    if earlier:
      write_earlier(home, earlier)
      out["earlier"] = alone(home, earlier, "--measure-earlier")
  return out


def main(argv: Sequence[str] | None = None) -> int:
  """Prints one JSON line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--records", type=int, default=50_000_000)
  parser.add_argument("--earlier", type=int, default=0, help="records of the format before")
  parser.add_argument("--folder", default="")
  parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--measure-earlier", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.measure:
    print(json.dumps(measure(options.folder, options.records, options.measure_earlier)))
  else:
    print(json.dumps(run(options.records, options.earlier, options.folder)))
  return 0


if __name__ == "__main__":
  sys.exit(main())
