"""Loads batches and writes which records they had, until it is killed; goes on where it stood.

python killed_worker.py HOME STEPS, where HOME/asked.json has the fields of `Data` and, in "rows",
those that this process loads. HOME/ids.jsonl gets a line a step, position.json where it stands.
"""

import json
from pathlib import Path
import sys

import numpy as np

from blip3o_jax import config
from blip3o_jax.data.loader import Loader
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import open_source


class Row:
  """The record's name, and how many letters its caption has."""

  counts = "letters"

  def tokens(self, record):
    return len(record.prompt)

  def __call__(self, record, rng):
    return {"name": np.array(record.name, "U60"), "noise": rng.normal(size=2)}


def made(home):
  """The pipeline of a folder's asked.json."""
  asked = json.loads((home / "asked.json").read_text())
  rows = asked.pop("rows")
  cfg = config.build(Data, asked)
  return Pipeline(open_source(cfg), dict.fromkeys(cfg.buckets, Row()), cfg, rows)


def main():
  home, steps = Path(sys.argv[1]), int(sys.argv[2])
  data, first = made(home), 0
  if (home / "position.json").exists():
    first, position = json.loads((home / "position.json").read_text())
    data.resume(position, first)
  with Loader(data, first, steps) as batches, open(home / "ids.jsonl", "a") as out:
    for step, batch in batches:
      line = {"step": step, "names": batch["name"].tolist(), "noise": batch["noise"][:, 0].tolist()}
      out.write(json.dumps(line) + "\n")
      out.flush()
      partial = home / "position.json.partial"
      partial.write_text(json.dumps([step + 1, data.position(step + 1)]))
      partial.replace(home / "position.json")


if __name__ == "__main__":
  main()
