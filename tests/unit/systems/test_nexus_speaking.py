"""Nexus-Gen's language model at random: slots in one pass, answers, losses and sizes."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_blip3o_step
from test_decoding import compiled

from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import flux
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.nexus_gen import losses
from blip3o_jax.systems.nexus_gen import model as nexus
from blip3o_jax.systems.nexus_gen import sizes
from blip3o_jax.systems.nexus_gen import speaking
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import flops as parts
from blip3o_jax.systems.parts.network import Network

__all__ = ["compiled"]
CFG = nexus.Config(
  backbone=decoder_lm.Config(
    vocab_size=24,
    dim=16,
    depth=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_dim=24,
    mrope_section=(1, 1, 2),
  ),
  visual=qwen_vision.Config(
    dim=16, depth=1, heads=2, mlp_dim=16, out_dim=16, patch_size=4, window_size=16, full_layers=(0,)
  ),
  flux=flux.Config(dim=16, heads=1, axes=(4, 6, 6), context_dim=8, pooled_dim=4, double_depth=1),
  autoencoder=autoencoder.Config(latent_channels=16),
  slots=9,
  target_grid=6,
  image_token=12,
  boi=17,
  eoi=22,
  parts=("visual", "language"),
)
PROMPTS = ([3, 5, 7, 5], [9, 2], [4, 4, 8], [1, 6, 2, 11])
LENGTH, END, MOST = 16, 23, 3
SIDE = CFG.target_grid // CFG.visual.merge
operations = nexus.operations  # the package's own name `flops` is the function of the contract


@pytest.fixture(scope="module")
def network(fill: Callable[..., Any]) -> Network:
  return Network.of(fill(lambda: nexus.build(CFG, nnx.Rngs(0))))


def prompt(rows: Any) -> dict[str, Any]:
  tokens, segments = chat.pad_left(rows, 6, 0)
  positions, deltas = mrope.mrope_positions(tokens, segments, [], CFG.image_token, 2)
  return {"tokens": tokens, "segments": segments, "positions": positions, "deltas": deltas}


def rules(count: int, **options: Any) -> decoding.Rules:
  return speaking.rules(CFG, count, options.pop("length", LENGTH), 24, (END,), **options)


@pytest.fixture(scope="module")
def answers(network: Network) -> list[speaking.Answer]:
  return speaking.answer(network, prompt(PROMPTS), rules(4), pictures=MOST)


# Answers ------------------------------------------------------------------------------------------


@jax.jit
def whole(network: Network, batch: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
  """Scores and vectors at every place of whole rows, in one pass without a cache."""
  module = network.module()
  hidden = module.hidden(batch)
  return module.backbone.logits(hidden), module.vision_head(hidden)


def test_pictures_and_words_of_unlike_rows_equal_whole_passes(network, answers):
  """Each row alone, as training has it: every word the likeliest, every vector the same."""
  rows = [asked + answer.tokens for asked, answer in zip(PROMPTS, answers, strict=True)]
  tokens = np.zeros((4, max(map(len, rows))), np.int32)
  for b, row in enumerate(rows):
    tokens[b, : len(row)] = row
  segments = (np.arange(tokens.shape[1]) < np.array([[len(row)] for row in rows])).astype(np.int32)
  drawn = [len(answer.vectors) for answer in answers]
  assert max(drawn) > 1 < len(set(drawn)), f"{drawn} pictures: too few or alike to try anything"
  grids = [(CFG.target_grid,) * 2] * sum(drawn)
  positions, _ = mrope.mrope_positions(tokens, segments, grids, CFG.image_token, 2)
  labels = np.where(tokens == CFG.image_token, CFG.image_token, chat.IGNORED)
  batch = {
    "tokens": tokens,
    "segments": segments,
    "labels": np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=chat.IGNORED),
    "positions": np.moveaxis(positions, 1, 0),
  }
  scores, vectors = map(np.array, whole(network, batch))
  scores[..., CFG.eoi] = -np.inf
  for b, (asked, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
    read = vectors[b, np.flatnonzero(batch["labels"][b] == CFG.image_token)]
    np.testing.assert_allclose(answer.vectors.reshape(-1, 16), read, rtol=1e-4, atol=1e-5)
    pictures = 0
    for t, token in enumerate(rows[b]):
      if t >= len(asked) and token not in (CFG.image_token, CFG.eoi):
        if pictures == MOST:
          scores[b, t - 1, CFG.boi] = -np.inf
        assert token == scores[b, t - 1].argmax(), (b, t)
        pictures += token == CFG.boi


def test_words_stand_between_pictures(answers):
  for answer in answers:
    picture = [CFG.boi, *[CFG.image_token] * CFG.slots, CFG.eoi]
    found = answer.words[0]
    assert len(answer.words) == len(answer.vectors) + 1
    for words in answer.words[1:]:
      found = found + picture + words
    assert found == [i for i in answer.tokens if i != END]
    said = sum(map(len, answer.words)) + len(answer.vectors)
    assert said + (answer.tokens[-1] == END) == LENGTH or answer.tokens[-1] == END


def test_a_row_among_its_like(network, answers, compiled):
  """Where no row ever waits for another; nothing is compiled again."""
  for row in (1, 3):
    alike = speaking.answer(network, prompt([PROMPTS[row]] * 4), rules(4), pictures=MOST)
    assert [answer.tokens for answer in alike] == [answers[row].tokens] * 4
    np.testing.assert_allclose(alike[0].vectors, answers[row].vectors, rtol=1e-4, atol=1e-5)
  assert not compiled


def test_slots_in_one_pass_equal_the_loop(network):
  """The parallel pass against reading one position after the other, as the reference does."""
  at, room = np.array([True, False, True, True]), LENGTH + CFG.slots + 2
  waits = speaking.start(network, prompt(PROMPTS), room)
  vectors, state = speaking.look(network, jax.tree.map(np.array, waits), at, np.int32(SIDE))

  @jax.jit
  def step(network: Network, state: decoding.State, ids: Any, x: Any, positions: Any) -> Any:
    module = network.module()
    hidden, state = decoding.read(module.backbone, state, ids, x, positions, jnp.asarray(at))
    return module.vision_head(hidden[:, 0]), state

  flat = {path: np.asarray(leaf) for path, leaf in trees.flatten(network.params).items()}
  words, slots = flat["backbone/embed_tokens/embedding"], flat["slots/embedding"]
  cells = np.indices((SIDE, SIDE)).reshape(2, -1)
  found, one, start = [], waits, np.asarray(waits.at)
  for k, token in enumerate([CFG.boi, *[CFG.image_token] * CFG.slots, CFG.eoi]):
    x, place = words[token], np.full(3, k)
    if token == CFG.image_token:
      x, place = slots[k - 1], 1 + np.array([0, *cells[:, k - 1]])
    elif token == CFG.eoi:
      place = np.full(3, 1 + SIDE)
    given = np.full((4, 1), token, np.int32)
    x, place = np.broadcast_to(x, (4, 1, 16)), (place[:, None] + start).astype(np.int32)[..., None]
    read, one = step(network, one, given, x, place)
    found.append(np.asarray(read))
  found = np.stack(found[: CFG.slots], 1)
  np.testing.assert_allclose(vectors[at], found[at], rtol=1e-4, atol=1e-5)
  for name in ("hidden", "said", "at"):
    np.testing.assert_allclose(getattr(state, name), getattr(one, name), rtol=1e-4, atol=1e-5)
  after = start + at * (1 + SIDE + 1)
  np.testing.assert_array_equal(state.at, after)
  assert not np.asarray(state.cache.segments)[1, 6:].any(), "what a row that waits does not read"


def test_words_alone_and_an_unknown_tail(network):
  for answer in speaking.answer(network, prompt(PROMPTS), rules(4), pictures=0):
    assert CFG.boi not in answer.tokens
    assert answer.vectors.shape == (0, CFG.slots, 16)
  with pytest.raises(ValueError, match="tail 'released': expected one of training, reference"):
    speaking.answer(network, prompt(PROMPTS), rules(4), tail="released")


def test_a_vector_that_is_not_finite_is_an_error(network):
  flat = trees.flatten(network.params)
  head = flat["vision_head/kernel"].at[0, 0].set(jnp.nan)
  broken = Network(network.graphdef, trees.unflatten(flat | {"vision_head/kernel": head}))
  with pytest.raises(ValueError, match=r"vectors of a picture.*vision_head/kernel"):
    speaking.answer(broken, prompt(PROMPTS), rules(4, forced=(CFG.boi,)), pictures=1)


# Losses -------------------------------------------------------------------------------------------


def test_the_cosine_is_finite_at_zero():
  """A vector of zeros, and one below the floor of a norm (spec 2.5)."""
  found = jnp.stack([jnp.zeros(4), jnp.full(4, 1e-12), jnp.ones(4)])[None]
  wanted, read = jnp.ones((1, 3, 4)), jnp.ones((1, 3), bool)

  def loss(x: jax.Array) -> jax.Array:
    return losses.regression(x, wanted, read, jnp.float32(3))[0]

  value, grad = jax.jit(jax.value_and_grad(loss))(found)
  small = 1e-12 * 4 / (1e-8 * 2)
  assert float(value) == pytest.approx((0.5 * 2 + 0.5 * (1 + 1 - small)) / 3, rel=1e-5)
  assert np.isfinite(grad).all()


# Sizes --------------------------------------------------------------------------------------------


def test_released_sizes_are_those_of_the_specification():
  module = layers.abstract(lambda rngs: nexus.build(sizes.released(), rngs))
  counts: dict[str, int] = {}
  for path, leaf in trees.flatten(nnx.to_pure_dict(nnx.state(module))).items():
    top = path.split("/")[0]
    counts[top] = counts.get(top, 0) + math.prod(leaf.shape)
  language = sum(counts[name] for name in ("backbone", "visual", "vision_head", "slots"))
  assert language == 8_305_302_016
  assert counts["visual"] == 676_550_144
  assert counts["vision_head"] == 12_845_056
  assert counts["slots"] == 290_304
  assert counts["generator"] == 11_932_890_176
  assert counts["editor"] == 12_260_339_776
  assert counts["autoencoder"] == 83_819_683
  assert counts["constants"] == 768 + 512 * 4096


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"slots": 81}, "slots 81: expected 9"),
    ({"target_grid": 5, "slots": 4}, "target_grid 5 is not a multiple of visual.merge 2"),
    ({"boi": 12}, "three ids below backbone.vocab_size 24"),
    ({"eoi": 24}, "three ids below backbone.vocab_size 24"),
    ({"stage": "editing"}, "stage 'editing' needs the part 'editor'"),
    ({"autoencoder": autoencoder.Config()}, "flux.in_channels 64 is not 16"),
    (
      {"backbone": dataclasses.replace(CFG.backbone, dim=32)},
      "visual.out_dim 16 is not backbone.dim 32",
    ),
  ],
)
def test_sizes_that_do_not_agree(changes, text):
  with pytest.raises(ValueError, match=text):
    dataclasses.replace(CFG, **changes)


def test_operations_are_those_of_the_program(fill):
  """Matmuls of the painters' forward pass, as `flops` counts them."""
  cfg = dataclasses.replace(CFG, reference_grid=12, base_grid=24, parts=nexus.PARTS)
  module = layers.abstract(lambda rngs: nexus.build(cfg, rngs))
  vectors, reference = (jax.ShapeDtypeStruct((1, n, 16), jnp.float32) for n in (9, 36))
  latents = jax.ShapeDtypeStruct((1, 8, 12, 16), jnp.float32)

  def paint(decoder: Any, constants: Any, x: Any, given: Any) -> Any:
    condition = decoder.condition(constants, *given, (8, 12))
    return decoder.velocity(x, jnp.ones(1), condition)

  for decoder, given, made in (
    (module.generator, (vectors, None), operations.adapter(cfg, 9)),
    (module.editor, (vectors, reference), operations.merger(cfg, 45)),
  ):
    program = jax.make_jaxpr(paint)(decoder, module.constants, latents, given)
    tokens = 9 if given[1] is None else 45
    wanted = made + operations.velocity(cfg.flux, 24, tokens)
    assert test_blip3o_step.operations(program.jaxpr) == pytest.approx(wanted, rel=1e-3)


def test_a_step_costs_what_its_stage_does():
  cfg = dataclasses.replace(sizes.released(), stage="editing")
  spec = nexus.batch_spec(cfg, 2, 512)
  live = nexus.flops(cfg, spec)
  cached = nexus.flops(cfg, {"pixels": spec["pixels"]})
  made = operations.merger(cfg, 405) + operations.velocity(cfg.flux, 1024, 405)
  assert cached == pytest.approx(2 * (3 * made + parts.encode(cfg.autoencoder, 512)))
  seen = parts.qwen(cfg.visual, spec["patches"].shape[2])
  reference = parts.qwen(cfg.visual, 36**2)
  language = parts.decoder(cfg.backbone, 512) + 2 * 81 * cfg.backbone.dim**2
  assert live - cached == pytest.approx(2 * (seen + reference + language), rel=1e-6)
  cfg = dataclasses.replace(cfg, stage="language")
  rows = nexus.flops(cfg, nexus.batch_spec(cfg, 2, 512))
  head = 2 * 512 * cfg.backbone.dim * (cfg.backbone.vocab_size + cfg.backbone.dim)
  forward = parts.decoder(cfg.backbone, 512) + head
  assert rows == pytest.approx(2 * (2 * seen + 3 * forward))


def test_what_a_stage_does_not_reach_is_not_trained():
  nexus.check(CFG, ["backbone/norm/scale", "slots/embedding"])
  with pytest.raises(ValueError, match=r"generator/dit.* has no gradient in the stage 'language'"):
    nexus.check(CFG, ["backbone/norm/scale", "generator/dit/x/kernel"])


def test_an_absent_part_is_named():
  cfg = dataclasses.replace(CFG, parts=("language",))
  module = layers.abstract(lambda rngs: nexus.build(cfg, rngs))
  ids = np.zeros((1, 4), np.int32)
  names = ("patches", "patch_positions", "patch_windows", "patch_segments")
  batch: Any = {"tokens": ids, "labels": ids} | dict.fromkeys(names, ids)
  with pytest.raises(ValueError, match="needs the part 'visual', absent"):
    module.loss(batch, jax.random.key(0), {})
