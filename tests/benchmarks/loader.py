"""Records a second that `data.loader.Loader` decodes from a tar of JPEGs; prints one JSON line.

    python tests/benchmarks/loader.py --threads 1 8

Writes a tar of synthetic JPEGs of 512 x 512 pixels first, in a temporary folder.
"""

import argparse
import io
import json
import os
from pathlib import Path
import tarfile
import tempfile
import time

import numpy as np
from PIL import Image

from blip3o_jax.data.loader import Loader
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.sources import tars
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import SYSTEMS


def write(path: Path, records: int, side: int) -> None:
  """A tar of pictures with something to compress in them, and captions."""
  rng = np.random.default_rng(0)
  with tarfile.open(path, "w") as tar:
    for i in range(records):
      small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
      picture = io.BytesIO()
      small.resize((side, side), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=90)
      for name, value in ((f"{i:06d}.jpg", picture.getvalue()), (f"{i:06d}.txt", b"a picture")):
        member = tarfile.TarInfo(name)
        member.size = len(value)
        tar.addfile(member, io.BytesIO(value))


def measure(folder: Path, threads: int, batch: int, size: int, seconds: float) -> float:
  """Records a second over at least so many seconds, after the first batch."""
  cfg = Data(
    path=str(folder), task="pixels", batch=batch, image_size=size, threads=threads, buckets=(1,)
  )
  source = tars.TarSource(str(folder))
  made = SYSTEMS["pixels"].transforms(sizes.pixels_shapes(), cfg, None)
  data = Pipeline(source, made, cfg)
  with Loader(data, 0, 10**6) as batches:
    stream = iter(batches)
    next(stream)
    began, done = time.monotonic(), 0
    while (spent := time.monotonic() - began) < seconds:
      next(stream)
      done += batch
  return done / spent


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--threads", type=int, nargs="+", default=[1, 8])
  parser.add_argument("--records", type=int, default=256)
  parser.add_argument("--side", type=int, default=512, help="of the pictures in the tar")
  parser.add_argument("--size", type=int, default=448, help="of the arrays")
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--seconds", type=float, default=10.0)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    write(Path(folder) / "0.tar", options.records, options.side)
    found = {
      str(n): round(measure(Path(folder), n, options.batch, options.size, options.seconds), 1)
      for n in options.threads
    }
  print(json.dumps({"records_per_second": found, "cores": os.cpu_count(), **vars(options)}))


if __name__ == "__main__":
  main()
