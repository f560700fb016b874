"""A source of numbered records, and a set packed of it; also for processes that are killed."""

import os

from ml_dtypes import bfloat16
import numpy as np

from blip3o_jax.data import packing
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record


class Numbers:
  """A source of `count` records; reading `bad` is an error, and `fatal` ends the process."""

  def __init__(self, count, bad=(), fatal=-1):
    self.count, self.bad, self.fatal = count, bad, fatal

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index == self.fatal:
      os._exit(9)
    if index in self.bad:
      raise BadRecord(f"record {index} is bad", "picture")
    grid = np.full((16, 16, 64), index, np.float32).astype(bfloat16)
    return Record(features=grid, prompt=f"number {index}", kind="caption", name=f"n:{index}")

  def hashes(self, first, end):
    return np.arange(first, end, dtype=np.uint32) * 7


def packs(folder, records, per_shard=4, **about):
  shards = packing.Shards(folder, "set", packing.count(len(records), per_shard), about)
  return packing.pack(records, shards, per_shard, workers=2, bar=False)
