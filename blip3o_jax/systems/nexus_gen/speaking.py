"""Answers with pictures: words until one begins, its vectors in one pass, then words again.

    prompt ─► start ─► say: words, up to the mark before a picture or the end ─► answer
                        ▲                              │
                        └── look: mark, slots, mark ◄──┘─► vectors

Rows of a batch say words together until each has ended or waits at a picture, then those that wait
look together; who has nothing to read meanwhile leaves a gap in the cache that nobody sees. Shapes
are static: `start`, `say` and `look` are each compiled once for a bucket (Nexus-Gen spec 2.7).
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.nexus_gen.model import NexusGen
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import finite
from blip3o_jax.systems.parts.network import Network

# Where words after a picture stand: after its last row, as in training, or as the reference's loop
# has it after as many positions as it has slots (spec 11, Q2).
Tail = Literal["training", "reference"]
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
  key: jax.Array | None = None,
) -> list[Answer]:
  """Answers to padded prompts, each with up to so many pictures.

  Args:
    network: of `NexusGen` with the part "language", and "visual" for prompts with pictures.
    prompt: tokens, segments int[B, P], left-padded, positions int[3, B, P], deltas int[B, 1] (see
      `decoding.write`), and `patches` and `layout` of its pictures, if any.
    rules: see `rules`. pictures: after them an answer goes on in words; 0 is words alone.
    key: of what is drawn; None takes the likeliest ids.

  Raises:
    ValueError: an unknown tail; scores or vectors that are not finite, by name.
  """
  cfg: Config = network.module().cfg
  after = {"training": cfg.target_grid // cfg.visual.merge, "reference": cfg.slots}
  if tail not in after:
    raise ValueError(f"tail {tail!r}: expected one of {', '.join(after)}")
  batch, longest = rules.forced.shape
  said = [_Said() for _ in range(batch)]
  left = np.broadcast_to(np.asarray(rules.length), batch).copy()
  going, turn = left > 0, 0
  state = start(network, prompt, longest + cfg.slots + 2)
  while going.any():
    full = np.array([len(s.vectors) >= pictures for s in said])
    told = rules._replace(
      length=np.where(going, left, 0).astype(np.int32),
      banned=_banned(rules.banned, full, cfg.boi),
      forced=rules.forced if not turn else np.full_like(rules.forced, -1),
    )
    turned = None if key is None else jax.random.fold_in(key, turn)
    ids, state = say(network, _roomy(state, int(told.length.max())), told, turned)
    waits = np.zeros(batch, bool)
    for row in np.flatnonzero(going):
      new = _until(np.asarray(ids)[row, : left[row]].tolist(), rules.stops)
      left[row] -= len(new)
      waits[row] = new[-1] == cfg.boi
      said[row].hear(new, rules.stops)
    if any(decoding.BROKEN in s.tokens for s in said):
      raise finite.fault("language model", network)
    if waits.any():
      found, state = look(network, _roomy(state, cfg.slots + 2), waits, np.int32(after[tail]))
      for row in np.flatnonzero(waits):
        said[row].look(np.asarray(found)[row], [cfg.image_token] * cfg.slots + [cfg.eoi])
        finite.check(said[row].vectors[-1], "language model (vectors of a picture)", network)
    going, turn = waits & (left > 0), turn + 1
  empty = np.zeros((0, cfg.slots, cfg.backbone.dim), np.float32)
  return [Answer(s.tokens, s.words, np.stack(s.vectors) if s.vectors else empty) for s in said]


@functools.partial(jax.jit, static_argnums=2)
def start(network: Network, prompt: Mapping[str, Any], room: int) -> decoding.State:
  """Reads prompts (see `answer`), with room for so many positions after them."""
  module: NexusGen = network.module()
  seen = module.seen(prompt["tokens"], prompt.get("patches"), prompt.get("layout"))
  inputs = module.inputs(prompt["tokens"], seen=seen)
  return decoding.begin(module.part("backbone"), inputs, prompt, room)


@functools.partial(jax.jit, donate_argnums=1)
def say(
  network: Network, state: decoding.State, rules: decoding.Rules, key: jax.Array | None
) -> tuple[jax.Array, decoding.State]:
  """Words int32[B, L] of every row up to a stop, see `decoding.go_on`."""
  return decoding.go_on(network.module().part("backbone"), state, rules, key)


@functools.partial(jax.jit, donate_argnums=1)
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


@jax.jit
def predict(network: Network, batch: Mapping[str, Any]) -> jax.Array:
  """The vectors float32[B, n, D] of rows that hold their answer, see `NexusGen.vectors`."""
  return network.module().vectors(batch).astype(jnp.float32)


class _Said:
  """An `Answer` in the making."""

  def __init__(self) -> None:
    self.tokens: list[int] = []
    self.words: list[list[int]] = [[]]
    self.vectors: list[np.ndarray] = []

  def hear(self, ids: list[int], stops: Any) -> None:
    """Words up to a stop, if one ended them."""
    self.tokens += ids
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
