"""The Qwen2.5-VL networks of transformers, loaded apart so that one is in memory at a time."""

import functools
from typing import Any

import torch
from torch.nn import functional as F
import transformers
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from blip3o_jax.verify.torch.checkpoint import TEXT
from blip3o_jax.verify.torch.checkpoint import TEXT_PARTS
from blip3o_jax.verify.torch.checkpoint import VISUAL
from blip3o_jax.verify.torch.checkpoint import Checkpoint


def config(checkpoint: Checkpoint) -> Any:
  """config.json as transformers reads it; the release's own model type is not known there."""
  values = {k: v for k, v in checkpoint.config.items() if k not in ("model_type", "architectures")}
  return transformers.Qwen2_5_VLConfig(**values)


def _build(make: Any, config: Any, state: dict[str, torch.Tensor]) -> Any:
  """The network with the state's own memory; strict both ways."""
  config._attn_implementation = "eager"  # padded queries of sdpa are NaN
  with torch.device("meta"):
    network = make(config)
  network.load_state_dict(state, assign=True)
  for parent in list(network.modules()):
    for name, child in list(parent.named_children()):
      if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
        # Frequencies are in no state: this module is made again, with memory.
        setattr(parent, name, type(child)(child.config))
  return network.eval().requires_grad_(False)


class Vision:
  """The vision tower: rows of patches to embeddings."""

  def __init__(self, checkpoint: Checkpoint):
    state = checkpoint.state(*VISUAL)
    make = qwen.Qwen2_5_VisionTransformerPretrainedModel
    self.tower = _build(make, config(checkpoint).vision_config, state)

  def __call__(self, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    """(n, 1176), (images, 3) -> (n / merge^2, hidden), image after image, row by row."""
    return self.tower(patches, grid_thw=grid_thw).pooler_output


class Language:
  """The text model with its head."""

  def __init__(self, checkpoint: Checkpoint):
    self.config = config(checkpoint)
    state = checkpoint.state(*TEXT, parts=TEXT_PARTS)
    tied = self.config.tie_word_embeddings
    self.head = state["embed_tokens.weight"] if tied else checkpoint.tensor("lm_head.weight")
    self.model = _build(qwen.Qwen2_5_VLTextModel, self.config.text_config, state)
    self._checkpoint = checkpoint

  @functools.cached_property
  def queries(self) -> torch.Tensor:
    """The latent queries (1, Q, hidden) of a model that has them."""
    return self._checkpoint.tensor("model.latent_queries")

  def positions(
    self, ids: torch.Tensor, mask: torch.Tensor, grid_thw: torch.Tensor | None
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (3, B, T), 1 at padding, and what a generated token's place T + s adds (B, 1)."""
    with torch.device("meta"):
      whole: Any = qwen.Qwen2_5_VLModel(self.config)
    kinds = (ids == self.config.image_token_id).int()
    places, _ = whole.get_rope_index(ids, kinds, image_grid_thw=grid_thw, attention_mask=mask)
    places = torch.where(mask.bool(), places, 1)
    # From the padded length, as the answers of the release are placed (spec 1.7 b); transformers 5
    # counts from the number of valid tokens.
    seen = torch.where(mask.bool(), places, -1).amax((0, 2))
    return places, (seen + 1 - ids.shape[1])[:, None]

  def embed(self, ids: torch.Tensor, images: torch.Tensor | None = None) -> torch.Tensor:
    """(B, T) -> (B, T, hidden), image embeddings at the places of the image token."""
    x = self.model.embed_tokens(ids)
    if images is not None:
      x[ids == self.config.image_token_id] = images
    return x

  def hidden(self, x: torch.Tensor, mask: torch.Tensor, positions: Any = None) -> torch.Tensor:
    """After the final norm, (B, T, hidden)."""
    out = self.model(inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=False)
    return out.last_hidden_state

  def logits(self, hidden: torch.Tensor) -> torch.Tensor:
    """(..., hidden) -> (..., vocabulary)."""
    return F.linear(hidden, self.head)

  def greedy(
    self, x: torch.Tensor, mask: torch.Tensor, places: Any, length: int, allowed: int
  ) -> torch.Tensor:
    """The likeliest ids below `allowed`, (B, length); without a cache: the oracle is plain."""
    positions, deltas = places
    total, found = x.shape[1], []
    for step in range(length):
      scores = self.logits(self.hidden(x, mask, positions)[:, -1])
      found.append(scores[:, :allowed].argmax(-1))
      x = torch.cat([x, self.embed(found[-1][:, None])], 1)
      mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
      place = (total + step + deltas).expand(3, -1, 1)
      positions = torch.cat([positions, place], 2)
    return torch.stack(found, 1)

  def read(
    self, ids: torch.Tensor, starts: list[int], queries: torch.Tensor | None = None
  ) -> torch.Tensor:
    """Hidden vectors of the queries (B, Q, hidden), which stand from `starts` on in each row.

    `ids` (B, T) has room for them; what stands behind them is padding, which nothing sees.
    """
    queries = self.queries if queries is None else queries
    count = queries.shape[1]
    x = self.embed(ids)
    rows = [
      torch.cat([row[:start], queries[0], row[start + count :]])
      for row, start in zip(x, starts, strict=True)
    ]
    ends = torch.tensor(starts)[:, None] + count
    mask = (torch.arange(ids.shape[1]) < ends).long()
    out = self.hidden(torch.stack(rows), mask)
    return torch.stack([row[start : start + count] for row, start in zip(out, starts, strict=True)])
