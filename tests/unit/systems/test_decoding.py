"""Text of a language model: what may be said, what ends it, and that nothing is compiled twice."""

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from blip3o_jax.models import decoder_lm
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import painter

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"
COMPILED = "/jax/core/compile/backend_compile_duration"
CFG = decoder_lm.Config(
  vocab_size=24, dim=16, depth=2, heads=2, kv_heads=1, head_dim=8, mlp_dim=24,
  mrope_section=(1, 1, 2),
)  # fmt: skip
PROMPTS = np.array([[3, 5, 7, 5], [0, 0, 9, 2]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 1], [0, 0, 1, 1]], np.int32)


@pytest.fixture(scope="module")
def language(fill: Callable[..., Any]) -> decoder_lm.DecoderLM:
  return fill(lambda: decoder_lm.DecoderLM(CFG, rngs=nnx.Rngs(0)))


def write(language: Any, seed: int | None = None, **options: Any) -> np.ndarray:
  """Ids of both prompts; stops are 1 and 0, of which 0 fills."""
  options = {"length": 6, "allowed": 24, "stops": (1, 0)} | options
  prompt = {
    "tokens": PROMPTS,
    "segments": SEGMENTS,
    "positions": decoder_lm.plain_positions(jnp.asarray(SEGMENTS)),
    "deltas": -np.sum(SEGMENTS == 0, 1, keepdims=True),
  }
  rules = decoding.rules(2, **options)
  keys = None if seed is None else jax.random.split(jax.random.key(seed))
  inputs = language.embed(jnp.asarray(PROMPTS))
  state = decoding.begin(language, inputs, prompt, rules.forced.shape[1])
  out, _ = decoding.go_on(language, state, rules, keys)
  return np.asarray(out)[:, : options["length"]]


def by_hand(language: Any, row: int, length: int, penalty: float = 1.0) -> list[int]:
  """The likeliest id again and again, each time by a whole forward pass."""
  ids = [int(t) for t, s in zip(PROMPTS[row], SEGMENTS[row], strict=True) if s]
  start = len(ids)
  while len(ids) < start + length:
    n = len(ids)
    x = language.embed(jnp.asarray([ids]))
    hidden = language(x, jnp.arange(n)[None], jnp.ones((1, n), jnp.int32))
    scores = np.array(language.logits(hidden)[0, -1])
    for i in set(ids):
      scores[i] = scores[i] * penalty if scores[i] < 0 else scores[i] / penalty
    ids.append(int(scores.argmax()))
  return ids[start:]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 4.0])
def test_greedy_equals_whole_passes(language: Any, penalty: float) -> None:
  found = write(language, stops=(0,), limits=decoding.Limits(penalty=penalty))
  for row in range(2):
    wanted = by_hand(language, row, 6, penalty)
    end = wanted.index(0) + 1 if 0 in wanted else 6
    assert found[row, :end].tolist() == wanted[:end]
    assert set(found[row, end:].tolist()) <= {0}


def test_penalty_changes_what_is_said(language: Any) -> None:
  assert by_hand(language, 0, 6) != by_hand(language, 0, 6, 4.0)


def test_forced_stops_length_and_allowed(language: Any) -> None:
  free = write(language)
  begun = write(language, forced=[7, 8])
  assert begun[:, :2].tolist() == [[7, 8]] * 2
  stop = int(free[0, 1])
  ended = write(language, stops=(stop, 0))
  first = free[0].tolist().index(stop)
  assert ended[0].tolist() == [*free[0, : first + 1].tolist(), *[0] * (5 - first)]
  np.testing.assert_array_equal(write(language, length=3), free[:, :3])
  assert write(language, allowed=5).max() < 5
  with pytest.raises(ValueError, match="of 1 tokens cannot begin with 2"):
    write(language, length=1, forced=[7, 8])
  with pytest.raises(ValueError, match=r"top_p 0\.0"):
    decoding.Limits(top_p=0.0)


def test_the_likeliest_alone_are_drawn(language: Any) -> None:
  hot = {"temperature": 50.0}
  greedy = write(language)
  np.testing.assert_array_equal(write(language, 3, limits=decoding.Limits(top_k=1), **hot), greedy)
  small = decoding.Limits(top_p=1e-6)
  np.testing.assert_array_equal(write(language, 3, limits=small, **hot), greedy)
  assert (write(language, 3, **hot) != greedy).any()
  scores = jnp.log(jnp.asarray([[0.1, 0.5, 0.15, 0.25]]))
  for limits, kept in (
    (decoding.Limits(top_p=0.7), [1, 3]),
    (decoding.Limits(top_k=3), [1, 2, 3]),
    (decoding.Limits(top_k=3, top_p=0.8), [1, 3]),
  ):
    rules = decoding.rules(1, 1, 4, (0,), limits=limits)
    found = decoding._filtered(scores, rules)
    assert np.flatnonzero(np.isfinite(found[0])).tolist() == kept


@pytest.fixture
def compiled() -> Iterator[list[str]]:
  """Grows by one for each program that is compiled."""
  seen: list[str] = []
  listening = [True]

  def listen(name: str, duration: float, **more: Any) -> None:
    del duration, more
    if listening[0] and name == COMPILED:
      seen.append(name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield seen
  listening[0] = False


def test_twenty_calls_compile_nothing(compiled: list[str]) -> None:
  """After one call of a bucket another guidance, batch, number of steps or length compiles none."""
  model = verbs.load(TINY)
  picture = Image.fromarray(np.full((60, 60, 3), 90, np.uint8))
  words = ["a cat", "two dogs", "sky", "a red hat"]
  model.generate(words, range(4), steps=2, pixel_steps=2)
  model.chat(words, [picture] * 4, length=2)
  warm = len(compiled)
  assert warm > 0
  for count, steps, scale, pixel_steps in (
    (3, 2, 3.0, 2), (4, 3, 3.0, 1), (3, 1, 1.5, 3), (4, 5, 7.0, 2), (3, 4, 2.0, 4),
    (4, 2, 0.5, 2), (3, 6, 3.5, 1), (4, 1, 4.0, 1), (3, 3, 6.0, 2), (4, 7, 2.5, 3),
  ):  # fmt: skip
    texts = words[:count]
    model.generate(texts, range(count), steps=steps, scale=scale, pixel_steps=pixel_steps)
  for count, length, penalty in (
    (3, 3, 1.0), (4, 5, 1.0), (3, 1, 1.1), (4, 16, 1.0), (3, 7, 1.2),
    (4, 2, 1.05), (3, 9, 1.0), (4, 12, 1.3), (3, 2, 1.0), (4, 1, 1.0),
  ):  # fmt: skip
    limits = decoding.Limits(penalty=penalty)
    model.chat(words[:count], [picture] * count, length=length, limits=limits)
  assert len(compiled) == warm


def test_a_picture_conditions_a_picture() -> None:
  """It changes the result; a prompt without one is the plain form, also beside one with."""
  model = verbs.load(TINY)
  rng = np.random.default_rng(0)
  one, other = (Image.fromarray(rng.integers(0, 255, (60, 90, 3), np.uint8)) for _ in range(2))
  texts = ["a cat", "two dogs"]
  plain = model.features(texts, [1, 2], steps=2)
  np.testing.assert_array_equal(model.features(texts, [1, 2], images=[None, None], steps=2), plain)
  shown, changed = (model.features(texts, [1, 2], images=[p, None], steps=2) for p in (one, other))
  np.testing.assert_allclose(shown[1], plain[1], rtol=2e-3, atol=2e-4)
  np.testing.assert_array_equal(shown[1], changed[1])
  assert np.abs(shown[0] - changed[0]).max() > 1e-3
  assert np.abs(shown[0] - plain[0]).max() > 1e-3


@pytest.mark.parametrize(("rows", "scale", "available"), [(2, 2.0, 1), (2, 1.0, 2), (1, 2.0, 1)])
def test_painting_finds_the_programs_compiled_for_it(
  compiled: list[str], monkeypatch: pytest.MonkeyPatch, rows: int, scale: float, available: int
) -> None:
  monkeypatch.setattr(cores, "count", lambda: available)
  model = verbs.load(TINY)
  assert model.decoder is not None
  shape = (model.cfg.grid, model.cfg.grid, model.cfg.channels)
  jax.clear_caches()
  painter.compile_for(model.decoder, rows, shape, guided=scale != 1)
  assert len(compiled) >= 3
  warm = len(compiled)
  seeds, features = list(range(rows)), np.ones((rows, *shape))
  painter.paint(model.decoder, features, seeds, steps=2, scale=scale)
  painter.paint(model.decoder, features, seeds, steps=3, scale=scale, watch=lambda step: None)
  assert len(compiled) == warm


def test_answers_that_go_on_and_banned_ids(language: Any) -> None:
  """In two halves, of which one row waits; what it does not say stays out of its cache."""
  prompt = {
    "tokens": PROMPTS,
    "segments": SEGMENTS,
    "positions": decoder_lm.plain_positions(jnp.asarray(SEGMENTS)),
    "deltas": -np.sum(SEGMENTS == 0, 1, keepdims=True),
  }
  inputs, size = language.embed(jnp.asarray(PROMPTS)), PROMPTS.shape[1]
  began = jax.jit(lambda: decoding.begin(language, inputs, prompt, 16))()
  rules = decoding.rules(2, 6, 24, (-1,), limits=decoding.Limits(penalty=1.3))

  @jax.jit
  def say(state: Any, rules: Any) -> Any:
    return decoding.go_on(language, state, rules)

  @jax.jit
  def read(state: Any, ids: Any, rows: Any) -> Any:
    x, at = language.embed(ids), state.at[:, None]
    return decoding.read(language, state, ids, x, at, rows)[1]

  def of(*lengths: int) -> decoding.Rules:
    return rules._replace(length=np.array(lengths, np.int32))

  whole, _ = say(began, of(6, 6))
  first, state = say(began, of(3, 0))
  assert first[0, :3].tolist() == whole[0, :3].tolist()
  assert set(np.asarray(first)[1].tolist()) == {-1}
  state = read(state, np.asarray(first)[:, 2:3].clip(0), np.array([True, False]))
  rest, state = say(state, of(3, 6))
  assert rest[0, :3].tolist() == whole[0, 3:6].tolist()
  assert rest[1, :6].tolist() == whole[1, :6].tolist()
  assert np.asarray(state.cache.segments)[:, size:].sum(1).tolist() == [5, 5]
  # Of all rows, or of one.
  banned = of(6, 6)._replace(banned=np.array([[int(whole[0, 0]), -1, -1, -1], [-1] * 4], np.int32))
  other, _ = say(began, banned)
  assert int(whole[0, 0]) not in np.asarray(other)[0, :6]
  assert other[1].tolist() == whole[1].tolist()
  alike = decoding.rules(2, 6, 24, (-1,), banned=(int(whole[0, 0]), 23))
  assert alike.banned.tolist() == [int(whole[0, 0]), 23, -1, -1]
  with pytest.raises(ValueError, match="5 ids that are never chosen, expected at most 4"):
    decoding.rules(2, 6, 24, (-1,), banned=range(5))
