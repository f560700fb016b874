"""The recorded calls of the system: both Qwen networks, EVA tower, DiT, one at a time in memory."""

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch
from torch.nn import functional as F

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.blip3o.prompts import SPECIAL
from blip3o_jax.systems.blip3o.recordings import SAMPLES
from blip3o_jax.verify.torch import eva_vit
from blip3o_jax.verify.torch import next_dit
from blip3o_jax.verify.torch import qwen
from blip3o_jax.verify.torch.checkpoint import DIT
from blip3o_jax.verify.torch.checkpoint import EVA
from blip3o_jax.verify.torch.checkpoint import Checkpoint

Arrays = dict[str, np.ndarray]
Tensors = Mapping[str, torch.Tensor]
PROMPTS = {"gen0": 12, "gen1": 18}  # tokens, the image-start id included
ROWS = (14, 9)  # of a training batch
ANSWER = 12  # tokens
TRAIN_STEPS = 1000
# Gradients that are recorded, by the key in the checkpoint without "model.".
GRADIENTS = tuple(
  f"dit.model.{name}"
  for name in (
    "layers.0.attn2.to_k.weight",
    "layers.0.gate",
    "norm_out.linear_2.bias",
    "patch_embedder.proj.weight",
    "time_caption_embed.caption_embedder.1.weight",
  )
)


def inputs(checkpoint: Checkpoint, rng: np.random.Generator) -> Arrays:
  """Random inputs of the sizes of a checkpoint."""
  ids, config = Tokenizer.load(checkpoint.path, SPECIAL), checkpoint.config
  vision = config["vision_config"]
  merge, patch = vision.get("spatial_merge_size", 2), vision.get("patch_size", 14)
  width = 3 * vision.get("temporal_patch_size", 2) * patch**2
  tower = checkpoint.state(EVA, parts=("pos_embed", "patch_embed.proj.weight"))
  cells = round((tower["pos_embed"].shape[1] - 1) ** 0.5)
  side = cells * tower["patch_embed.proj.weight"].shape[-1]
  dit = checkpoint.state(DIT, parts=("patch_embedder.", "caption_projection.linear_1."))
  channels = dit["patch_embedder.proj.weight"].shape[1]
  hidden = dit["caption_projection.linear_1.weight"].shape[1]
  grid = cells // stride(checkpoint)
  queries = checkpoint.tensor("model.latent_queries").shape[1]

  def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)

  def words(count: int) -> list[int]:
    return rng.integers(0, ids.pad, count).tolist()

  def seen(count: int) -> list[int]:
    return [ids.vision_start, *[ids.image_pad] * count, ids.vision_end]

  grids = np.array([[1, 4 * merge, 6 * merge], [1, 3 * merge, 5 * merge]], np.int64)
  rows = [[*words(5), *seen(24), *words(8)], [*words(9), *seen(15), *words(12)]]
  tokens, mask = _pad(rows, ids.pad, left=True)
  training = [[*words(n - 1), ids.image_start, *[ids.image] * queries] for n in ROWS]
  padded, padding = _pad(training, ids.pad, left=False)
  out: Arrays = {
    "eva.pixel_values": normal(2, 3, side, side),
    "dit.x": normal(2, channels, grid, grid),
    "dit.timestep": np.array([37.0, 912.5], np.float32),
    "dit.z": normal(2, queries, hidden),
    "und.pixel_values": normal(int(grids.prod(1).sum()), width),
    "und.grid_thw": grids,
    "und.input_ids": tokens,
    "und.attention_mask": mask,
    "train.input_ids": padded,
    "train.attention_mask": padding,
    "train.query_start": np.array(ROWS, np.int64),
    "train.gen_image": normal(2, 3, side, side),
    "train.noise": normal(2, channels, grid, grid),
    "train.u": rng.uniform(size=2).astype(np.float32),
  }
  for name, count in PROMPTS.items():
    out[f"{name}.prompt_ids"] = np.array([[*words(count - 1), ids.image_start]], np.int64)
    out[f"{name}.noise"] = normal(1, channels, grid, grid)
  return out


def stride(checkpoint: Checkpoint) -> int:
  """Patches a side that the tower's features are averaged over."""
  kind = checkpoint.config.get("gen_pooling", "early_pool2d_4")
  return int(checkpoint.tiny.get("gen_pool_stride", kind.rpartition("_")[2]))


def _pad(rows: list[list[int]], pad: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
  longest = max(len(row) for row in rows)
  gaps = [[pad] * (longest - len(row)) for row in rows]
  ids = [gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)]
  array = np.array(ids, np.int64)
  return array, (array != pad).astype(np.int64)


def record(checkpoint: Checkpoint, given: Mapping[str, np.ndarray], allowed: int) -> Arrays:
  """The outputs for given inputs.

  Args:
    checkpoint: of the system. given: inputs by name. allowed: greedy answers take ids below it; 0
      takes all below the special ones.

  Returns:
    {name: array}, the outputs alone.
  """
  allowed = allowed or Tokenizer.load(checkpoint.path, SPECIAL).pad
  x: dict[str, torch.Tensor] = {n: torch.from_numpy(np.array(v)) for n, v in given.items()}
  prompts = sorted(name.partition(".")[0] for name in x if name.endswith(".prompt_ids"))
  out: dict[str, torch.Tensor] = {}
  with torch.no_grad():
    out |= _features(checkpoint, x)
    out["und.image_embeds"] = qwen.Vision(checkpoint)(x["und.pixel_values"], x["und.grid_thw"])
    out |= _language(checkpoint, x | out, prompts, allowed)
    dit = next_dit.build(checkpoint.state(DIT), checkpoint.tiny)
    out["dit.velocity"] = dit(x["dit.x"], x["dit.timestep"], x["dit.z"])
    for name in prompts:
      noise, z = x[f"{name}.noise"], out[f"{name}.query_hidden"]
      for kind, steps, scale in SAMPLES:
        out[f"{name}.{kind}"] = sample(dit, noise, z, steps, scale)
  trained, slope = _train(dit, x, out)
  del dit
  out |= trained
  out["train.grad.latent_queries"] = _query_gradient(checkpoint, x, slope)
  sigmas, timesteps = schedule(SAMPLES[0][1])
  out |= {"sampler.sigmas": sigmas, "sampler.timesteps": timesteps}
  return {name: value.detach().contiguous().numpy() for name, value in out.items()}


def _features(checkpoint: Checkpoint, x: Tensors) -> dict[str, torch.Tensor]:
  tower = eva_vit.build(checkpoint.state(EVA), checkpoint.tiny)
  patches, every = tower(x["eva.pixel_values"]), stride(checkpoint)
  return {
    "eva.patch_features": patches,
    "eva.pooled": eva_vit.pool(patches, every),
    "train.target_features": eva_vit.pool(tower(x["train.gen_image"]), every),
  }


def _language(
  checkpoint: Checkpoint, x: Tensors, prompts: list[str], allowed: int
) -> dict[str, torch.Tensor]:
  model = qwen.Language(checkpoint)
  ids, mask = x["und.input_ids"], x["und.attention_mask"]
  places = model.positions(ids, mask, x["und.grid_thw"])
  embedded = model.embed(ids, x["und.image_embeds"])
  hidden = model.hidden(embedded, mask, places[0])
  valid = mask[..., None].bool()
  out = {
    "und.position_ids": places[0],
    "und.rope_deltas": places[1],
    "und.last_hidden": torch.where(valid, hidden, 0),
    "und.logits": torch.where(valid, model.logits(hidden), 0),
    "und.greedy_tokens": model.greedy(embedded, mask, places, ANSWER, allowed),
    "train.query_hidden": model.read(x["train.input_ids"], x["train.query_start"].tolist()),
  }
  room = model.queries.shape[1]
  for name in prompts:
    row = x[f"{name}.prompt_ids"]
    out[f"{name}.query_hidden"] = model.read(F.pad(row, (0, room)), [row.shape[1]])
  return out


def schedule(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
  """Sigmas, 0 at the end, and timesteps of the feature sampler, not truncated (spec 4.4)."""
  scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(
    num_train_timesteps=TRAIN_STEPS, shift=1.0
  )
  scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
  return scheduler.sigmas, scheduler.timesteps


def sample(dit: Any, x: torch.Tensor, z: torch.Tensor, steps: int, scale: float) -> torch.Tensor:
  """Features of a prompt by Euler's rule; the timestep is cut to an integer, the sigma not."""
  sigmas, timesteps = schedule(steps)
  both = torch.cat([torch.zeros_like(z), z])
  for i, t in enumerate(timesteps):
    times = t.long().float().expand(2 * len(x))
    without, given = dit(torch.cat([x, x]), times, both).chunk(2)
    x = x + (sigmas[i + 1] - sigmas[i]) * (without + scale * (given - without))
  return x


def _train(dit: Any, x: Tensors, made: Tensors) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
  """What a training step records, and the gradient of its loss to the hidden vectors."""
  table: Any = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS, shift=1.0)
  step = (x["train.u"] * TRAIN_STEPS).long()
  sigmas, timesteps = table.sigmas[step], table.timesteps[step]
  clean, noise = made["train.target_features"], x["train.noise"]
  share = sigmas[:, None, None, None]
  z = made["train.query_hidden"].clone().requires_grad_()
  dit.requires_grad_(True)
  prediction = dit((1 - share) * clean + share * noise, timesteps, z)
  loss = F.mse_loss(prediction, noise - clean)
  parameters = dict(dit.named_parameters())
  wanted = [parameters[name.removeprefix("dit.model.")] for name in GRADIENTS]
  slope, *grads = torch.autograd.grad(loss, [z, *wanted])
  dit.requires_grad_(False)
  return {
    "train.sigmas": sigmas,
    "train.timesteps": timesteps,
    "train.prediction": prediction,
    "train.loss": loss,
    **{f"train.grad.{name}": g for name, g in zip(GRADIENTS, grads, strict=True)},
  }, slope


def _query_gradient(checkpoint: Checkpoint, x: Tensors, slope: torch.Tensor) -> torch.Tensor:
  """The same gradient carried on through the language model to the queries."""
  model = qwen.Language(checkpoint)
  queries = model.queries.clone().requires_grad_()
  hidden = model.read(x["train.input_ids"], x["train.query_start"].tolist(), queries)
  return torch.autograd.grad(hidden, queries, slope)[0]
