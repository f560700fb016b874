"""The sides of data.py: files for all of them, one transform, and how each makes batches of them.

A side is a function of a folder that gives its first batch as {key: uint8[H, W, 3], or features},
and a function of seconds that gives its records a second over so many.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
import io
import itertools
import os
from pathlib import Path
import subprocess
import sys
import tarfile
import threading
import time
from typing import Any

from ml_dtypes import bfloat16
import numpy as np
from PIL import Image

CORES = len(os.sched_getaffinity(0))
SIDE, SIZE, BATCH = 512, 448, 32  # pixels of the files and of the batches; rows
TOKENS, CHANNELS, FEATURE_BATCH = 64, 1792, 256
PACKED = "packed"  # the folder beside that of the tars
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
Rate = Callable[[float], float]
Normalise = Callable[[Image.Image], Any]


# The files ----------------------------------------------------------------------------------------


def jpegs(count: int) -> list[bytes]:
  """Pictures with something to compress in them."""
  rng, out = np.random.default_rng(0), []
  for _ in range(count):
    small = Image.fromarray(rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8))
    stream = io.BytesIO()
    small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    out.append(stream.getvalue())
  return out


def npy(seed: int) -> bytes:
  """A file of bfloat16 features."""
  values = np.random.default_rng(seed).normal(size=(TOKENS, CHANNELS)).astype(bfloat16)
  stream = io.BytesIO()
  np.save(stream, values)
  return stream.getvalue()


def pack(tars: Path, folder: Path) -> None:
  """The same records as `blip3o pack` packs them, and `blip3o encode` writes its features."""
  subprocess.run(
    [sys.executable, "-m", "blip3o_jax.cli", "pack", str(tars), "--output", str(folder)],
    check=True,
    stdout=sys.stderr,
  )


def write(folder: Path, tars: int, each: int, ending: str, files: list[bytes]) -> None:
  """Tars of so many records each, whose files come round again when they are fewer."""
  folder.mkdir()
  numbers = itertools.count()
  for t in range(tars):
    with tarfile.open(folder / f"{t:05d}.tar", "w") as tar:
      for i in itertools.islice(numbers, each):
        key = f"{i:07d}"
        for name, value in ((f"{key}.{ending}", files[i % len(files)]), (f"{key}.txt", b"a word")):
          member = tarfile.TarInfo(name)
          member.size = len(value)
          tar.addfile(member, io.BytesIO(value))


def members(folder: Path, ending: str) -> dict[str, tuple[Path, int, int]]:
  """{key: (tar, offset, size)} of the members with an ending."""
  out = {}
  for file in sorted(folder.glob("*.tar")):
    with tarfile.open(file) as tar:
      for member in tar:
        key, _, found = member.name.rpartition(".")
        if found == ending:
          out[key] = (file, member.offset_data, member.size)
  return out


# What all sides make ------------------------------------------------------------------------------


def pillow(data: bytes) -> Image.Image:
  """The transform of all sides, as Pillow alone does it."""
  return cut(Image.open(io.BytesIO(data)).convert("RGB"))


def cut(image: Image.Image) -> Image.Image:
  """The short side to SIZE, and the centre cut out."""
  scale = SIZE / min(image.size)
  width, height = (max(SIZE, int(side * scale)) for side in image.size)
  image = image.resize((width, height), Image.Resampling.BICUBIC)
  left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
  return image.crop((left, top, left + SIZE, top + SIZE))


def by_numpy(image: Image.Image) -> Any:
  """float32[3, H, W], normalised as transformers' image processors in numpy do it."""
  import torch

  x = (np.asarray(image, np.float32) / np.float32(255) - MEAN) / STD
  return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))


def by_torch(image: Image.Image) -> Any:
  """The same as torchvision's ToTensor and Normalize do it."""
  import torch

  x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
  return x.sub_(torch.from_numpy(MEAN)[:, None, None]).div_(torch.from_numpy(STD)[:, None, None])


# The sides ----------------------------------------------------------------------------------------


def streamed(stream: Iterator[int], ahead: int) -> Rate:
  """Records a second of an iterator that gives how many came, of which `ahead` are ready."""

  def rate(seconds: float) -> float:
    for _ in range(ahead + 1):
      next(stream)
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
      done += next(stream)
    return done / spent

  return rate


def pooled(work: Callable[[int], None]) -> Rate:
  """Records a second of a function of a number, called by a thread a core."""

  def rate(seconds: float, threads: int = CORES) -> float:
    numbers, until = itertools.count(), time.perf_counter() + seconds

    def run() -> int:
      done = 0
      while time.perf_counter() < until:
        work(next(numbers))
        done += 1
      return done

    began = time.perf_counter()
    with futures.ThreadPoolExecutor(threads) as pool:
      done = sum(f.result() for f in [pool.submit(run) for _ in range(threads)])
    return done / (time.perf_counter() - began)

  return rate


def loaded(folder: Path, transform: Any, threads: int, **fields: Any) -> tuple[Any, Rate]:
  """Our pipeline and loader over a folder of tars."""
  from blip3o_jax.data.loader import Loader
  from blip3o_jax.data.pipeline import Data
  from blip3o_jax.data.pipeline import Pipeline
  from blip3o_jax.data.pipeline import open_source

  cfg = Data(path=str(folder), threads=threads, buckets=(1,), image_size=SIZE, **fields)
  made = {1: transform(cfg)}
  source = open_source(cfg)
  data = Pipeline(source, made, cfg)
  stream = iter(Loader(data, 0, 10**9))
  _, first = next(stream)
  (name,) = first
  keys = [source[i].name.rpartition(":")[2] for i in data.ids_at(0)]
  counts = (len(batch[name]) for _, batch in stream)
  return dict(zip(keys, first[name], strict=True)), streamed(counts, cfg.prefetch)


def ours(folder: Path, options: argparse.Namespace) -> tuple[Any, Rate]:
  from blip3o_jax.systems import pixels

  return loaded(folder, pixels.Picture, options.threads, task="pixels", batch=BATCH)


class Features:
  """The cached features of a record, and nothing else."""

  counts = "nothing"

  def __init__(self, cfg: Any):
    from blip3o_jax.systems.parts import targets

    del cfg
    self._cached = targets.cached

  def tokens(self, record: Any) -> int:
    del record
    return 0

  def __call__(self, record: Any, rng: np.random.Generator) -> Any:
    del rng
    return self._cached(record)


def cached(folder: Path, options: argparse.Namespace) -> tuple[Any, Rate]:
  """From the files of `pack`."""
  packed = folder.with_name(PACKED)
  return loaded(packed, Features, options.threads, features=True, batch=FEATURE_BATCH)


def cached_tars(folder: Path, options: argparse.Namespace) -> tuple[Any, Rate]:
  return loaded(folder, Features, options.threads, features=True, batch=FEATURE_BATCH)


def read(folder: Path, options: argparse.Namespace) -> tuple[Any, Rate]:
  """Plain reading, in a random order as well; each record's memory is new, a batch at a time."""
  places = members(folder, "npy")
  opened = {file: os.open(file, os.O_RDONLY) for file, _, _ in places.values()}
  spots = [(opened[file], offset, size) for file, offset, size in places.values()]
  order = np.random.default_rng(0).permutation(len(spots)).tolist()
  local = threading.local()  # what a thread holds on to

  def work(number: int) -> None:
    descriptor, offset, size = spots[order[number % len(order)]]
    kept = local.__dict__.setdefault("kept", [])
    if len(kept) == FEATURE_BATCH:
      kept.clear()
    kept.append(os.pread(descriptor, size, offset))
    assert len(kept[-1]) == size

  rate: Any = pooled(work)
  first = {}
  for key in list(places)[:FEATURE_BATCH]:
    file, offset, size = places[key]
    first[key] = np.load(io.BytesIO(os.pread(opened[file], size, offset)))
  return first, lambda seconds: rate(seconds, options.threads)


def decode_alone(folder: Path, options: argparse.Namespace) -> tuple[Any, Rate]:
  del options
  places, files = members(folder, "jpg"), []
  for file, offset, size in places.values():
    with open(file, "rb") as stream:
      stream.seek(offset)
      files.append(stream.read(size))
  first = {key: np.asarray(pillow(data)) for key, data in zip(places, files[:BATCH], strict=False)}
  return first, pooled(lambda number: pillow(files[number % len(files)]) and None)


def torch_loaded(dataset: Any, **more: Any) -> tuple[Any, Rate]:
  """A torch DataLoader over what gives {"__key__", "made"}, a worker a core."""
  from torch.utils.data import DataLoader

  stream = iter(DataLoader(dataset, batch_size=BATCH, num_workers=CORES, **more))
  first = next(stream)
  found = first["made"].numpy().transpose(0, 2, 3, 1) * STD + MEAN
  pictures = np.rint(found * 255).astype(np.uint8)
  counts = (len(batch["made"]) for batch in stream)
  # Two batches a worker are ready, by torch's default.
  return dict(zip(first["__key__"], pictures, strict=True)), streamed(counts, 2 * CORES)


def webdataset(
  folder: Path, options: argparse.Namespace, normalise: Normalise = by_numpy
) -> tuple[Any, Rate]:
  del options
  import webdataset as wds

  urls = [str(file) for file in sorted(folder.glob("*.tar"))]
  made = wds.WebDataset(urls, shardshuffle=False).repeat()
  return torch_loaded(
    made.map(lambda s: {"__key__": s["__key__"], "made": normalise(pillow(s["jpg"]))})
  )


def webdataset_torch(folder: Path, options: argparse.Namespace) -> tuple[Any, Rate]:
  return webdataset(folder, options, by_torch)


def datasets(
  folder: Path, options: argparse.Namespace, normalise: Normalise = by_numpy
) -> tuple[Any, Rate]:
  """The faster of the two ways, by two seconds of each."""
  del options
  os.environ["HF_HUB_OFFLINE"] = "1"
  import datasets as hf

  hf.disable_progress_bars()
  files = {"train": [str(file) for file in sorted(folder.glob("*.tar"))]}
  how = dict(data_files=files, split="train", cache_dir=str(folder.parent / "arrow"))

  def made(row: Any) -> Any:
    return {"__key__": row["__key__"], "made": normalise(cut(row["jpg"].convert("RGB")))}

  def rows(batch: Any) -> Any:
    found = [made(dict(zip(batch, row, strict=True))) for row in zip(*batch.values(), strict=True)]
    return {name: [row[name] for row in found] for name in found[0]}

  arrow = hf.load_dataset("webdataset", **how)
  going = hf.load_dataset("webdataset", streaming=True, **how)
  going = going.map(made, remove_columns=[n for n in arrow.column_names if n != "__key__"])
  arrow = arrow.with_transform(rows)
  sides = [
    torch_loaded(going.repeat(10**6)),
    torch_loaded(arrow, sampler=itertools.cycle(range(len(arrow)))),
  ]
  return max(sides, key=lambda side: side[1](2.0))


def datasets_torch(folder: Path, options: argparse.Namespace) -> tuple[Any, Rate]:
  return datasets(folder, options, by_torch)


PICTURES = (ours, decode_alone, webdataset, webdataset_torch, datasets, datasets_torch)
FEATURES = (cached, cached_tars, read)
SIDES = {side.__name__: side for side in (*PICTURES, *FEATURES)}
