"""The recorded calls of the language model and its tower: answers, and single passes.

In float32 answers are said and compared. In bfloat16, where another id may win by a hair, the
recorded ids are read in one pass, each held against the best of its place.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from blip3o_jax.data.text import chat
from blip3o_jax.systems.nexus_gen import batches
from blip3o_jax.systems.nexus_gen import recordings
from blip3o_jax.systems.nexus_gen import speaking
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import places
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.recorded import Errors

Inputs = Mapping[str, np.ndarray]
Outputs = dict[str, Any]
Grid = tuple[int, int]
TAILS: dict[speaking.Tail, str] = {
  "training": "tail_tokens_training_positions",
  "reference": "tail_tokens_reference",
}
LENGTH = 32  # of an answer whose length no recorded one tells, and room for a shorter one
PATCHES = 128  # the fewest that a picture is padded to


def run(model: verbs.Model, call: str, inputs: Inputs, outputs: Inputs) -> Outputs:
  """Runs one call of the language model; see `replay.run`."""
  known: dict[str, Callable[[verbs.Model, Inputs, Inputs], Outputs]] = {
    "und": _understand, "gen_penalty": _penalty, "forced": _forced, "single": _single,
    "reference": _reference,
  }  # fmt: skip
  if call in known:
    return known[call](model, inputs, outputs)
  return _answer(model, call, inputs, outputs)


# Rows --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
  """A recorded prompt: its ids, the grids of its pictures, and their patches."""

  ids: list[int]
  grids: tuple[Grid, ...] = ()
  patches: tuple[np.ndarray, ...] = ()


def prompt_of(inputs: Inputs, prefix: str, pixels: str = "pixel_values", given: int = -1) -> Asked:
  """The prompt under a prefix; of its grids the first `given` have patches, -1 all of them.

  Raises:
    ValueError: ids of several rows, a picture of several frames, patches that are not the grids'.
  """
  ids = inputs[f"{prefix}.input_ids"]
  if len(ids) != 1:
    raise ValueError(f"{prefix}.input_ids of {len(ids)} rows, expected one")
  if f"{prefix}.image_grid_thw" not in inputs:
    return Asked(ids[0].tolist())
  grids = grids_of(inputs, prefix)
  shown = grids if given < 0 else grids[:given]
  return Asked(ids[0].tolist(), grids, split(inputs[f"{prefix}.{pixels}"], shown, prefix))


def grids_of(inputs: Inputs, prefix: str) -> tuple[Grid, ...]:
  rows = inputs[f"{prefix}.image_grid_thw"].tolist()
  if any(t != 1 for t, _, _ in rows):
    raise ValueError(f"{prefix}.image_grid_thw {rows}: only single frames (t = 1) are covered")
  return tuple((h, w) for _, h, w in rows)


def split(pixels: np.ndarray, grids: Sequence[Grid], prefix: str) -> tuple[np.ndarray, ...]:
  counts = [h * w for h, w in grids]
  if sum(counts) != len(pixels):
    raise ValueError(
      f"{prefix}.image_grid_thw makes {sum(counts)} patches, the pixels have {len(pixels)} rows"
    )
  return tuple(np.split(pixels, np.cumsum(counts)[:-1]))


def _rows(
  model: verbs.Model, found: Asked, drawn: Sequence[int] | np.ndarray = ()
) -> dict[str, Any]:
  """A prompt as a padded row of one; `drawn` are the places, of the ids, of slots in it."""
  cfg = model.cfg
  out = asked.padded([found.ids], batches.BUCKETS, model.tokenizer.pad)
  out |= asked.positions(out, 1, found.grids, cfg.image_token, cfg.visual.merge)
  labels = np.full_like(out["tokens"], chat.IGNORED)
  start = labels.shape[1] - len(found.ids)
  labels[0, start - 1 + np.asarray(drawn, int)] = cfg.image_token
  # A row without a picture has one of padding, so that all rows are of one program.
  given, patches = found.grids[: len(found.patches)], found.patches
  blank = (np.zeros((cfg.visual.merge**2, cfg.visual.patch_dim), np.float32),)
  shown = asked.stacked(patches or blank, given or ((2, 2),), 1, cfg.visual, PATCHES)
  return {**out, "labels": labels, **shown}


@jax.jit
def _known(network: Network, batch: Mapping[str, Any]) -> tuple[jax.Array, ...]:
  """Of rows: what is seen at the pictures that are given, hidden vectors, scores, vectors."""
  module = network.module()
  seen = module.seen(batch["tokens"], *places.shown(batch), module.outputs(batch["labels"]))
  hidden = module.hidden(batch, seen)
  return seen, hidden, module.part("backbone").logits(hidden), module.part("vision_head")(hidden)


@dataclasses.dataclass(frozen=True)
class Read:
  """What one pass over a row gives, without its padding: float32[T, ...] each."""

  ids: np.ndarray
  seen: np.ndarray
  hidden: np.ndarray
  scores: np.ndarray
  vectors: np.ndarray
  positions: np.ndarray


def read(
  model: verbs.Model,
  found: Asked,
  drawn: Sequence[int] | np.ndarray = (),
  *,
  network: Network | None = None,
  late: int = 0,
) -> Read:
  """One pass over a row; what follows the slots in it stands `late` positions further on."""
  rows = _rows(model, found, drawn)
  behind = len(found.ids) - drawn[-1] - 1 if len(drawn) else 0
  if behind:
    rows["positions"][..., -behind:] += late
  made = _known(network or model.network, batches.batch(rows))
  n = len(found.ids)
  seen, hidden, scores, vectors = (np.asarray(x, np.float32)[0, -n:] for x in made)
  positions = rows["positions"][:, :1, -n:]
  return Read(np.array(found.ids), seen, hidden, scores, vectors, positions)


def with_picture(model: verbs.Model, found: Asked, ids: Sequence[int]) -> tuple[Asked, range]:
  """The prompt with `ids` and the slots of a picture after it, and where these stand."""
  cfg, first = model.cfg, len(found.ids) + len(ids)
  longer = [*found.ids, *ids, *[cfg.image_token] * cfg.slots]
  grids = (*found.grids, (cfg.target_grid, cfg.target_grid))
  return dataclasses.replace(found, ids=longer, grids=grids), range(first, first + cfg.slots)


# Answers -----------------------------------------------------------------------------------------


def say(
  model: verbs.Model,
  found: Asked,
  length: int,
  *,
  tail: speaking.Tail = "training",
  penalty: float = 1.0,
  forced: Sequence[int] = (),
  ends: Sequence[int] | None = None,
  network: Network | None = None,
) -> speaking.Answer:
  """The greedy answer; of all rows of the head, those beyond the tokenizer too.

  Args:
    ends: ids that end it; None is as the model says.
  """
  own = model.choice.ends or (model.tokenizer.im_end, model.tokenizer.pad)
  rules = speaking.rules(
    model.cfg,
    1,
    max(length, LENGTH),
    model.cfg.backbone.vocab_size,
    own if ends is None else ends,
    forced=forced,
    limits=decoding.Limits(penalty=penalty),
  )._replace(length=np.int32(length))
  rows = batches.prompt(_rows(model, found))
  return speaking.answer(network or model.network, rows, rules, tail=tail)[0]


def exact(model: verbs.Model) -> bool:
  return model.cfg.backbone.dtype == "float32"


def _answer(model: verbs.Model, call: str, inputs: Inputs, outputs: Inputs) -> Outputs:
  """A prompt that is answered with a picture, then words, as both tails have them."""
  found = prompt_of(inputs, call)
  wanted = {name.removeprefix(f"{call}."): value for name, value in outputs.items()}
  out = (_said if exact(model) else _heard)(model, found, wanted)
  return {f"{call}.{name}": value for name, value in out.items()}


def _said(model: verbs.Model, found: Asked, wanted: Inputs) -> Outputs:
  text = len(wanted.get("text_tokens", range(LENGTH // 2)))
  # Where positions go on as in training no id ends the recorded words.
  ends: dict[speaking.Tail, Sequence[int] | None] = {"training": (-1,), "reference": None}
  answers = {
    tail: say(model, found, text + len(wanted.get(name, ())), tail=tail, ends=ends[tail])
    for tail, name in TAILS.items()
  }
  tokens = {tail: answer.tokens for tail, answer in answers.items()}
  after = {tail: after_picture(model, ids) for tail, ids in tokens.items()}
  words = before_picture(model, tokens["reference"])
  row, drawn = with_picture(model, found, words)
  made = read(model, row, drawn)
  return {
    "text_tokens": np.array(words),
    "sequence": np.array([[*found.ids, *tokens["reference"]]]),
    "image_vectors": answers["reference"].vectors[:1],
    **{name: np.array(tokens[tail][after[tail] :], int) for tail, name in TAILS.items()},
    "read_hidden": made.hidden[None, drawn[0] - 1 : -1],
    "position_ids": made.positions,
  }


def after_picture(model: verbs.Model, tokens: Sequence[int]) -> int:
  """Where in an answer the words after its first picture begin; its end for one without."""
  eoi = model.cfg.eoi
  return list(tokens).index(eoi) + 1 if eoi in tokens else len(tokens)


def before_picture(model: verbs.Model, tokens: Sequence[int]) -> list[int]:
  """An answer up to the mark before its first picture; all of one without."""
  boi = model.cfg.boi
  return list(tokens[: list(tokens).index(boi) + 1] if boi in tokens else tokens)


def _heard(model: verbs.Model, found: Asked, wanted: Inputs) -> Outputs:
  """`_said` of the recorded ids; those that no recording tells are not read."""
  cfg = model.cfg
  words = wanted["text_tokens"].tolist() if "text_tokens" in wanted else [cfg.boi]
  row, drawn = with_picture(model, found, words)
  out: Outputs = {}
  errors = []
  for tail, name in TAILS.items():
    said = wanted[name].tolist() if name in wanted else []
    late = 0 if tail == "training" else cfg.slots - cfg.target_grid // cfg.visual.merge
    longer = dataclasses.replace(row, ids=[*row.ids, cfg.eoi, *said])
    made = read(model, longer, drawn, late=late)
    first = drawn[0] - 1
    out |= {
      "text_tokens": shortfall(model, made, len(found.ids), len(words)),
      name: shortfall(model, made, len(row.ids) + 1, len(said)),
      "image_vectors": made.vectors[None, first : first + cfg.slots],
      "read_hidden": made.hidden[None, first : first + cfg.slots],
      "position_ids": made.positions[..., : len(row.ids)],
    }
    errors = [out["text_tokens"].values, out[name].values]
  return out | {"sequence": Errors(np.concatenate(errors))}


def shortfall(
  model: verbs.Model, made: Read, first: int, count: int, penalty: float = 1.0
) -> Errors:
  """Of each of `count` ids from `first` on how far it lies below the best, as rules have scores."""
  out = []
  for place in range(first, first + count):
    scores = made.scores[place - 1].astype(np.float64)
    scores[model.cfg.eoi] = -np.inf
    said = np.unique(made.ids[:place])
    scores[said] = np.where(scores[said] < 0, scores[said] * penalty, scores[said] / penalty)
    largest = np.abs(scores[np.isfinite(scores)]).max()
    out.append((scores.max() - scores[made.ids[place]]) / largest)
  return Errors(np.array(out or [0.0]))


def _penalty(model: verbs.Model, inputs: Inputs, outputs: Inputs) -> Outputs:
  found, out = prompt_of(inputs, "gen"), dict[str, Any]()
  for name, penalty in recordings.PENALTIES.items():
    wanted = outputs.get(f"gen_penalty.{name}")
    if wanted is None:
      continue
    if exact(model):
      tokens = say(model, found, len(wanted), penalty=penalty).tokens
      value: Any = np.array(before_picture(model, tokens))
    else:
      row = dataclasses.replace(found, ids=[*found.ids, *wanted.tolist()])
      value = shortfall(model, read(model, row), len(found.ids), len(wanted), penalty)
    out[f"gen_penalty.{name}"] = value
  return out


def _forced(model: verbs.Model, inputs: Inputs, outputs: Inputs) -> Outputs:
  """A prompt that ends in the mark before a picture."""
  del outputs
  found = prompt_of(inputs, "forced")
  if found.ids[-1] != model.cfg.boi:
    raise ValueError(f"forced.input_ids ends in {found.ids[-1]}, expected {model.cfg.boi}")
  before = dataclasses.replace(found, ids=found.ids[:-1])
  answer = say(model, before, 1, forced=(model.cfg.boi,))
  return {"forced.image_vectors": answer.vectors}


def _understand(model: verbs.Model, inputs: Inputs, outputs: Inputs) -> Outputs:
  found, wanted = prompt_of(inputs, "und"), outputs.get("und.tokens")
  count = 0 if wanted is None else len(wanted)
  ids = found.ids if exact(model) or wanted is None else [*found.ids, *wanted.tolist()]
  made = read(model, dataclasses.replace(found, ids=ids))
  n = len(found.ids)
  out: Outputs = {
    "und.image_embeds": made.seen[made.ids == model.cfg.image_token],
    "und.position_ids": made.positions[..., :n],
    "und.rope_deltas": made.positions[..., :n].max((0, 2))[:, None] + 1 - n,
    "und.last_hidden": made.hidden[None, :n],
    "und.logits": made.scores[None, :n],
  }
  if exact(model):
    out["und.tokens"] = np.array(say(model, found, count or LENGTH).tokens)
  else:
    out["und.tokens"] = shortfall(model, made, n, count)
  return out


def _single(model: verbs.Model, inputs: Inputs, outputs: Inputs) -> Outputs:
  """One pass over a conversation whose last picture is the one that is predicted."""
  del outputs
  given = len(grids_of(inputs, "single")) - 1
  found = prompt_of(inputs, "single", "source_pixel_values", given)
  (at,) = np.nonzero(np.array(found.ids) == model.cfg.image_token)
  drawn = at[-model.cfg.slots :]
  made = read(model, found, drawn)
  rows = batches.batch(_rows(model, found, drawn))
  return {
    "single.source_embeds": made.seen[at[: -model.cfg.slots]],
    "single.predicted_vectors": np.asarray(speaking.predict(model.network, rows)),
  }


def _reference(model: verbs.Model, inputs: Inputs, outputs: Inputs) -> Outputs:
  del outputs
  pixels = inputs["pre.reference_bilinear_u8"]
  return {"merger.reference_embeds": model.seen(pixels[None])}
