"""Text from a language model: one prefill, then a loop over a static cache.

The released processors in their order: what may not be said, the penalty of repetition, then
temperature, the k likeliest, the likeliest of a given mass. Every number of them is an array, so
that another one compiles nothing; only whether ids are drawn at all is static.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax.models.decoder_lm import DecoderLM
from blip3o_jax.systems.parts import buckets

LENGTHS = 16  # the shortest bucket of an answer
STOPS = 8
BROKEN = -2  # in place of an id


@dataclasses.dataclass(frozen=True)
class Limits:
  """Which ids may be chosen and how often; the defaults limit nothing.

  Attributes:
    top_k: only the k likeliest are drawn from; 0 is all. top_p: only the likeliest whose shares
      add up to p. penalty: of ids that occur in the prompt or were said: a score above 0 is divided
      by it, one below multiplied; above 1 they are said less.
    begin: what every answer begins with.

  Raises:
    ValueError: a value out of its range.
  """

  top_k: int = 0
  top_p: float = 1.0
  penalty: float = 1.0
  begin: str = ""

  def __post_init__(self) -> None:
    if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 < self.penalty < math.inf:
      raise ValueError(
        f"top_k {self.top_k}, top_p {self.top_p}, penalty {self.penalty}: expected 0 or more, "
        "above 0 and up to 1, above 0"
      )


class Rules(NamedTuple):
  """How the ids of an answer are chosen, as arrays.

  Attributes:
    length: int32[], most ids. allowed: int32[], only ids below it. stops: int32[STOPS], ids that
      end a row, -1 where there are fewer. fill: int32[], what stands after one.
    forced: int32[B, L], ids that are said whatever is likely, -1 where the choice is free; L is the
      bucket of the length.
    penalty, temperature, top_p: float32[]. top_k: int32[]. As in `Limits`.
  """

  length: Any
  allowed: Any
  stops: Any
  fill: Any
  forced: Any
  penalty: Any
  temperature: Any
  top_k: Any
  top_p: Any


def rules(
  batch: int,
  length: int,
  allowed: int,
  stops: Sequence[int],
  *,
  forced: Sequence[int] = (),
  temperature: float = 0.0,
  limits: Limits | None = None,
) -> Rules:
  """The rules of `batch` answers of at most `length` ids.

  Args:
    stops: the last one fills what follows a stop. forced: what each answer begins with.

  Raises:
    ValueError: no or too many stops, more forced ids than the length.
  """
  limits = limits or Limits()
  if not 1 <= len(stops) <= STOPS:
    raise ValueError(f"{len(stops)} ids that end an answer, expected 1 to {STOPS}")
  if len(forced) > length:
    raise ValueError(f"an answer of {length} tokens cannot begin with {len(forced)} given ones")
  given = np.full((batch, buckets.power(length, LENGTHS)), -1, np.int32)
  given[:, : len(forced)] = forced
  return Rules(
    length=np.int32(length),
    allowed=np.int32(allowed),
    stops=np.pad(np.asarray(stops, np.int32), (0, STOPS - len(stops)), constant_values=-1),
    fill=np.int32(stops[-1]),
    forced=given,
    penalty=np.float32(limits.penalty),
    temperature=np.float32(temperature),
    top_k=np.int32(limits.top_k),
    top_p=np.float32(limits.top_p),
  )


def write(
  language: DecoderLM,
  inputs: jax.Array,
  prompt: Mapping[str, jax.Array],
  rules: Rules,
  key: jax.Array | None = None,
) -> jax.Array:
  """Continues prompts until every row has ended.

  Args:
    inputs: float[B, P, D], embeddings, left-padded.
    prompt: tokens and segments int[B, P], positions int[B, P] or int[3, B, P], deltas int[B, 1]:
      the s-th new id stands at P + s + delta on all axes.
    key: of the draw; None takes the likeliest id.

  Returns:
    int32[B, L]; what lies beyond the length or after a stop is the filling id. `BROKEN` stands
    where the scores are not finite, and ends the row.
  """
  tokens, positions = prompt["tokens"], prompt["positions"]
  (batch, start), length = tokens.shape, rules.forced.shape[1]
  rows = jnp.arange(batch)

  def pick(hidden: jax.Array, step: jax.Array, said: jax.Array) -> jax.Array:
    scores = _limited(language.logits(hidden[:, -1:])[:, 0], said, rules)
    best = jnp.max(scores, -1)  # NaN where one score is
    if key is None:
      token = jnp.argmax(scores, -1)
    else:
      scores = _filtered(scores / jnp.maximum(rules.temperature, 1e-6), rules)
      token = jax.random.categorical(jax.random.fold_in(key, step), scores)
    token = jnp.where(jnp.isfinite(best), token, BROKEN)
    forced = jax.lax.dynamic_index_in_dim(jnp.asarray(rules.forced), step, 1, keepdims=False)
    return jnp.where(forced >= 0, forced, token).astype(jnp.int32)

  hidden, cache = language.prefill(inputs, positions, prompt["segments"], start + length)
  said = jnp.zeros((batch, language.cfg.vocab_size), bool)
  said = said.at[rows[:, None], tokens].max(jnp.asarray(prompt["segments"]) > 0)
  first = pick(hidden, jnp.int32(0), said)
  out = jnp.full((batch, length), rules.fill, jnp.int32).at[:, 0].set(first)
  stops = jnp.asarray(rules.stops)
  State = tuple[jax.Array, ...]

  def ended(token: jax.Array) -> jax.Array:
    return jnp.isin(token, stops) | (token == BROKEN)

  def more(state: tuple[State, Any]) -> jax.Array:
    step, _, done, _ = state[0]
    return (step < rules.length) & ~jnp.all(done)

  def advance(state: tuple[State, Any]) -> tuple[State, Any]:
    (step, out, done, said), cache = state
    last = jax.lax.dynamic_slice_in_dim(out, step - 1, 1, 1)
    at = start + step - 1 + prompt["deltas"]
    at = jnp.broadcast_to(at[None], (3, batch, 1)) if positions.ndim == 3 else at
    hidden, cache = language.extend(language.embed(last), at, cache)
    said = said.at[rows, last[:, 0]].set(True)
    token = jnp.where(done, rules.fill, pick(hidden, step, said))
    out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], step, 1)
    return (step + 1, out, done | ended(token), said), cache

  state: State = (jnp.int32(1), out, ended(first), said)
  return jax.lax.while_loop(more, advance, (state, cache))[0][1]


def _limited(scores: jax.Array, said: jax.Array, rules: Rules) -> jax.Array:
  """Scores float32[B, V] without what may not be said, and with the penalty of what was."""
  scores = jnp.where(jnp.arange(scores.shape[-1]) < rules.allowed, scores, -jnp.inf)
  less = jnp.where(scores < 0, scores * rules.penalty, scores / rules.penalty)
  return jnp.where(said, less, scores)


def _filtered(scores: jax.Array, rules: Rules) -> jax.Array:
  """Scores float32[B, V] with -inf for all but the k likeliest, and the likeliest of mass p."""

  def cut(scores: jax.Array) -> jax.Array:
    ordered = jnp.sort(scores, -1, descending=True)
    count = jnp.where(rules.top_k > 0, rules.top_k, scores.shape[-1])
    ordered = jnp.where(jnp.arange(scores.shape[-1]) < count, ordered, -jnp.inf)
    shares = jax.nn.softmax(ordered, -1)
    before = jnp.cumsum(shares, -1) - shares
    kept = jnp.where((before < rules.top_p) & (ordered > -jnp.inf), ordered, jnp.inf)
    return jnp.where(scores >= jnp.min(kept, -1, keepdims=True), scores, -jnp.inf)

  off = (rules.top_k == 0) & (rules.top_p == 1)
  return jax.lax.cond(off, lambda scores: scores, cut, scores)
