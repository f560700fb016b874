"""Text from a language model: one prefill, then a loop over a static cache.

The loop may pause and go on; the ids are the same wherever it does.

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

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax.models.decoder_lm import Cache
from blip3o_jax.models.decoder_lm import DecoderLM
from blip3o_jax.systems.parts import buckets

LENGTHS = 16  # the shortest bucket of an answer
STOPS = 8
BANNED = 4
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
    length: int32[] or int32[B], most ids. allowed: int32[], only ids below it.
    banned: int32[BANNED] or int32[B, BANNED], ids that are not chosen, -1 where there are fewer.
    stops: int32[STOPS], ids that end a row, as many. fill: int32[], what stands after one.
    forced: int32[B, L], ids that are said whatever is likely, -1 where the choice is free; L is the
      bucket of the length.
    penalty, temperature, top_p: float32[]. top_k: int32[]. As in `Limits`.
  """

  length: Any
  allowed: Any
  banned: Any
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
  banned: Sequence[int] = (),
  forced: Sequence[int] = (),
  temperature: float = 0.0,
  limits: Limits | None = None,
) -> Rules:
  """The rules of `batch` answers of at most `length` ids.

  Args:
    stops: the last one fills what follows a stop. banned: ids that are never chosen. forced: what
      each answer begins with.

  Raises:
    ValueError: no or too many stops, too many banned ids, more forced ids than the length.
  """
  limits = limits or Limits()
  if not 1 <= len(stops) <= STOPS:
    raise ValueError(f"{len(stops)} ids that end an answer, expected 1 to {STOPS}")
  if len(banned) > BANNED:
    raise ValueError(f"{len(banned)} ids that are never chosen, expected at most {BANNED}")
  if len(forced) > length:
    raise ValueError(f"an answer of {length} tokens cannot begin with {len(forced)} given ones")
  given = np.full((batch, buckets.power(length, LENGTHS)), -1, np.int32)
  given[:, : len(forced)] = forced
  return Rules(
    length=np.int32(length),
    allowed=np.int32(allowed),
    banned=_filled(banned, BANNED),
    stops=_filled(stops, STOPS),
    fill=np.int32(stops[-1]),
    forced=given,
    penalty=np.float32(limits.penalty),
    temperature=np.float32(temperature),
    top_k=np.int32(limits.top_k),
    top_p=np.float32(limits.top_p),
  )


@struct.dataclass
class State:
  """What the language model has read; answers begin and go on from it.

  Attributes:
    cache: of what was read. hidden: float[B, 1, D], of the last id that each row read.
    said: bool[B, V], the ids of its prompt and answer. at: int32[B], where its next id stands.
  """

  cache: Cache
  hidden: jax.Array
  said: jax.Array
  at: jax.Array


def begin(
  language: DecoderLM, inputs: jax.Array, prompt: Mapping[str, jax.Array], room: int
) -> State:
  """Reads prompts.

  Args:
    inputs: float[B, P, D], embeddings, left-padded.
    prompt: tokens and segments int[B, P], positions int[B, P] or int[3, B, P], deltas int[B, 1]:
      the s-th new id stands at P + s + delta on all axes.
    room: how many positions may follow them.
  """
  tokens, segments = prompt["tokens"], prompt["segments"]
  (batch, start), rows = tokens.shape, jnp.arange(len(tokens))
  hidden, cache = language.prefill(inputs, prompt["positions"], segments, start + room)
  said = jnp.zeros((batch, language.cfg.vocab_size), bool)
  said = said.at[rows[:, None], tokens].max(jnp.asarray(segments) > 0)
  return State(cache, hidden[:, -1:], said, start + jnp.asarray(prompt["deltas"])[:, 0])


@struct.dataclass
class Answers:
  """What is being written; `more` continues it.

  Attributes:
    state: of the language model, which has read all but the last id of each row.
    ids: int32[B, L], the filling id behind what was said. `BROKEN` stands where the scores are not
      finite, and ends the row. count: int32[], how many ids of a row are written.
    ended: bool[B], rows that say no more.
  """

  state: State
  ids: jax.Array
  count: jax.Array
  ended: jax.Array


def first(
  language: DecoderLM, state: State, rules: Rules, keys: jax.Array | None = None
) -> Answers:
  """The first id of each row. Args as of `go_on`."""
  batch, length = rules.forced.shape
  silent = _most(rules) < 1
  token = jnp.where(silent, rules.fill, _pick(language, state, rules, keys, jnp.int32(0)))
  ids = jnp.full((batch, length), rules.fill, jnp.int32).at[:, 0].set(token)
  return Answers(state, ids, jnp.int32(1), silent | _done(rules, jnp.int32(1), token))


def more(
  language: DecoderLM,
  answers: Answers,
  rules: Rules,
  keys: jax.Array | None = None,
  until: Any = None,
) -> Answers:
  """Goes on until every row has ended, or so many ids are written.

  Args: as of `go_on`; `until`: int32[], an argument: one program says any number.
  """
  length = rules.forced.shape[1]
  until = jnp.minimum(length, length if until is None else until)

  def goes_on(answers: Answers) -> jax.Array:
    return (answers.count < until) & ~jnp.all(answers.ended)

  def advance(answers: Answers) -> Answers:
    ids, ended, count = answers.ids, answers.ended, answers.count
    last = jax.lax.dynamic_slice_in_dim(ids, count - 1, 1, 1)
    at = answers.state.at[:, None]
    _, state = read(language, answers.state, last, language.embed(last), at, ~ended)
    token = jnp.where(ended, rules.fill, _pick(language, state, rules, keys, count))
    ids = jax.lax.dynamic_update_slice_in_dim(ids, token[:, None], count, 1)
    return Answers(state, ids, count + 1, ended | _done(rules, count + 1, token))

  return jax.lax.while_loop(goes_on, advance, answers)


def go_on(
  language: DecoderLM, state: State, rules: Rules, keys: jax.Array | None = None
) -> tuple[jax.Array, State]:
  """Continues answers until every row has ended.

  Args:
    keys: of the draws of each row, keys[B]; None takes the likeliest ids.

  Returns:
    int32[B, L], see `Answers`, and the state after it: a row has read all that it said but the last
    id, be it a stop or the last that the length allows. A row of length 0 says nothing.
  """
  answers = more(language, first(language, state, rules, keys), rules, keys)
  return answers.ids, answers.state


def _most(rules: Rules) -> jax.Array:
  """int32[B], most ids of each row."""
  return jnp.broadcast_to(jnp.asarray(rules.length), rules.forced.shape[:1])


def _done(rules: Rules, count: jax.Array, token: jax.Array) -> jax.Array:
  """bool[B], rows that end with their id number `count`."""
  return jnp.isin(token, jnp.asarray(rules.stops)) | (token == BROKEN) | (count >= _most(rules))


def _pick(
  language: DecoderLM, state: State, rules: Rules, keys: jax.Array | None, step: jax.Array
) -> jax.Array:
  """The next id of each row, int32[B], its number `step` from 0."""
  scores = _limited(language.logits(state.hidden)[:, 0], state.said, rules)
  best = jnp.max(scores, -1)  # NaN where one score is
  token = jnp.argmax(scores, -1) if keys is None else _drawn(scores, rules, keys, step)
  token = jnp.where(jnp.isfinite(best), token, BROKEN)
  forced = jax.lax.dynamic_index_in_dim(jnp.asarray(rules.forced), step, 1, keepdims=False)
  return jnp.where(forced >= 0, forced, token).astype(jnp.int32)


def _drawn(scores: jax.Array, rules: Rules, keys: jax.Array, step: jax.Array) -> jax.Array:
  """An id of each row drawn by its own key, wherever the row stands among others."""
  scores = _filtered(scores / jnp.maximum(rules.temperature, 1e-6), rules)
  turned = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
  return jax.vmap(jax.random.categorical)(turned, scores)


def read(
  language: DecoderLM,
  state: State,
  ids: jax.Array,
  inputs: jax.Array,
  positions: jax.Array,
  rows: jax.Array,
) -> tuple[jax.Array, State]:
  """Hidden vectors float[B, t, D] of ids int[B, t], and the state after some rows have read them.

  Args:
    inputs: float[B, t, D], what stands there. positions: int[B, t] or int[3, B, t]; the next id
      stands after the last of them. rows: bool[B]; the others wait, and never see what is read.
  """
  seen = jnp.broadcast_to(rows[:, None], ids.shape)
  hidden, cache = language.extend(inputs, positions, state.cache, seen)
  after = positions.reshape(-1, *ids.shape)[0, :, -1] + 1
  return hidden, State(
    cache=cache,
    hidden=jnp.where(rows[:, None, None], hidden[:, -1:], state.hidden),
    said=state.said.at[jnp.arange(len(ids))[:, None], ids].max(seen),
    at=jnp.where(rows, after, state.at),
  )


def _limited(scores: jax.Array, said: jax.Array, rules: Rules) -> jax.Array:
  """Scores float32[B, V] without what may not be said, and with the penalty of what was."""
  ids = jnp.arange(scores.shape[-1])
  banned = jnp.any(ids[:, None] == jnp.asarray(rules.banned)[..., None, :], -1)
  may = (ids < rules.allowed) & ~banned
  scores = jnp.where(may, scores, -jnp.inf)
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


def _filled(ids: Sequence[int], size: int) -> np.ndarray:
  """int32[size] of ids, -1 behind them."""
  return np.pad(np.asarray(ids, np.int32), (0, size - len(ids)), constant_values=-1)
