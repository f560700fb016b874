"""Answers with pictures: words until one begins, its vectors in one pass, then words again.

    prompt ─► start ─► first, more: words, up to the mark before a picture or the end ─► answer
                        ▲                                      │
                        └────── look: mark, slots, mark ◄──────┘─► vectors

Rows of a batch say words together until each has ended or waits at a picture, then those that wait
look together; who has nothing to read meanwhile leaves a gap in the cache that nobody sees. Shapes
are static: `start`, `first`, `more` and `look` are each compiled once for a bucket (spec 2.7).
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.nexus_gen.model import NexusGen
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import finite
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program

# Where words after a picture stand: after its last row, as in training, or as the reference's loop
# has it after as many positions as it has slots (spec 11, Q2).
Tail = Literal["training", "reference"]
# (row, new ids) of an answer, among them marks before pictures; returns whether the row goes on.
Listen = Callable[[int, list[int]], bool]
PICTURES = 4  # the most of an answer, unless asked otherwise
ROOM = 64  # the least positions of a cache that grows


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a row said.

  Attributes:
    tokens: all that was written, marks and slots of pictures too, and what ended it.
    words: the ids before, between and after its pictures, without marks and ends.
    vectors: float32[pictures, n, D].
  """

  tokens: list[int]
  words: list[list[int]]
  vectors: np.ndarray


def rules(
  cfg: Config,
  batch: int,
  length: int,
  allowed: int,
  ends: Sequence[int],
  *,
  forced: Sequence[int] = (),
  temperature: float = 0.0,
  limits: decoding.Limits | None = None,
) -> decoding.Rules:
  """The rules of answers with pictures; see `decoding.rules`.

  Args:
    length: most ids; a picture counts as one, the mark before it. ends: ids that end an answer.
      forced: what it begins with; `(cfg.boi,)` is a picture whatever the model would say, as after
      a prompt that ends in this mark.
  """
  return decoding.rules(
    batch,
    length,
    allowed,
    (cfg.boi, *ends),
    banned=(cfg.eoi,),
    forced=forced,
    temperature=temperature,
    limits=limits,
  )


def answer(
  network: Network,
  prompt: Mapping[str, Any],
  rules: decoding.Rules,
  *,
  pictures: int = PICTURES,
  tail: Tail = "training",
  keys: jax.Array | None = None,
  listen: Listen | None = None,
  chunk: int = 0,
) -> list[Answer]:
  """Answers to padded prompts, each with up to so many pictures.

  Args:
    network: of `NexusGen` with the part "language", and "visual" for prompts with pictures.
    prompt: tokens, segments int[B, P], left-padded, positions int[3, B, P], deltas int[B, 1] (see
      `decoding.begin`), and `patches` and `layout` of its pictures, if any.
    rules: see `rules`. pictures: after them an answer goes on in words; 0 is words alone.
    keys: of the draws of each row, keys[B]; None takes the likeliest ids.
    listen: called with (row, new ids) while answers are written. chunk: how many ids are written
      before it is called again, 0 as many as there are; the ids are the same.

  Raises:
    ValueError: an unknown tail; scores or vectors that are not finite, by name.
  """
  cfg: Config = network.module().cfg
  after = {"training": cfg.target_grid // cfg.visual.merge, "reference": cfg.slots}
  if tail not in after:
    raise ValueError(f"tail {tail!r}: expected one of {', '.join(after)}")
  batch, longest = rules.forced.shape
  said = [_Said() for _ in range(batch)]
  most = np.broadcast_to(np.asarray(rules.length), batch)
  going, turn = most > 0, 0
  whole, network = network, cores.apart(network)
  state = start(network, prompt, longest + cfg.slots + 2)
  while going.any():
    full = np.array([len(s.vectors) >= pictures for s in said])
    left = most - np.array([s.count for s in said])
    told = rules._replace(
      length=np.where(going, left, 0).astype(np.int32),
      banned=_banned(rules.banned, full, cfg.boi),
      forced=rules.forced if not turn else np.full_like(rules.forced, -1),
    )
    turned = None if keys is None else _turned(keys, turn)
    state = _roomy(state, int(told.length.max()))
    state, waits = _words(network, state, told, turned, said, (listen, chunk))
    if waits.any():
      found, state = look(network, _roomy(state, cfg.slots + 2), waits, np.int32(after[tail]))
      for row in np.flatnonzero(waits):
        said[row].look(np.asarray(found)[row], [cfg.image_token] * cfg.slots + [cfg.eoi])
        finite.check(said[row].vectors[-1], "language model (vectors of a picture)", whole)
    going, turn = waits & (most > [s.count for s in said]), turn + 1
  empty = np.zeros((0, cfg.slots, cfg.backbone.dim), np.float32)
  return [Answer(s.tokens, s.words, np.stack(s.vectors) if s.vectors else empty) for s in said]


def _words(
  network: Network,
  state: decoding.State,
  rules: decoding.Rules,
  keys: jax.Array | None,
  said: Sequence["_Said"],
  listening: tuple[Listen | None, int],
) -> tuple[decoding.State, np.ndarray]:
  """Words of each row up to a stop; the state after them, and bool[B], which wait at a picture."""
  (listen, chunk), longest, most = listening, rules.forced.shape[1], np.asarray(rules.length)
  answers, going, waits = first(network, state, rules, keys), most > 0, most < 0
  done, until, boi = 0, 1, network.module().cfg.boi
  while going.any():
    ids = np.array(answers.ids)  # a copy, for the answers are given away
    for row in map(int, np.flatnonzero(going)):
      new = _until(ids[row, done : min(until, most[row])].tolist(), rules.stops)
      if decoding.BROKEN in new:
        raise finite.fault("language model", network)
      said[row].hear(new, rules.stops)
      kept = listen is None or listen(row, new)
      waits[row] = kept and new[-1] == boi
      going[row] = kept and new[-1] not in rules.stops and until < most[row]
    done, until = until, min(until + (chunk or longest), longest)
    if going.any():
      left = dataclasses.replace(answers, ended=~going)  # type: ignore[arg-type]
      answers = more(network, left, rules, keys, np.int32(until))
  return answers.state, waits


@program(static_argnums=2)
def start(network: Network, prompt: Mapping[str, Any], room: int) -> decoding.State:
  """Reads prompts (see `answer`), with room for so many positions after them."""
  module: NexusGen = network.module()
  seen = module.seen(prompt["tokens"], prompt.get("patches"), prompt.get("layout"))
  inputs = module.inputs(prompt["tokens"], seen=seen)
  return decoding.begin(module.part("backbone"), inputs, prompt, room)


@program(donate_argnums=1)
def first(
  network: Network, state: decoding.State, rules: decoding.Rules, keys: jax.Array | None
) -> decoding.Answers:
  """The first word of every row, see `decoding.first`."""
  return decoding.first(network.module().part("backbone"), state, rules, keys)


@program(donate_argnums=1)
def more(
  network: Network,
  answers: decoding.Answers,
  rules: decoding.Rules,
  keys: jax.Array | None,
  until: jax.Array,
) -> decoding.Answers:
  """Words of every row up to a stop or `until` of them, see `decoding.more`."""
  return decoding.more(network.module().part("backbone"), answers, rules, keys, until)


@jax.jit
def _turned(keys: jax.Array, turn: jax.Array) -> jax.Array:
  """The keys of each row after so many pictures."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, turn)


@program(donate_argnums=1)
def look(
  network: Network, state: decoding.State, rows: jax.Array, after: jax.Array
) -> tuple[jax.Array, decoding.State]:
  """The vectors of a picture of each of some rows, which said the mark before it, in one pass.

  What stands at a slot depends on no vector, so a causal pass over the mark and the slots gives
  them all. The last slot and the mark after it are read for the words that follow alone.

  Args:
    rows: bool[B]; the others wait. after: int32[], where that mark stands, from the first slot on.

  Returns:
    float32[B, n, D], of the other rows without meaning, and the state after the second mark.
  """
  module: NexusGen = network.module()
  cfg, language, batch = module.cfg, module.part("backbone"), len(rows)
  ids = jnp.asarray([cfg.boi, *[cfg.image_token] * cfg.slots, cfg.eoi], jnp.int32)
  ids = jnp.broadcast_to(ids, (batch, len(ids)))
  marks = language.embed(ids[:, (0, -1)])
  slots = module.part("slots")(batch, marks.dtype)
  inputs = jnp.concatenate([marks[:, :1], slots, marks[:, 1:]], 1)
  places = positions(cfg, state.at, after)
  hidden, state = decoding.read(language, state, ids, inputs, places, rows)
  vectors = module.part("vision_head")(hidden[:, : cfg.slots])
  return vectors.astype(jnp.float32), state


def positions(cfg: Config, at: jax.Array, after: jax.Array) -> jax.Array:
  """Of the mark, the slots and the mark after them, int32[3, B, 1 + n + 1] (spec 2.4).

  Args:
    at: int32[B], of the first. after: int32[], of the last, from the first slot on.
  """
  side = cfg.target_grid // cfg.visual.merge
  cells = np.zeros((3, cfg.slots), np.int32)
  cells[1:] = np.indices((side, side)).reshape(2, -1)
  steps = jnp.concatenate([jnp.full((3, 1), -1), cells, jnp.full((3, 1), after)], 1)
  return at[None, :, None] + 1 + steps[:, None]


@program()
def predict(network: Network, batch: Mapping[str, Any]) -> jax.Array:
  """The vectors float32[B, n, D] of rows that hold their answer, see `NexusGen.vectors`."""
  return network.module().vectors(batch).astype(jnp.float32)


class _Said:
  """An `Answer` in the making."""

  def __init__(self) -> None:
    self.tokens: list[int] = []
    self.words: list[list[int]] = [[]]
    self.vectors: list[np.ndarray] = []
    self.count = 0  # of words, and of marks before pictures

  def hear(self, ids: list[int], stops: Any) -> None:
    """Words up to a stop, if one ended them."""
    self.tokens += ids
    self.count += len(ids)
    self.words[-1] += ids[:-1] if ids[-1] in stops else ids

  def look(self, vectors: np.ndarray, ids: list[int]) -> None:
    """A picture: its vectors, and the ids of its slots and of the mark after them."""
    self.tokens += ids
    self.vectors.append(vectors)
    self.words.append([])


def _until(ids: list[int], stops: Any) -> list[int]:
  """Ids up to the first stop, and with it."""
  ends = [i for i, token in enumerate(ids) if token in stops or token == decoding.BROKEN]
  return ids[: ends[0] + 1] if ends else ids


def _banned(banned: np.ndarray, full: np.ndarray, boi: int) -> np.ndarray:
  """int32[B, BANNED]: for rows that have all their pictures the mark before one too."""
  out = np.repeat(banned[None], len(full), 0)
  out[:, -1] = np.where(full, boi, -1)
  return out


def _roomy(state: decoding.State, needed: int) -> decoding.State:
  """The state with a cache that has at least so many free positions, of one of a few sizes."""
  cache = state.cache
  size, used = cache.segments.shape[1], int(cache.length)
  if used + needed <= size:
    return state
  more = buckets.power(used + needed, ROOM) - size
  room = ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))
  grown = dataclasses.replace(
    cache,
    k=jnp.pad(cache.k, room),
    v=jnp.pad(cache.v, room),
    segments=jnp.pad(cache.segments, ((0, 0), (0, more))),
  )
  return dataclasses.replace(state, cache=grown)
