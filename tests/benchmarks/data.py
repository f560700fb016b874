"""How fast records become batches, beside others on the same tars in the same run.

    python tests/benchmarks/data.py --json FILE [--rounds 5] [--seconds 4] [--without datasets ...]

Each side is a process of its own, which first shows that it makes the same pictures, and then waits
for its turns: sides are timed one after the other, in rounds, and the medians over the rounds are
given. What a side had prepared while it waited is taken untimed. Records a second of the whole
machine:

| key | what |
|---|---|
| ours | JPEGs of 512 pixels in tars, by source, pipeline and loader, to uint8 batches of 448 |
| decode_alone | Pillow's decoding and resizing of the same bytes from memory, a thread a core |
| webdataset | the package under a torch DataLoader, a worker a core; float32 normalised by numpy |
| datasets | Hugging Face's, the same, the faster of reading as it goes and of its Arrow files |
| webdataset_torch, datasets_torch | normalised as torchvision does it, which is faster |
| cached, cached_bytes_per_second | features of 64 x 1792 bfloat16 that are packed, through ours |
| cached_tars | the same features in tars |
| read_bytes_per_second | their bytes by os.pread into new memory, by as many threads |
| first_batch_seconds | a new process, from its start to its first batch of 1,000 indexed tars |
| index_50m | see index_50m.py |

A peer that is not installed is an error that names it, unless `--without` leaves it out.
"""

import argparse
import importlib.util
import io
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import data_sides as sides
import numpy as np

HERE = Path(__file__).resolve()
PEERS = ("decode_alone", "webdataset", "datasets", "webdataset_torch", "datasets_torch")


# Processes ----------------------------------------------------------------------------------------


def first_batch(folder: Path, options: argparse.Namespace) -> None:
  """What a run does until it has a batch."""
  sides.ours(folder, options)


def serve(name: str, folder: Path, options: argparse.Namespace) -> None:
  """A side's process: says what its first batch is, then its rate each time it is asked."""
  began = time.perf_counter()
  first, rate = sides.SIDES[name](folder, options)
  is_picture = sides.SIDES[name] in sides.PICTURES
  places = sides.members(folder, "jpg" if is_picture else "npy")
  for key, found in first.items():
    file, offset, size = places[key]
    with open(file, "rb") as stream:
      data = os.pread(stream.fileno(), size, offset)
    wanted = np.asarray(sides.pillow(data)) if is_picture else np.load(io.BytesIO(data))
    assert same(np.asarray(found), wanted), f"{name}: {key} is not what Pillow or numpy reads"
  print(json.dumps({"checked": len(first), "seconds": time.perf_counter() - began}), flush=True)
  for line in sys.stdin:
    print(json.dumps(rate(float(line))), flush=True)
  sys.stdout.flush()
  os._exit(0)  # whatever threads and workers there are


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
  if wanted.dtype == np.uint8:
    return found.shape == wanted.shape and bool((found == wanted).all())
  return found.tobytes() == wanted.tobytes()


class Side:
  """A side's process, seen from outside."""

  def __init__(self, name: str, folder: Path, options: argparse.Namespace):
    args = [sys.executable, str(HERE), "--serve", name, "--folder", str(folder)]
    args += ["--threads", str(options.threads)]
    self.name = name
    self._process = subprocess.Popen(
      args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[2]
    )
    print(f"{name}: {self._said()}", file=sys.stderr)

  def rate(self, seconds: float) -> float:
    assert self._process.stdin is not None
    print(seconds, file=self._process.stdin, flush=True)
    return float(self._said())

  def close(self) -> None:
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.wait()

  def _said(self) -> Any:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"{self.name}: its process ended with status {self._process.wait()}")
    return json.loads(line)


def rounds(
  those: tuple[Any, ...], folder: Path, options: argparse.Namespace
) -> dict[str, list[float]]:
  """{name: its rates}, a round after the other."""
  there = [
    Side(side.__name__, folder, options)
    for side in those
    if side.__name__.removesuffix("_torch") not in options.without
  ]
  out: dict[str, list[float]] = {side.name: [] for side in there}
  for _ in range(options.rounds):
    for side in there:
      out[side.name].append(side.rate(options.seconds))
    print({name: round(rates[-1], 1) for name, rates in out.items()}, file=sys.stderr)
  for side in there:
    side.close()
  return out


def started(folder: Path, options: argparse.Namespace) -> float:
  """Seconds from a process's start to its first batch; the set is indexed before."""
  args = [sys.executable, str(HERE), "--first-batch", "--folder", str(folder)]
  args += ["--threads", str(options.threads)]
  times = []
  for _ in range(options.rounds + 1):
    began = time.perf_counter()
    subprocess.run(args, check=True, cwd=HERE.parents[2])
    times.append(time.perf_counter() - began)
  return statistics.median(times[1:])  # the first made the index


def index_50m(records: int) -> Any:
  """What index_50m.py prints."""
  args = [sys.executable, str(HERE.with_name("index_50m.py")), "--records", str(records)]
  found = subprocess.run(args, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[2])
  return json.loads(found.stdout.strip().splitlines()[-1])


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
  """All figures; files lie in `work`."""
  pictures = sides.jpegs(64)
  sides.write(work / "pictures", 2 * sides.CORES, 128, "jpg", pictures)
  sides.write(work / "features", 4, options.features // 4, "npy", [sides.npy(i) for i in range(64)])
  sides.pack(work / "features", work / sides.PACKED)
  out: dict[str, Any] = {"cores": sides.CORES, "threads": options.threads, "rounds": {}}
  for those, folder in ((sides.PICTURES, "pictures"), (sides.FEATURES, "features")):
    found = rounds(those, work / folder, options)
    out["rounds"] |= found
    out |= {name: statistics.median(rates) for name, rates in found.items()}
  record = len(sides.npy(0))
  out["cached_bytes_per_second"] = out["cached"] * record
  out["read_bytes_per_second"] = out.pop("read") * record
  sides.write(work / "thousand", 1000, 4, "jpg", pictures)
  out["first_batch_seconds"] = started(work / "thousand", options)
  if options.index_records:
    out["index_50m"] = index_50m(options.index_records)
  ratios = {f"ours/{peer}": out["ours"] / out[peer] for peer in PEERS if peer in out}
  ratios["cached/read"] = out["cached_bytes_per_second"] / out["read_bytes_per_second"]
  return out | {"ratios": ratios}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--json", type=Path, help="file for the figures; they are printed as well")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=4.0, help="of a side in a round")
  parser.add_argument(
    "--threads", type=int, default=sides.CORES, help="of our loader, and of plain reading"
  )
  parser.add_argument("--features", type=int, default=2048, help="records with cached features")
  parser.add_argument("--index-records", type=int, default=50_000_000, help="0 leaves them out")
  parser.add_argument("--without", nargs="*", default=(), help="peers that are not installed")
  parser.add_argument(
    "--work", type=Path, help="a folder for the files, by default a temporary one"
  )
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  parser.add_argument("--first-batch", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.serve:
    return serve(options.serve, options.folder, options)
  if options.first_batch:
    first_batch(options.folder, options)
    os._exit(0)
  for peer in ("webdataset", "datasets", "torch"):
    if peer not in options.without and importlib.util.find_spec(peer) is None:
      raise SystemExit(f"{peer} is not installed: pip install {peer}, or --without {peer}")
  with tempfile.TemporaryDirectory(dir=options.work) as folder:
    found = measure(Path(folder), options)
  text = json.dumps(found, indent=2)
  print(text)
  if options.json:
    options.json.write_text(text + "\n")
  return None


if __name__ == "__main__":
  main()
