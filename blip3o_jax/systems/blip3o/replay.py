"""Recorded inputs through the system: arrays of a recording in, arrays in PyTorch's layouts out.

Everything goes through the methods that generation, answering and training use.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import trees
from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.diffusion import flow
from blip3o_jax.layers import Dtype
from blip3o_jax.models import eva_vit
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.blip3o import batches
from blip3o_jax.systems.blip3o import rows as names
from blip3o_jax.systems.blip3o import sampling
from blip3o_jax.systems.blip3o import speaking
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.blip3o.recordings import SAMPLES
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts.recorded import Errors
from blip3o_jax.systems.parts.recorded import first
from blip3o_jax.systems.parts.recorded import last
from blip3o_jax.weights import table

Inputs = Mapping[str, np.ndarray]
Outputs = dict[str, Any]
PROMPT = ("tokens", "segments", "positions", "deltas", "patches", "layout")
TRAINED = ("slots", "projector", "denoiser")


def replay(
  directory: Path, dtype: Dtype, recording: Inputs
) -> Callable[[str, Inputs, Inputs], Outputs]:
  """Loads the system of a directory, without its pixel decoder; see `run` for the calls.

  Raises:
    FileNotFoundError, ValueError: what is wrong with the model.
  """
  del recording  # every recording is of the same networks
  return functools.partial(run, verbs.load(directory, dtype=dtype, decoder=False))


def run(model: verbs.Model, call: str, inputs: Inputs, outputs: Inputs) -> Outputs:
  """Runs one call of `recordings.CALLS`, or a generation ("gen0").

  Args:
    model: loaded. call: its name. inputs: {name: array}, all that the call needs.
    outputs: {name: recorded array} of those wanted; bfloat16 reads the recorded tokens.

  Returns:
    {name: array} with at least the outputs wanted, float32 or int, in PyTorch's layouts. In
    bfloat16 `und.greedy_tokens` are `Errors`: how far their scores lie below the best.

  Raises:
    ValueError: inputs that contradict each other, or a part that the model has not.
  """
  known: dict[str, Callable[..., Outputs]] = {
    "eva": _eva, "dit": _dit, "und": _understand, "sampler": _sampler, "train": _train
  }  # fmt: skip
  given = {name.partition(".")[2]: value for name, value in inputs.items()}
  wanted = {name.partition(".")[2]: value for name, value in outputs.items()}
  found = known.get(call, _generate)(model, given, wanted)
  return {f"{call}.{name}": value for name, value in found.items()}


def _part(module: Any, name: str) -> Any:
  value = getattr(module, name)
  if value is None:
    raise ValueError(f"the model has no part {name!r}")
  return value


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef: Any, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
  encoder = _part(nnx.merge(graphdef, params), "encoder")
  patches = encoder.tower(images)
  return patches, eva_vit.pool(patches, encoder.pool)


def _eva(model: verbs.Model, given: Inputs, wanted: Inputs) -> Outputs:
  del wanted
  images = last(given["pixel_values"])
  patches, pooled = _encode(model.system.graphdef, model.system.params, images)
  return {"patch_features": np.asarray(patches, np.float32), "pooled": first(pooled)}


@functools.partial(jax.jit, static_argnums=0)
def _velocity(graphdef: Any, params: Any, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
  denoiser = _part(nnx.merge(graphdef, params), "denoiser")
  return denoiser(x, t, denoiser.prepare(z))


def _dit(model: verbs.Model, given: Inputs, wanted: Inputs) -> Outputs:
  del wanted
  x, t, z = last(given["x"]), jnp.asarray(given["timestep"]), jnp.asarray(given["z"])
  return {"velocity": first(_velocity(model.system.graphdef, model.system.params, x, t, z))}


def _sampler(model: verbs.Model, given: Inputs, wanted: Inputs) -> Outputs:
  del model, given, wanted
  sigmas, timesteps = flow.schedule(SAMPLES[0][1], truncate=False)
  return {"sigmas": sigmas, "timesteps": timesteps}


# Understanding -----------------------------------------------------------------------------------


def _understand(model: verbs.Model, given: Inputs, wanted: Inputs) -> Outputs:
  cfg = model.cfg
  tokens, mask = (given[k].astype(np.int32) for k in ("input_ids", "attention_mask"))
  _check_padding("und", tokens, mask, model.tokenizer.pad)
  grids = _grids(given)
  positions, deltas = mrope.mrope_positions(tokens, mask, grids, cfg.image_token, cfg.visual.merge)
  counts = [h * w for h, w in grids]
  n = max(counts)
  rows = np.split(given["pixel_values"], np.cumsum(counts)[:-1])
  patches = np.stack([np.pad(r, ((0, n - len(r)), (0, 0))) for r in rows])
  layout = qwen_vision.layout(grids, n, cfg.visual)
  inputs = (tokens, mask, positions, deltas, patches, layout)
  graphdef, params = model.system.graphdef, model.system.params
  images, hidden, scores = _read(graphdef, params, inputs)
  merged = cfg.visual.merge**2
  valid = mask[..., None] != 0
  out = {
    "image_embeds": np.concatenate(
      [np.asarray(images[i, : c // merged], np.float32) for i, c in enumerate(counts)]
    ),
    "position_ids": positions,
    "rope_deltas": deltas,
    "last_hidden": np.where(valid, np.asarray(hidden, np.float32), 0),
    "logits": np.where(valid, np.asarray(scores, np.float32), 0),
  }
  if "greedy_tokens" in wanted:
    out["greedy_tokens"] = _greedy(model, inputs, wanted["greedy_tokens"].astype(np.int32))
  return out


def _grids(given: Inputs) -> list[tuple[int, int]]:
  grids = given["grid_thw"].tolist()
  if any(t != 1 for t, _, _ in grids):
    raise ValueError(f"und.grid_thw {grids}: only single frames (t = 1) are covered")
  total, rows = sum(h * w for _, h, w in grids), len(given["pixel_values"])
  if total != rows:
    raise ValueError(f"und.grid_thw makes {total} patches, und.pixel_values has {rows} rows")
  return [(h, w) for _, h, w in grids]


def _check_padding(call: str, tokens: np.ndarray, mask: np.ndarray, pad: int) -> None:
  wrong = np.argwhere((mask == 0) & (tokens != pad))
  if len(wrong):
    row, place = wrong[0]
    raise ValueError(
      f"{call}.input_ids[{row}, {place}] is {tokens[row, place]} where {call}.attention_mask is 0: "
      f"expected the padding id {pad}"
    )


@functools.partial(jax.jit, static_argnums=0)
def _read(graphdef: Any, params: Any, inputs: tuple[Any, ...]) -> tuple[jax.Array, ...]:
  tokens, segments, positions, _, patches, layout = inputs
  module = nnx.merge(graphdef, params)
  images = _part(module, "visual")(patches, layout)
  hidden = module.backbone(module.embed(tokens, patches, layout), positions, segments)
  return images, hidden, module.backbone.logits(hidden)


def _greedy(model: verbs.Model, inputs: tuple[Any, ...], recorded: np.ndarray) -> Any:
  """Tokens of the answering loop; in bfloat16 the shortfall of the recorded ones, as `Errors`.

  The recorder left out ids from some bound up, which the file does not tell. Whatever it was, no
  recorded token reaches it, so the choice among the ids up to the highest recorded one is the same.
  """
  graphdef, params = model.system.graphdef, model.system.params
  batch, length = recorded.shape
  allowed = int(recorded.max()) + 1
  if not 0 < allowed <= model.cfg.backbone.vocab_size or recorded.min() < 0:
    raise ValueError("und.greedy_tokens: ids outside the vocabulary")
  if model.cfg.backbone.dtype == "float32":
    prompt = dict(zip(PROMPT, inputs, strict=True))
    rules = decoding.rules(batch, length, allowed, (-1,))
    return np.asarray(speaking.answer(model.system, prompt, rules))[:, :length]
  tokens, segments, positions, deltas, patches, layout = inputs
  after = tokens.shape[1] + np.arange(length - 1) + deltas
  longer = (
    np.concatenate([tokens, recorded[:, :-1]], 1),
    np.pad(segments, ((0, 0), (0, length - 1)), constant_values=1),
    np.concatenate([positions, np.broadcast_to(after, (3, batch, length - 1))], 2),
  )
  _, _, scores = _read(graphdef, params, (*longer, deltas, patches, layout))
  scores = np.asarray(scores, np.float64)[:, -length:, :allowed]
  chosen = np.take_along_axis(scores, recorded[..., None], -1)[..., 0]
  return Errors((scores.max(-1) - chosen) / np.abs(scores).max(-1))


# Generation --------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _slots(graphdef: Any, params: Any, tokens: jax.Array, segments: jax.Array) -> jax.Array:
  module = nnx.merge(graphdef, params)
  _part(module, "slots")
  return module.read(tokens, segments)


def _generate(model: verbs.Model, given: Inputs, wanted: Inputs) -> Outputs:
  graphdef, params = model.system.graphdef, model.system.params
  ids = given["prompt_ids"].tolist()
  if len(ids) != 1:
    raise ValueError(f"prompt_ids of {len(ids)} rows, expected one")
  bucket = chat.bucket_of(len(ids[0]), batches.BUCKETS)
  tokens, segments = chat.pad_left(ids, bucket, model.tokenizer.pad)
  noise = last(given["noise"])
  out = {"query_hidden": np.asarray(_slots(graphdef, params, tokens, segments), np.float32)}
  for name, steps, scale in SAMPLES:
    if name in wanted:
      prompt = {"tokens": tokens, "segments": segments}
      guided = None if scale == 1 else np.float32(scale)
      found = sampling.draw(model.system, prompt, noise, flow.table(steps), guided, "euler")
      out[name] = first(found)
  return out


# Training ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Leaves:
  """The parameters whose gradients are recorded: rows of the table, and where to find each."""

  rows: list[table.Row]
  paths: tuple[str, ...]


def _train(model: verbs.Model, given: Inputs, wanted: Inputs) -> Outputs:
  flat = trees.flatten(model.system.params)
  grads = [name for name in wanted if name.startswith("grad.")]
  leaves = _leaves(grads, flat)
  tokens, segments = _prompts(model, given)
  noise, images = last(given["noise"]), last(given["gen_image"])
  t = flow.quantile(jnp.asarray(given["u"]), flow.Law())
  fn = _loss_and_grads if grads else _loss
  chosen = {path: flat[path] for path in leaves.paths}
  value, seen, found = fn(
    model.system.graphdef, model.system.params, chosen, (tokens, segments, images, noise, t)
  )
  exported = dict(table.export(leaves.rows, found))
  return {
    "target_features": first(seen["features"]),
    "timesteps": np.asarray(flow.TRAIN_STEPS * t),
    "sigmas": np.asarray(t),
    "query_hidden": np.asarray(seen["hidden"], np.float32),
    "prediction": first(seen["prediction"]),
    "loss": np.asarray(value),
    **{name: np.asarray(exported[_key(name)], np.float32) for name in grads},
  }


def _key(name: str) -> str:
  """The checkpoint key of a recorded gradient, whose name lacks the leading "model."."""
  return "model." + name.removeprefix("grad.")


def _leaves(grads: Sequence[str], flat: Mapping[str, Any]) -> _Leaves:
  rows, known = [], set[str]()
  for r in names.rows():
    rx = re.compile(table.pattern(r.name))
    found = [match for name in grads if (match := rx.fullmatch(_key(name)))]
    depth = flat[r.paths[0]].shape[0] if "{}" in r.name and r.paths[0] in flat else 0
    if [m for m in found if not m.groups() or int(m[1]) < depth] and r.paths[0] in flat:
      rows.append(r)
      known |= {m[0] for m in found}
  paths = tuple(p for r in rows for p in r.paths)
  for name in grads:
    if _key(name) not in known:
      raise ValueError(f"train.{name}: the model has no parameter {_key(name)}")
  frozen = [p for p in paths if p.split("/")[0] not in TRAINED]
  if frozen:
    raise ValueError(f"train.grad of {frozen[0]}: only {', '.join(TRAINED)} are trained")
  return _Leaves(rows, paths)


def _prompts(model: verbs.Model, given: Inputs) -> tuple[np.ndarray, np.ndarray]:
  """The right-padded rows as left-padded prompts without the slots; checked on the way."""
  ids, mask = given["input_ids"], given["attention_mask"]
  starts, count = given["query_start"].tolist(), model.cfg.slots
  _check_padding("train", ids, mask, model.tokenizer.pad)
  for b, (row, start) in enumerate(zip(ids.tolist(), starts, strict=True)):
    expected = [1] * (start + count) + [0] * (len(row) - start - count)
    if not 0 < start <= len(row) - count or mask[b].tolist() != expected:
      raise ValueError(
        f"train.query_start[{b}] is {start}: expected a prompt, {count} slots and padding, but "
        f"train.attention_mask has {int(mask[b].sum())} places of {len(row)}"
      )
    if set(row[start : start + count]) != {model.tokenizer.image}:
      raise ValueError(
        f"train.input_ids[{b}]: expected {count} times id {model.tokenizer.image} from {start} on"
      )
  rows = [row[:start] for row, start in zip(ids.tolist(), starts, strict=True)]
  longest = chat.bucket_of(max(starts), batches.BUCKETS)
  return chat.pad_left(rows, longest, model.tokenizer.pad)


def _objective(
  graphdef: Any, params: Any, chosen: Any, batch: tuple[Any, ...]
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The mean loss without dropped conditions, and what is recorded on the way."""
  tokens, segments, images, noise, t = batch
  module = nnx.merge(graphdef, trees.unflatten(trees.flatten(params) | chosen))
  denoiser = _part(module, "denoiser")
  hidden = module.read(tokens, segments)
  features = jax.lax.stop_gradient(module.targets(images))
  z = hidden if module.projector is None else module.projector(hidden)
  condition = denoiser.prepare(z)
  seen = {"hidden": hidden, "features": features}

  def velocity(x: jax.Array, timesteps: jax.Array) -> jax.Array:
    seen["prediction"] = denoiser(x, timesteps, condition)
    return seen["prediction"]

  return jnp.mean(flow.loss(velocity, features, noise, t)), seen


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_grads(graphdef: Any, params: Any, chosen: Any, batch: Any) -> tuple[Any, Any, Any]:
  def loss(chosen: Any) -> Any:
    return _objective(graphdef, params, chosen, batch)

  (value, seen), grads = jax.value_and_grad(loss, has_aux=True)(chosen)
  return value, seen, grads


@functools.partial(jax.jit, static_argnums=0)
def _loss(graphdef: Any, params: Any, chosen: Any, batch: Any) -> tuple[Any, Any, Any]:
  value, seen = _objective(graphdef, params, chosen, batch)
  return value, seen, {}
