"""What the data tests share: the recorded miniature's tokenizer, pictures, tars."""

import io
from pathlib import Path
import tarfile

import numpy as np
from PIL import Image
import tokenizers

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"


class Tokenizer:
  """The 510-word tokenizer of the recorded miniature; special strings in a text are text."""

  pad, vision_start, vision_end, image_pad, image_start = 500, 501, 502, 503, 505
  im_start, im_end = 508, 509

  def __init__(self):
    self._inner = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    self._inner.encode_special_tokens = True

  def encode(self, text):
    return self._inner.encode(text, add_special_tokens=False).ids

  def decode(self, ids):
    return self._inner.decode(ids, skip_special_tokens=False)


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
