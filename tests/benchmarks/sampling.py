"""How long sampling and chat take, beside the same networks in PyTorch's eager mode.

    OMP_WAIT_POLICY=passive JAX_PLATFORMS=cpu python tests/benchmarks/sampling.py --json FILE

Both sides draw the shipped miniature's pictures, prompt to pixels, at batch 1 and 8, and run each
stage alone on the same inputs: what the slots read, the DiT's steps, the UNet's steps, what makes
pixels of latents. Ours is what `blip3o generate` calls, padding and all; theirs is transformers'
language model, `verify.torch`'s DiT with `scaled_dot_product_attention`, and diffusers' UNet and
autoencoder, with two threads. Then a random language model of 25 million parameters answers
greedily, beside transformers' `generate` with the quicker of its two caches. What the sides give is
asserted equal, then they run by turns in this one process.

Prints, and writes, one JSON line: the ratios ours / theirs of the least times of the wall under
`batch_1`, `batch_8`, `stages` (a pair each) and `chat`; under `all` milliseconds of the wall and of
all cores, least and median; and whether each ratio is at most what is wanted of it. On a busy
machine OMP_WAIT_POLICY=passive spares PyTorch's threads from spinning for each other.
"""

import argparse
from collections.abc import Callable
import gc
import json
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
import sampling_chat
import sampling_torch
import torch

import blip3o_jax
from blip3o_jax.diffusion import flow
from blip3o_jax.systems.blip3o import sampling
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import seeds as seed_arrays
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.verify.compare import relative_error

HOME = Path(blip3o_jax.__file__).parent / "assets" / "shapes"
BATCHES = (1, 8)
CAPTIONS = (
  "a red circle left of a blue square",
  "a green star above a yellow triangle",
  "three purple circles",
  "a large blue cross",
  "two red squares on a white background",
  "a small yellow star below a green circle",
  "a black triangle right of a red star",
  "four blue squares",
)
WANTED = {"batch_1": 0.45, "batch_8": 0.75, "chat": 0.7}
STAGE = 1.2  # of each stage
NEAR = 1e-4  # relative, of what a stage gives
THREADS = 2
Pair = dict[str, Callable[[], Any]]


@jax.jit
def _features(network: Network, z: Any, noise: Any, table: flow.Table, scale: Any) -> jax.Array:
  """The DiT's stage: a condition and noise to features."""
  module = network.module()
  given, state = module.given(z, True), flow.begin(noise)
  return module.advance(given, state, table, 0, table.steps, scale).x


def shared(fn: Callable[..., Any], network: Network, *rows: Any) -> np.ndarray:
  """A stage as `generate` computes it: on a CPU in shares of its rows."""
  number = cores.ways(network, len(jax.tree.leaves(rows)[0]))
  parts = cores.each(lambda each: fn(network, *each), cores.shares(rows, number))
  return np.asarray(cores.joined(parts))


def sides(model: Any, theirs: sampling_torch.Sampler, batch: int) -> dict[str, Pair]:
  """What is compared at a batch: each stage alone, and all of it."""
  texts, seeds = list(CAPTIONS[:batch]), list(range(batch))
  system = cores.apart(model.system)
  settings, cfg, decoder = model.settings, model.cfg, model.decoder.module().cfg
  prompt, words = model._batches.drawing(texts, []), seed_arrays.words(seeds)
  cells = (cfg.grid, cfg.grid, cfg.channels)
  keys = seed_arrays.keys(jax.numpy.asarray(words))
  noise = np.asarray(flow.noise(keys, cells))
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
  pixels = (decoder.grid, decoder.grid, decoder.autoencoder.latent_channels)
  pixel_noise = np.asarray(flow.noise(keys, pixels))
  steps, scale = flow.table(settings.steps), np.float32(settings.scale)
  how = dict(steps=settings.pixel_steps, scale=settings.pixel_scale)
  # Each stage begins from what ours gave before it.
  z = shared(sampling.condition, system, prompt)

  def draw(network: Network, z: Any, noise: Any) -> jax.Array:
    return _features(network, z, noise, steps, scale)

  features = shared(draw, system, z, noise)
  latents = painter.sample(model.decoder, features, pixel_noise, **how)
  at = sampling_torch.tensor
  z_, noise_, features_, pixel_noise_, latents_ = map(
    at, (z, noise, features, pixel_noise, latents)
  )
  rows = theirs.rows(texts)
  return {
    "language": {
      "ours": lambda: shared(sampling.condition, system, prompt),
      "theirs": lambda: theirs.read(rows),
    },
    "dit": {
      "ours": lambda: shared(draw, system, z, noise),
      "theirs": lambda: theirs.features(z_, noise_),
    },
    "unet": {
      "ours": lambda: painter.sample(model.decoder, features, pixel_noise, **how),
      "theirs": lambda: theirs.latents(features_, pixel_noise_),
    },
    "autoencoder": {
      "ours": lambda: shared(painter._pixels, cores.part(model.decoder, "autoencoder"), latents),
      "theirs": lambda: theirs.pixels(latents_),
    },
    "all": {
      "ours": lambda: model.generate(texts, seeds),
      "theirs": lambda: theirs.generate(texts, noise_, pixel_noise_),
    },
  }


def check(name: str, found: np.ndarray, wanted: np.ndarray) -> float:
  """The relative error of a stage, or the share of a picture's values that differ, by one level."""
  assert found.shape == wanted.shape, f"{name}: {found.shape} is not {wanted.shape}"
  if found.dtype == np.uint8:
    levels = np.abs(found.astype(int) - wanted)
    assert levels.max() <= 1, f"{name}: a value differs by {levels.max()} levels"
    share = float((levels > 0).mean())
    assert share < 1e-3, f"{name}: {share:.1e} of the values differ"
    return share
  error = relative_error(found, wanted)
  assert error < NEAR, f"{name}: the two sides differ by {error:.1e} of what they give"
  return error


def compare(pair: Pair, seconds: float, rest: float) -> dict[str, float]:
  """Milliseconds of both sides, by turns for so long, and their ratios."""
  times: dict[str, list[tuple[float, float]]] = {side: [] for side in pair}
  for form in pair.values():
    form()
  gc.collect()
  end = time.perf_counter() + seconds
  while time.perf_counter() < end or len(times["ours"]) < 5:
    for side, form in pair.items():
      time.sleep(rest)
      wall, core = time.perf_counter(), time.process_time()
      form()
      times[side].append((time.perf_counter() - wall, time.process_time() - core))
  out: dict[str, float] = {"repeats": len(times["ours"])}
  for i, kind in enumerate(("wall", "cores")):
    for what, reduce in (("least", min), ("median", statistics.median)):
      ours, other = (1e3 * reduce([t[i] for t in times[side]]) for side in ("ours", "theirs"))
      out |= {f"{kind}_{what}": round(ours, 3), f"{kind}_{what}_theirs": round(other, 3)}
      out[f"{kind}_{what}_ratio"] = round(ours / other, 3)
  return out


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", type=Path, help="a file to write the line to")
  parser.add_argument("--seconds", type=float, default=12.0, help="for each pair")
  parser.add_argument("--rest", type=float, default=0.0, help="seconds before each run")
  parser.add_argument("--only", nargs="*", help="language dit unet autoencoder all chat")
  options = parser.parse_args()
  torch.set_num_threads(THREADS)
  found: dict[str, dict[str, float]] = {}

  def measure(name: str, pair: Pair, check: Callable[..., float]) -> None:
    kind = name.partition(" ")[0]
    if options.only and kind not in options.only:
      return
    error = check(name, *(pair[side]() for side in ("ours", "theirs")))
    found[name] = compare(pair, options.seconds, options.rest) | {"error": float(f"{error:.1e}")}
    print(f"{name}: {found[name]}", file=sys.stderr, flush=True)

  model, theirs = verbs.load(HOME), sampling_torch.Sampler(HOME)
  for batch in BATCHES:
    for name, pair in sides(model, theirs, batch).items():
      measure(f"{name} {batch}", pair, check)
  if not options.only or "chat" in options.only:
    measure("chat", sampling_chat.pair(), sampling_chat.check)
  out: dict[str, Any] = {"threads": THREADS, "all": found}
  ratio = {name: value["wall_least_ratio"] for name, value in found.items()}
  stages = [name for name in ratio if name.partition(" ")[0] not in ("all", "chat")]
  out["stages"] = {name: ratio[name] for name in stages}
  out |= {f"batch_{b}": ratio[f"all {b}"] for b in BATCHES if f"all {b}" in ratio}
  out |= {"chat": ratio["chat"]} if "chat" in ratio else {}
  met = {name: out[name] <= most for name, most in WANTED.items() if name in out}
  out["met"] = met | {name: ratio[name] <= STAGE for name in stages}
  line = json.dumps(out)
  print(line)
  if options.json:
    options.json.write_text(line + "\n")
  return int(not all(out["met"].values()))


if __name__ == "__main__":
  sys.exit(main())
