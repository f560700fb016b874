"""What the data tests share: the recorded miniature, records in memory, pictures, tars."""

import dataclasses
import io
from pathlib import Path
import tarfile
import zlib

import numpy as np
from PIL import Image
import tokenizers

from blip3o_jax.data.records import Part
from blip3o_jax.data.records import counted

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"


class InMemory:
  """A source that holds its records."""

  def __init__(self, records):
    self.records = records

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    return self.records[index]

  def words(self, index):
    return dataclasses.replace(self[index], image=None, inputs=(), features=None)

  def lengths(self, name, count):
    return counted(self, count)

  def hashes(self, first, end):
    return np.array([zlib.crc32(self[i].name.encode()) for i in range(first, end)], np.uint32)

  def parts(self):
    said = "".join(record.name for record in self.records)
    return [Part("memory", len(self.records), said)]


def jpeg(seed, width=40, height=30):
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "JPEG")
  return out.getvalue()


def npy(array):
  out = io.BytesIO()
  np.save(out, array)
  return out.getvalue()


def write_tar(path, members):
  """Writes {name: bytes} as a tar."""
  with tarfile.open(path, "w") as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def parsed(text):
  """Ids of a string in which special strings are special: how the released code tokenises."""
  inner = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
  return inner.encode(text, add_special_tokens=False).ids
