"""How long a step of FLUX's sampler takes, beside diffusers' network in PyTorch's eager mode.

    JAX_PLATFORMS=cpu python tests/benchmarks/flux.py --json FILE

Two cases: tiny-nexus-gen's generation decoder, batch 1, and a random network of ten times as many
parameters, batch 4. Both samplers take the same steps from the same noise; what they give is
asserted equal, then they run by turns in this one process: ours as one program (the loop and what
stands before it), theirs with two threads. Prints, and writes, one JSON line: for each case
milliseconds a step, of the wall and of all cores, the least and the median, their ratio to theirs,
and what is wanted of the least. On a busy machine OMP_WAIT_POLICY=passive spares PyTorch's threads
from spinning for each other.
"""

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import diffusers
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import torch

from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.diffusion import flow
from blip3o_jax.models import flux
from blip3o_jax.verify.compare import relative_error
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import flux as rows
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[1] / "data" / "tiny-nexus-gen"
PREFIX = "pipe.dit."
LIMITS = {"tiny": 0.5, "large": 0.9}  # of the ratio to theirs
CONTEXT = 81  # tokens
SHIFT, GUIDANCE, THREADS = 3.0, 3.5, 2
Arrays = dict[str, np.ndarray]
Inputs = dict[str, Any]


def tiny() -> tuple[flux.Config, Arrays, int, tuple[int, int]]:
  """The recorded miniature: sizes, {path: parameter}, batch and the sides of its latents."""
  d = json.loads((TINY / "tiny.json").read_text())["dit"]
  cfg = flux.Config(
    dim=d["dim"],
    heads=d["num_heads"],
    axes=tuple(d["axes_dims_rope"]),
    double_depth=d["num_double_blocks"],
    single_depth=d["num_single_blocks"],
    context_dim=d["context_dim"],
    pooled_dim=d["pooled_dim"],
  )
  file = Tensors(TINY / "generation_decoder.safetensors")
  held = {n.removeprefix(PREFIX): file.read(n) for n in file if n.startswith(PREFIX)}
  wanted = shapes(cfg)
  plan = table.plan(rows.rows("diffsynth"), {n: v.shape for n, v in held.items()}, wanted)
  params = {
    path: table.read_shard(
      plan[path], lambda name, index: held[name][index], (slice(None),) * len(shape), shape
    )
    for path, shape in wanted.items()
  }
  return cfg, params, 1, (8, 12)


def large() -> tuple[flux.Config, Arrays, int, tuple[int, int]]:
  """Ten times the parameters of `tiny`, random."""
  cfg = flux.Config(
    dim=160,
    heads=10,
    axes=(4, 6, 6),
    double_depth=2,
    single_depth=3,
    context_dim=96,
    pooled_dim=24,
  )
  rng = np.random.default_rng(0)
  params = {}
  for path, shape in shapes(cfg).items():
    value = rng.normal(size=shape).astype(np.float32)
    if path.endswith("kernel"):
      value *= shape[-2] ** -0.5
    params[path] = 1 + 0.2 * value if path.endswith("scale") else value
  return cfg, params, 4, (8, 12)


def shapes(cfg: flux.Config) -> dict[str, tuple[int, ...]]:
  """{path: shape} of a network."""
  model = layers.abstract(lambda rngs: flux.Flux(cfg, rngs=rngs))
  return {p: v.shape for p, v in trees.flatten(nnx.to_pure_dict(nnx.state(model))).items()}


def drawn(cfg: flux.Config, batch: int, size: tuple[int, int]) -> Inputs:
  """Noise and a condition."""
  rng = np.random.default_rng(1)

  def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=(batch, *shape)).astype(np.float32)

  return {
    "noise": normal(size[0] * size[1] // flux.PATCH**2, cfg.in_channels),
    "context": normal(CONTEXT, cfg.context_dim),
    "pooled": normal(cfg.pooled_dim),
    "guidance": np.full((batch,), GUIDANCE, np.float32),
    "text_ids": np.zeros((CONTEXT, 3), np.float32),
    "image_ids": flux.image_ids(*size),
  }


def ours(cfg: flux.Config, params: Arrays, given: Inputs, steps: int) -> Callable[[], np.ndarray]:
  """The sampler as one compiled program."""
  graphdef = nnx.graphdef(layers.abstract(lambda rngs: flux.Flux(cfg, rngs=rngs)))
  leaves = {path: jnp.asarray(value) for path, value in params.items()}
  model: flux.Flux = nnx.merge(graphdef, trees.unflatten(leaves))
  ids = (given["text_ids"][None], given["image_ids"][None])

  @jax.jit
  def sample(model: flux.Flux, noise: Any, table: flow.Table, *condition: Any) -> jax.Array:
    prepared = model.prepare(*condition, *ids)
    return flow.euler(lambda x, t: model(x, t, prepared), noise, table)

  arrays = [jnp.asarray(given[n]) for n in ("context", "pooled", "guidance")]
  visits, noise = flow.table(steps, False, SHIFT), jnp.asarray(given["noise"])
  return lambda: np.asarray(sample(model, noise, visits, *arrays))


def theirs(cfg: flux.Config, params: Arrays, given: Inputs, steps: int) -> Callable[[], np.ndarray]:
  """The same of diffusers."""
  model = diffusers.FluxTransformer2DModel(
    in_channels=cfg.in_channels,
    num_layers=cfg.double_depth,
    num_single_layers=cfg.single_depth,
    attention_head_dim=cfg.head_dim,
    num_attention_heads=cfg.heads,
    joint_attention_dim=cfg.context_dim,
    pooled_projection_dim=cfg.pooled_dim,
    guidance_embeds=True,
    axes_dims_rope=cfg.axes,
  ).eval()
  named = table.export(rows.rows("diffusers"), params)
  model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in named})
  tensors = {name: torch.from_numpy(value) for name, value in given.items()}
  sigmas, timesteps = flow.schedule(steps, False, SHIFT)
  batch = len(given["noise"])

  @torch.inference_mode()
  def sample() -> np.ndarray:
    x = tensors["noise"]
    for i, t in enumerate(timesteps):
      velocity = model(
        hidden_states=x,
        encoder_hidden_states=tensors["context"],
        pooled_projections=tensors["pooled"],
        timestep=torch.full((batch,), float(t) / flow.TRAIN_STEPS),
        guidance=tensors["guidance"],
        txt_ids=tensors["text_ids"],
        img_ids=tensors["image_ids"],
        return_dict=False,
      )[0]
      x = x + velocity * float(sigmas[i + 1] - sigmas[i])
    return x.numpy()

  return sample


def compare(name: str, steps: int, repeats: int) -> dict[str, Any]:
  """One case: both samplers by turns."""
  cfg, params, batch, size = {"tiny": tiny, "large": large}[name]()
  given = drawn(cfg, batch, size)
  sides = {"ours": ours(cfg, params, given, steps), "theirs": theirs(cfg, params, given, steps)}
  found = {side: sample() for side, sample in sides.items()}
  error = relative_error(found["ours"], found["theirs"])
  assert error < 1e-5, f"{name}: the two samplers differ by {error:.1e} of what they give"
  walls: dict[str, list[float]] = {side: [] for side in sides}
  cores: dict[str, list[float]] = {side: [] for side in sides}
  for _ in range(repeats):
    for side, sample in sides.items():
      wall, core = time.perf_counter(), time.process_time()
      sample()
      walls[side].append(1e3 * (time.perf_counter() - wall) / steps)
      cores[side].append(1e3 * (time.process_time() - core) / steps)
  out: dict[str, Any] = {
    "parameters": sum(value.size for value in params.values()),
    "batch": batch,
    "tokens": CONTEXT + given["noise"].shape[1],
    "relative_error": float(f"{error:.1e}"),
  }
  for kind, times in (("wall", walls), ("cores", cores)):
    for what, reduce in (("least", min), ("median", statistics.median)):
      mine, other = (reduce(times[side]) for side in ("ours", "theirs"))
      out |= {f"{kind}_{what}": round(mine, 3), f"{kind}_{what}_theirs": round(other, 3)}
      out[f"{kind}_{what}_ratio"] = round(mine / other, 3)
  return out | {"wanted": LIMITS[name], "met": out["wall_least_ratio"] <= LIMITS[name]}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", type=Path, help="a file to write the line to")
  parser.add_argument("--steps", type=int, default=4, help="of one run of a sampler")
  parser.add_argument("--repeats", type=int, default=30)
  options = parser.parse_args()
  torch.set_num_threads(THREADS)
  out = {name: compare(name, options.steps, options.repeats) for name in LIMITS}
  line = json.dumps({"threads": THREADS, "steps": options.steps, **out})
  print(line)
  if options.json:
    options.json.write_text(line + "\n")
  return 0 if all(out[name]["met"] for name in LIMITS) else 1


if __name__ == "__main__":
  sys.exit(main())
