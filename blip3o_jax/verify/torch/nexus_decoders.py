"""The recorded calls of Nexus-Gen's two decoders and of the autoencoder."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as layers

from blip3o_jax.systems.nexus_gen import recordings
from blip3o_jax.systems.parts import layout
from blip3o_jax.verify.torch import flux
from blip3o_jax.verify.torch import qwen
from blip3o_jax.verify.torch.checkpoint import Checkpoint

Arrays = dict[str, np.ndarray]
Tensors = Mapping[str, torch.Tensor]
Found = dict[str, torch.Tensor]
STEMS = {"generator": "generation_decoder", "editor": "edit_decoder"}
OWN = {"generator": "adapter.", "editor": "embedding_merger."}
DIT = "pipe.dit."
HOMES = ("", "FLUX.1-dev")
GUIDANCE, SHIFT, TRAIN_STEPS = 3.5, 3, 1000
LAST = 0.003 / 1.002
INDEX = 612  # of the table of training times
GRADIENTS = {
  "generator": (
    *("adapter.0.weight", "adapter.1.weight", "adapter.4.bias"),
    *(
      f"{DIT}{name}"
      for name in (
        *("blocks.0.attn.norm_q_b.weight", "blocks.0.norm1_b.linear.weight"),
        *("blocks.1.attn.b_to_out.weight", "context_embedder.weight"),
        *("final_norm_out.linear.bias", "final_proj_out.weight"),
        *("guidance_embedder.timestep_embedder.0.weight", "pooled_text_embedder.2.bias"),
        *("single_blocks.0.to_qkv_mlp.bias", "single_blocks.1.proj_out.weight"),
        "x_embedder.weight",
      )
    ),
  ),
  "editor": (
    *(
      f"embedding_merger.{name}"
      for name in (
        *("layers.0.input_layernorm.weight", "layers.0.mlp.gate_proj.weight"),
        *("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.v_proj.bias"),
        *("projector.0.weight", "projector.2.weight", "projector.5.weight"),
      )
    ),
    *(
      f"{DIT}{name}"
      for name in (
        *("blocks.0.attn.a_to_qkv.weight", "blocks.1.ff_b.0.weight"),
        *("final_norm_out.linear.weight", "single_blocks.0.norm_k_a.weight"),
        *("single_blocks.1.norm.linear.weight", "x_embedder.bias"),
        "time_embedder.timestep_embedder.2.weight",
      )
    ),
  ),
}


def read(checkpoint: Checkpoint, which: str) -> Found:
  """The tensors of a decoder's file, float32; of safetensors where there is such a one.

  Raises:
    FileNotFoundError, ValueError: no such file; a pickle.
  """
  tensors = layout.Files(checkpoint.path).tensors("", (STEMS[which],))
  return {n: torch.from_numpy(tensors.view(n).astype(np.float32)) for n in tensors}


def autoencoder(checkpoint: Checkpoint) -> flux.Autoencoder:
  """That of ae.safetensors, or of a folder of diffusers, here or in FLUX.1-dev.

  Raises:
    FileNotFoundError: neither is there.
  """
  tiny = checkpoint.tiny.get("vae", {})
  for home in (checkpoint.path / name for name in HOMES):
    if (home / "ae.safetensors").is_file():
      tensors = layout.Files(home).tensors("", ("ae",))
      state = {n: torch.from_numpy(tensors.view(n).astype(np.float32)) for n in tensors}
      return flux.Autoencoder(state, tiny)
    if (folder := home / "vae").is_dir():
      return flux.Autoencoder(folder, tiny)
  raise FileNotFoundError(f"{checkpoint.path}: no autoencoder, ae.safetensors of FLUX.1-dev")


def inputs(
  checkpoint: Checkpoint, rng: np.random.Generator, sizes: Sequence[tuple[int, int]]
) -> Arrays:
  """Random inputs of the sizes of the decoders; latents of `sizes`, a small and a large one."""
  state = read(checkpoint, "generator")
  context = state[f"{DIT}context_embedder.weight"].shape[1]
  pooled = state[f"{DIT}pooled_text_embedder.0.weight"].shape[1]
  hidden = state["adapter.0.weight"].shape[1]
  channels = state[f"{DIT}x_embedder.weight"].shape[1] // 4
  n, r = checkpoint.tiny.get("slots", 81), _cells(checkpoint, "reference_grid", 36) ** 2
  small, large = sizes

  def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)

  def image(rows: int, size: tuple[int, int]) -> np.ndarray:
    return rng.uniform(-1, 1, (rows, 3, *(8 * side for side in size))).astype(np.float32)

  tokens = checkpoint.tiny.get("negative_context_tokens", 512)
  out = {"cond.pooled": normal(1, pooled), "cond.negative_context": normal(1, tokens, context)}
  for name, rows, size, count in (("dit_gen", 2, small, n), ("dit_edit", 1, large, n + r)):
    ids = torch.zeros(count, 3) if name == "dit_gen" else text_ids([n, r], size)
    given = {
      "latents": normal(rows, channels, *size),
      "timestep": np.array([731.5, 37.25][:rows], np.float32),
      "guidance": np.array([GUIDANCE, 2.0][:rows], np.float32),
      "context": normal(rows, count, context),
      "pooled": normal(rows, pooled),
      "text_ids": np.repeat(ids[None].numpy(), rows, 0),
      "image_ids": np.repeat(flux.image_ids(*size)[None].numpy(), rows, 0),
    }
    out |= {f"{name}.{key}": value for key, value in given.items()}
  for name in recordings.LOOPS:
    size = small if name in ("loop_gen", "loop_edit_target_only") else large
    out[f"{name}.noise"] = normal(1, channels, *size)
  out |= {"vae.image": image(2, small), "vae.decode_latent": normal(2, channels, *small)}
  for name, size in (("fm_gen", small), ("fm_edit", large)):
    out |= {f"{name}.embed": normal(2, n, hidden), f"{name}.image": image(2, size)}
    out |= {f"{name}.noise": normal(2, channels, *size), f"{name}.timestep_id": np.array(INDEX)}
  return out | {"fm_edit.ref_embed": normal(2, r, hidden)}


def record(checkpoint: Checkpoint, x: Tensors) -> Found:
  """The outputs of all calls of the decoders, of inputs and outputs of the language model."""
  out: Found = {}
  counts = [checkpoint.tiny.get("slots", 81), _cells(checkpoint, "reference_grid", 36) ** 2]
  with torch.no_grad():
    pixels = autoencoder(checkpoint)
    out["vae.moments"] = pixels.moments(x["vae.image"])
    out["vae.latent"] = pixels.latents(x["vae.image"])
    out["vae.decoded"] = pixels.decode(x["vae.decode_latent"])
    out |= _tables() | _ids(counts)
    out["merger.position_ids"] = merger_ids(counts, _base(checkpoint))[:, None]
  for which in STEMS:
    decoder = Decoder(checkpoint, which)
    with torch.no_grad():
      out |= _networks(decoder, which, x, pixels)
    name = next(n for n, w in recordings.LOSSES.items() if w == which)
    out |= _loss(decoder, which, name, x, pixels)
  return out


class Decoder:
  """One of the two: what makes a context of vectors, and the transformer."""

  def __init__(self, checkpoint: Checkpoint, which: str):
    self.which, self.state = which, read(checkpoint, which)
    dit = {n.removeprefix(DIT): v for n, v in self.state.items() if n.startswith(DIT)}
    self.dit = flux.Transformer(dit, checkpoint.tiny.get("dit", {}))
    self.config = qwen.config(checkpoint).text_config
    self.config._attn_implementation = "eager"
    self.base = _base(checkpoint)

  def context(self, target: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    """(B, n, hidden), and (B, r, hidden) of the editing decoder, -> (B, n + r, context)."""
    prefix = OWN[self.which]
    own = {n.removeprefix(prefix): v for n, v in self.state.items() if n.startswith(prefix)}
    if self.which == "generator":
      return _adapter(own, target)
    both = target if reference is None else torch.cat([target, reference], 1)
    counts = [v.shape[1] for v in (target, reference) if v is not None]
    return self._merge(own, both, merger_ids(counts, self.base)[:, None])

  def _merge(self, own: Tensors, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Layers of the language model that all tokens see, then two linear layers with norms."""
    places = layers.Qwen2_5_VLRotaryEmbedding(self.config)(x, ids.expand(-1, len(x), -1))
    depth = len({n.split(".")[1] for n in own if n.startswith("layers.")})
    for i in range(depth):
      with torch.device("meta"):
        layer = layers.Qwen2_5_VLDecoderLayer(self.config, i)
      prefix = f"layers.{i}."
      state = {n.removeprefix(prefix): v for n, v in own.items() if n.startswith(prefix)}
      kw: dict[str, Any] = dict(attention_mask=None, position_embeddings=places)
      found = torch.func.functional_call(layer, state, (x,), kw)
      x = found[0] if isinstance(found, tuple) else found
    norm = functools.partial(_rms, eps=self.config.rms_norm_eps)
    x = F.linear(
      norm(x, own["projector.0.weight"]), own["projector.1.weight"], own["projector.1.bias"]
    )
    x = F.silu(norm(x, own["projector.2.weight"]))
    x = F.linear(x, own["projector.4.weight"], own["projector.4.bias"])
    return norm(x, own["projector.5.weight"])

  def ids(self, count: Sequence[int], size: tuple[int, int]) -> torch.Tensor:
    """Where the context's tokens stand among latents of `size`, (S, 3)."""
    return text_ids(count, size) if self.which == "editor" else torch.zeros(sum(count), 3)


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
  return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def _adapter(own: Tensors, x: torch.Tensor) -> torch.Tensor:
  width = own["0.bias"].shape
  x = F.linear(x, own["0.weight"], own["0.bias"])
  x = F.relu(F.layer_norm(x, width, own["1.weight"], own["1.bias"]))
  x = F.linear(x, own["3.weight"], own["3.bias"])
  return F.layer_norm(x, width, own["4.weight"], own["4.bias"])


# Places and times --------------------------------------------------------------------------------


def _cells(checkpoint: Checkpoint, name: str, default: int) -> int:
  """Merged cells a side of a grid of tiny.json, or of the release's `default` patches."""
  merge = checkpoint.config["vision_config"].get("spatial_merge_size", 2)
  return int(checkpoint.tiny.get(name, [1, default, default])[1]) // int(merge)


def _base(checkpoint: Checkpoint) -> int:
  return int(checkpoint.tiny.get("merger_base_grid", [1, 72, 72])[1])


def _square(count: int) -> tuple[torch.Tensor, torch.Tensor, int]:
  side = math.isqrt(count)
  row, column = torch.meshgrid(*[torch.arange(side).float()] * 2, indexing="ij")
  return row.flatten(), column.flatten(), 2 * side


def merger_ids(counts: Sequence[int], base: int) -> torch.Tensor:
  """(3, n + r): 0, row and column in one frame of `base` patches a side."""
  found = []
  for count in counts:
    row, column, grid = _square(count)
    found.append(torch.stack([torch.zeros_like(row), row * (base / grid), column * (base / grid)]))
  return torch.cat(found, 1)


def text_ids(counts: Sequence[int], size: tuple[int, int]) -> torch.Tensor:
  """(n + r, 3): which picture, row and column among latents of `size`."""
  found = []
  for which, count in enumerate(counts):
    row, column, grid = _square(count)
    places = (row * (size[0] / grid), column * (size[1] / grid))
    found.append(torch.stack([torch.full_like(row, which), *places], -1))
  return torch.cat(found)


def _ids(counts: Sequence[int]) -> Found:
  ids = text_ids(counts, (64, 64))[None]
  return {"ids_512.text_ids": ids, "ids_512.text_ids_bfloat16": ids.bfloat16().float()}


def sigmas(steps: int) -> torch.Tensor:
  """The falling times of a sampler, or of the training table, shifted."""
  base = torch.linspace(1, LAST, steps)
  return SHIFT * base / (1 + (SHIFT - 1) * base)


def weights(timesteps: torch.Tensor) -> torch.Tensor:
  """A bell around 500, less its lowest value, of mean 1."""
  bell = torch.exp(-2 * ((timesteps - TRAIN_STEPS / 2) / TRAIN_STEPS) ** 2)
  bell = bell - bell.min()
  return bell * (TRAIN_STEPS / bell.sum())


def frequencies(half: int = 128) -> torch.Tensor:
  """float32[half], of the sinusoids; the last bit of `torch.exp` is of the processor it runs on."""
  return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)


def _tables() -> Found:
  table = sigmas(TRAIN_STEPS)
  out = {
    "sampler.train.sigmas": table,
    "sampler.train.timesteps": table * TRAIN_STEPS,
    "sampler.train.weights": weights(table * TRAIN_STEPS),
    "sampler.sinusoid_frequencies": frequencies(),
  }
  for steps in recordings.STEPS:
    found = sigmas(steps)
    out[f"sampler.{steps}.sigmas"] = torch.cat([found, torch.zeros(1)])
    out[f"sampler.{steps}.timesteps"] = found * TRAIN_STEPS
  return out


# Calls -------------------------------------------------------------------------------------------


def _networks(decoder: Decoder, which: str, x: Tensors, pixels: flux.Autoencoder) -> Found:
  """Context, transformer and loops of one decoder."""
  out: Found = {}
  if which == "generator":
    out["adapter.output"] = decoder.context(x["gen.image_vectors"], None)
  else:
    target, reference = x["edit.image_vectors"], x["merger.reference_embeds"]
    out["merger.output"] = decoder.context(target, reference)
    out["merger.output_target_only"] = decoder.context(target, None)
  (name,) = (n for n, w in recordings.DITS.items() if w == which)
  given = {key: x[f"{name}.{key}"] for key in ("context", "pooled", "guidance")}
  given["text_ids"] = x[f"{name}.text_ids"][0]
  t, guidance = x[f"{name}.timestep"], given["guidance"]
  out |= {
    f"{name}.time_sinusoid": decoder.dit.waves(t),
    f"{name}.guidance_sinusoid": decoder.dit.waves(guidance * 1000),
    f"{name}.conditioning": decoder.dit.conditioning(t, guidance, given["pooled"]),
    f"{name}.velocity": decoder.dit(x[f"{name}.latents"], t, given),
  }
  for name, loop in recordings.LOOPS.items():
    if loop.decoder == which:
      out |= _loop(decoder, name, x, pixels)
  return out


def _loop(decoder: Decoder, name: str, x: Tensors, pixels: flux.Autoencoder) -> Found:
  loop = recordings.LOOPS[name]
  vectors, *reference = (x[n] for n in loop.given)
  latents = [x[f"{name}.noise"]]
  size = (latents[0].shape[2], latents[0].shape[3])
  counts = [vectors.shape[1], *(v.shape[1] for v in reference)]
  common = {"pooled": x["cond.pooled"], "guidance": torch.full((1,), GUIDANCE)}
  context = decoder.context(vectors, reference[0] if reference else None)
  given = {**common, "context": context, "text_ids": decoder.ids(counts, size)}
  null_context = x["cond.negative_context"]
  null = {**common, "context": null_context, "text_ids": torch.zeros(null_context.shape[1], 3)}
  visited = torch.cat([sigmas(loop.steps), torch.zeros(1)])
  for i in range(loop.steps):
    t = visited[i][None] * TRAIN_STEPS
    velocity = decoder.dit(latents[-1], t, given)
    if loop.scale != 1:
      without = decoder.dit(latents[-1], t, null)
      velocity = without + loop.scale * (velocity - without)
    latents.append(latents[-1] + velocity * (visited[i + 1] - visited[i]))
  decoded = pixels.decode(latents[-1])
  image = (decoded[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255
  out = {
    "text_ids": given["text_ids"][None],
    "image_ids": flux.image_ids(*size)[None],
    "sigmas": visited,
    "timesteps": visited[:-1] * TRAIN_STEPS,
    "latents": torch.cat(latents),
    "decoded": decoded,
    "image_u8": image.to(torch.uint8),
  }
  return {f"{name}.{key}": value for key, value in out.items()}


def _loss(decoder: Decoder, which: str, name: str, x: Tensors, pixels: flux.Autoencoder) -> Found:
  embed, reference = x[f"{name}.embed"], x.get(f"{name}.ref_embed")
  noise, index = x[f"{name}.noise"], int(x[f"{name}.timestep_id"])
  rows, size = len(embed), (noise.shape[2], noise.shape[3])
  with torch.no_grad():
    latents = pixels.latents(x[f"{name}.image"])
  sigma = sigmas(TRAIN_STEPS)[index]
  t = sigma[None] * TRAIN_STEPS
  mixed, wanted = (1 - sigma) * latents + sigma * noise, noise - latents
  weight = weights(sigmas(TRAIN_STEPS) * TRAIN_STEPS)[index]
  leaves = {n: v.requires_grad_(True) for n, v in decoder.state.items()}
  counts = [v.shape[1] for v in (embed, reference) if v is not None]
  context, ids = decoder.context(embed, reference), decoder.ids(counts, size)
  guidance = torch.full((rows,), GUIDANCE)
  pooled = x["cond.pooled"].expand(rows, -1)
  given = {"context": context, "pooled": pooled, "guidance": guidance, "text_ids": ids}
  prediction = decoder.dit(mixed, t.expand(rows), given)
  loss = weight * F.mse_loss(prediction, wanted)
  names = sorted(leaves)
  found = torch.autograd.grad(loss, [leaves[n] for n in names])
  grads = dict(zip(names, found, strict=True))
  for value in leaves.values():
    value.requires_grad_(False)
  out = {
    "latents": latents,
    "sigma": sigma,
    "timestep": t,
    "noisy_latents": mixed,
    "context": context,
    "text_ids": ids[None].repeat(rows, 1, 1),
    "guidance": guidance,
    "target": wanted,
    "prediction": prediction,
    "weight": weight,
    "loss": loss,
    "grad_norms": torch.stack([grads[n].norm() for n in names]),
    **{f"grad.{n}": grads[n] for n in GRADIENTS[which]},
  }
  return {f"{name}.{key}": value for key, value in out.items()}
