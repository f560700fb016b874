"""The recorded calls of Nexus-Gen's language model, and of the whole: one network after another.

The networks are those of transformers and diffusers (`flux`); what neither has, slots, adapter,
merger, sampler and losses, is written here and in `nexus_decoders` from its description. Gradients
take as much memory again as the network that they are of.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.nexus_gen import recordings
from blip3o_jax.systems.nexus_gen.prompts import SPECIAL
from blip3o_jax.verify.torch import nexus_decoders as decoders
from blip3o_jax.verify.torch import nexus_inputs
from blip3o_jax.verify.torch import qwen
from blip3o_jax.verify.torch.checkpoint import Checkpoint

Arrays = dict[str, np.ndarray]
Tensors = Mapping[str, torch.Tensor]
TEXT = 24  # most ids before a picture
TAILS = {"training": 5, "reference": 12}  # and after it; of the first no id ends them
WORDS = 12  # of an answer
PENALISED = 22
PREFILL = "image_prefill_embeds.weight"
# Gradients that are recorded, by the key in the checkpoint.
GRADIENTS = (
  *("image_prefill_embeds.weight", "lm_head.weight", "model.embed_tokens.weight"),
  *("model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.k_proj.bias"),
  *("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"),
  *("model.norm.weight", "vision_head.weight"),
)

inputs = nexus_inputs.inputs


def record(checkpoint: Checkpoint, given: Mapping[str, np.ndarray], allowed: int) -> Arrays:
  """The outputs for given inputs.

  Args:
    checkpoint: of the model. given: inputs by name. allowed: 0, since answers take any id.

  Returns:
    {name: array}, the outputs alone.

  Raises:
    ValueError: an `allowed`; tensors or files that are absent.
  """
  if allowed:
    raise ValueError("--allowed: the answers of this system take all ids; leave it out")
  x = {name: torch.from_numpy(np.array(value)) for name, value in given.items()}
  out = dict[str, torch.Tensor]()
  with torch.no_grad():
    out |= nexus_inputs.pictures(checkpoint, x)
    seen = _seen(checkpoint, x)
    out |= {"merger.reference_embeds": seen["reference"][None]}
    out |= {"und.image_embeds": seen["und"], "single.source_embeds": seen["single"]}
    out["train.image_embeds"] = seen["train"]
  speaker = Speaker(checkpoint)
  with torch.no_grad():
    for name in ("gen", "edit"):
      out |= _answer(speaker, name, x, seen)
    out |= _understand(speaker, x, seen)
    out |= _others(speaker, x, seen)
  out |= _train(speaker, x, seen["train"])
  with torch.no_grad():
    out |= _first_version(speaker.first_version(), x, seen)
  del speaker
  out |= decoders.record(checkpoint, x | out)
  return {name: value.detach().contiguous().numpy() for name, value in out.items()}


def _seen(checkpoint: Checkpoint, x: Tensors) -> dict[str, torch.Tensor]:
  """What the tower sees of every recorded picture."""
  tower = qwen.Vision(checkpoint)
  out = {
    n: tower(x[f"{n}.pixel_values"], x[f"{n}.image_grid_thw"]) for n in ("edit", "und", "train")
  }
  source = x["single.image_grid_thw"][:-1]
  out["single"] = tower(x["single.source_pixel_values"], source)
  reference = nexus_inputs.patches(checkpoint, x["pre.reference_bilinear_u8"].numpy())
  out["reference"] = tower(*(torch.from_numpy(v) for v in reference))
  return out


class Speaker:
  """The language model with its head of vectors and its slots, which says answers step by step.

  Attributes:
    slots: (n, hidden), what stands at them. boi, eoi, image: ids of marks and slots.
  """

  def __init__(self, checkpoint: Checkpoint):
    ids, self.lm = Tokenizer.load(checkpoint.path, SPECIAL), qwen.Language(checkpoint)
    self.head = checkpoint.tensor("vision_head.weight")
    self.boi, self.eoi, self.image = ids.vision_start, ids.vision_end, ids.image_pad
    self.ends = (ids.im_end, ids.pad)
    sizes = nexus_inputs.Sizes.of(checkpoint)
    self.count, self.side = sizes.slots, sizes.side
    self.target = torch.tensor([[1, *sizes.target]])
    repeated = self.lm.model.embed_tokens.weight[self.image].expand(self.count, -1)
    self.repeated = repeated.detach().clone()
    self.slots = checkpoint.tensor(PREFILL) if checkpoint.has(PREFILL) else self.repeated

  def first_version(self) -> "Speaker":
    """The same with the row of the slots' id at every slot."""
    self.slots = self.repeated
    return self

  def positions(self, ids: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
    """(3, 1, T) of a row (1, T)."""
    return self.lm.positions(ids, torch.ones_like(ids), grids)[0]

  def say(
    self,
    ids: torch.Tensor,
    x: torch.Tensor,
    positions: torch.Tensor,
    length: int,
    *,
    stops: Sequence[int],
    penalty: float = 1.0,
  ) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """The likeliest ids after a row, one at a time and without a cache: the oracle is plain.

    Args:
      ids: (1, T). x: (1, T, hidden), what stands there. positions: (3, 1, T).

    Returns:
      The ids, the last one perhaps a stop, and `x` and `positions` with all of them read.
    """
    said: list[int] = []
    seen = set(ids[0].tolist())
    while len(said) < length and not (said and said[-1] in stops):
      scores = self.lm.logits(self._hidden(x, positions)[0, -1])
      scores[self.eoi] = -torch.inf
      for token in seen:
        scores[token] *= penalty if scores[token] < 0 else 1 / penalty
      said.append(int(scores.argmax()))
      seen.add(said[-1])
      x = torch.cat([x, self.lm.embed(torch.tensor([[said[-1]]]))], 1)
      at = positions[..., -1:].amax(0, keepdim=True).expand(3, 1, 1) + 1
      positions = torch.cat([positions, at], -1)
    return said, x, positions

  def draw(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """After a row that ends in the mark before a picture: (1, n, hidden) as read and as vectors.

    Returns:
      The two, and `x` and `positions` with the slots behind.
    """
    start = positions.max() + 1
    cells = torch.stack(torch.meshgrid(*[torch.arange(self.side)] * 2, indexing="ij")).flatten(1)
    places = start + torch.cat([torch.zeros_like(cells[:1]), cells])
    x = torch.cat([x, self.slots[None]], 1)
    positions = torch.cat([positions, places[:, None]], -1)
    read = self._hidden(x, positions)[:, -self.count - 1 : -1]
    return read, F.linear(read, self.head), x, positions

  def _hidden(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return self.lm.hidden(x, torch.ones(x.shape[:2], dtype=torch.long), positions)


def _answer(speaker: Speaker, name: str, x: Tensors, seen: Tensors) -> dict[str, torch.Tensor]:
  """A prompt that is answered with a picture; nothing where the model does not draw one."""
  ids, grids = x[f"{name}.input_ids"], x.get(f"{name}.image_grid_thw")
  embedded = speaker.lm.embed(ids, seen.get(name))
  places = speaker.positions(ids, grids)
  text, embedded, places = speaker.say(
    ids, embedded, places, TEXT, stops=(speaker.boi, *speaker.ends)
  )
  if text[-1] != speaker.boi:
    return {}
  read, vectors, embedded, places = speaker.draw(embedded, places)
  start = places[0, 0, -1]
  tails = {}
  for tail, after in (("training", start + speaker.side), ("reference", start + speaker.count)):
    eoi = speaker.lm.embed(torch.tensor([[speaker.eoi]]))
    row = torch.cat([ids, torch.tensor([[*text, speaker.image, speaker.eoi]])], 1)
    longer = torch.cat([places, after.expand(3, 1, 1)], -1)
    stops = speaker.ends if tail == "reference" else ()
    found = torch.cat([embedded, eoi], 1)
    tails[tail] = speaker.say(row, found, longer, TAILS[tail], stops=stops)[0]
  drawn = [speaker.image] * speaker.count + [speaker.eoi]
  out = {
    "text_tokens": torch.tensor(text),
    "sequence": torch.cat([ids, torch.tensor([[*text, *drawn, *tails["reference"]]])], 1),
    "image_vectors": vectors,
    "read_hidden": read,
    "position_ids": places,
    "tail_tokens_reference": torch.tensor(tails["reference"]),
    "tail_tokens_training_positions": torch.tensor(tails["training"]),
  }
  return {f"{name}.{key}": value for key, value in out.items()}


def _understand(speaker: Speaker, x: Tensors, seen: Tensors) -> dict[str, torch.Tensor]:
  lm, ids = speaker.lm, x["und.input_ids"]
  mask, embedded = torch.ones_like(ids), speaker.lm.embed(ids, seen["und"])
  places, deltas = lm.positions(ids, mask, x["und.image_grid_thw"])
  hidden = lm.hidden(embedded, mask, places)
  tokens, _, _ = speaker.say(ids, embedded, places, WORDS, stops=speaker.ends)
  return {
    "und.position_ids": places,
    "und.rope_deltas": deltas,
    "und.last_hidden": hidden,
    "und.logits": lm.logits(hidden),
    "und.tokens": torch.tensor(tokens),
  }


def _others(speaker: Speaker, x: Tensors, seen: Tensors) -> dict[str, torch.Tensor]:
  """The penalty of repetition, a picture that is forced, and the deterministic pass."""
  lm, out = speaker.lm, dict[str, torch.Tensor]()
  ids = x["gen.input_ids"]
  for name, penalty in recordings.PENALTIES.items():
    start = lm.embed(ids), speaker.positions(ids, None)
    stops = (speaker.boi, *speaker.ends)
    said, _, _ = speaker.say(ids, *start, PENALISED, stops=stops, penalty=penalty)
    out[f"gen_penalty.{name}"] = torch.tensor(said)
  ids = x["forced.input_ids"]
  out["forced.image_vectors"] = speaker.draw(lm.embed(ids), speaker.positions(ids, None))[1]
  ids, grids = x["single.input_ids"], x["single.image_grid_thw"]
  embedded, (at,) = lm.embed(ids), torch.nonzero(ids[0] == speaker.image, as_tuple=True)
  shown, drawn = at[: -speaker.count], at[-speaker.count :]
  embedded[0, shown], embedded[0, drawn] = seen["single"], speaker.slots
  hidden = lm.hidden(embedded, torch.ones_like(ids), speaker.positions(ids, grids))
  out["single.predicted_vectors"] = F.linear(hidden[:, drawn - 1], speaker.head)
  return out


def _batch(
  speaker: Speaker, x: Tensors, seen: torch.Tensor, slots: torch.Tensor
) -> tuple[torch.Tensor, ...]:
  """Embeddings (B, T, hidden), hidden vectors, vectors at the slots' reads, positions, the mask."""
  lm = speaker.lm
  ids, labels, mask = (x[f"train.{n}"] for n in ("input_ids", "labels", "attention_mask"))
  at, drawn = ids == speaker.image, labels == speaker.image
  embedded = lm.embed(ids).clone()
  embedded[at & ~drawn] = seen[~drawn[at]]
  embedded[drawn] = slots.repeat(int(drawn.sum()) // len(slots), 1)
  places = lm.positions(ids, mask, x["train.image_grid_thw"])[0]
  hidden = lm.hidden(embedded, mask, places)
  read = torch.zeros_like(drawn)
  read[:, :-1] = drawn[:, 1:]
  return embedded, hidden, hidden[read], places, mask


def _losses(
  speaker: Speaker, x: Tensors, hidden: torch.Tensor, found: torch.Tensor, wanted: torch.Tensor
) -> dict[str, torch.Tensor]:
  labels = x["train.labels"]
  words = torch.where(labels == speaker.image, -100, labels)[:, 1:]
  scores = speaker.lm.logits(hidden)[:, :-1]
  ce = F.cross_entropy(scores.flatten(0, 1), words.flatten(), ignore_index=-100)
  mse, cosine = F.mse_loss(found, wanted), (1 - F.cosine_similarity(found, wanted, -1)).mean()
  image = 0.5 * mse + 0.5 * cosine
  return {
    "mse": mse,
    "cosine": cosine,
    "image_loss": image,
    "ce": ce,
    "loss": 3 * ce + 3 * image,
    "loss_code_default_weights": 0.1 * ce + image,
  }


def _train(speaker: Speaker, x: Tensors, seen: torch.Tensor) -> dict[str, torch.Tensor]:
  """A training step of the language model: all but the tower has gradients."""
  lm, drawn = speaker.lm, x["train.labels"] == speaker.image
  parameters = {f"model.{n}": p for n, p in lm.model.named_parameters()}
  parameters |= {"lm_head.weight": lm.head, "vision_head.weight": speaker.head}
  parameters[PREFILL] = speaker.slots
  for value in parameters.values():
    value.requires_grad_(True)
  embedded, hidden, read, places, mask = _batch(speaker, x, seen, speaker.slots)
  vectors = F.linear(read, speaker.head)
  wanted = seen[drawn[x["train.input_ids"] == speaker.image]]
  found = _losses(speaker, x, hidden, vectors, wanted)
  names = sorted(parameters)
  grads = dict(
    zip(names, torch.autograd.grad(found["loss"], [parameters[n] for n in names]), strict=True)
  )
  for value in parameters.values():
    value.requires_grad_(False)
  out: dict[str, torch.Tensor] = {
    **found,
    "position_ids": torch.where(mask.bool(), places, 1),
    "inputs_embeds": embedded,
    "last_hidden": torch.where(mask[..., None].bool(), hidden, 0),
    "read_hidden": read,
    "predicted_vectors": vectors,
    "target_vectors": wanted,
    "grad_norms": torch.stack([grads[n].norm() for n in names]),
    **{f"grad.{n}": grads[n] for n in GRADIENTS},
  }
  return {f"train.{name}": value for name, value in out.items()}


def _first_version(speaker: Speaker, x: Tensors, seen: Tensors) -> dict[str, torch.Tensor]:
  out = dict[str, torch.Tensor]()
  for name in ("gen", "edit"):
    found = _answer(speaker, name, x, seen)
    out |= {
      f"v1.{name}_{key}": found[f"{name}.{key}"]
      for key in ("text_tokens", "image_vectors")
      if found
    }
  _, hidden, read, _, _ = _batch(speaker, x, seen["train"], speaker.slots)
  vectors = F.linear(read, speaker.head)
  drawn = x["train.labels"] == speaker.image
  wanted = seen["train"][drawn[x["train.input_ids"] == speaker.image]]
  losses: dict[str, Any] = _losses(speaker, x, hidden, vectors, wanted)
  return out | {
    "v1.train_predicted_vectors": vectors,
    "v1.train_loss": losses["loss_code_default_weights"],
  }
