"""Nexus-Gen's language model against the recorded PyTorch reference: training, answers, vectors."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from nexus_miniature import CFG
from nexus_miniature import RECORDED
from nexus_miniature import TINY
from nexus_miniature import grids_of
from nexus_miniature import load
from nexus_miniature import pictures
from nexus_miniature import recorded
import numpy as np
import pytest

from blip3o_jax import trees
from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.systems.nexus_gen import model as nexus
from blip3o_jax.systems.nexus_gen import rows as nexus_rows
from blip3o_jax.systems.nexus_gen import speaking
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import places
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.verify.compare import relative_error
from blip3o_jax.weights import table
from blip3o_jax.weights.safetensors import Tensors

# Largest absolute rounding of the reference itself, as its README says; of gradients a share of
# their largest entry. What is not said there is held to the relative bar alone.
ROUNDING = {"hidden": 7e-6, "logits": 2e-5, "images": 5e-7}
RELEASED, FIRST = (3.0, 3.0), (0.1, 1.0)  # weights of text and image in V2's training, in V1's
END = json.loads((TINY / "config.json").read_text())["eos_token_id"]
TABLE = nexus_rows.language_rows()
GRADIENT, RELATIVE, SLACK = 1e-5, 1e-5, 1.5
PROMPT, ROOM = 96, 80 * 4  # tokens a prompt and patches a picture of the batch of unlike prompts
Check = Callable[..., None]


@pytest.fixture(scope="module")
def network() -> Network:
  """The miniature."""
  tensors = Tensors(TINY)
  return load(CFG, dict(tensors), tensors.read)


def first_version(network: Network) -> Network:
  """The same weights as V1 has them: the row of the slot's id at every slot (spec 2.6)."""
  params = trees.flatten(network.params)
  rows = nexus_rows.repeated(params["backbone/embed_tokens/embedding"], CFG.image_token, CFG.slots)
  return Network(network.graphdef, trees.unflatten(params | {"slots/embedding": rows}))


@pytest.fixture
def near(check: Check) -> Check:
  """near(name, value, rounding): 1.5 times the rounding of each value, or the relative bar."""

  def run(name: str, found: Any, rounding: float = 0.0, wanted: Any = None) -> None:
    wanted = recorded(name) if wanted is None else wanted
    found = np.asarray(found, np.float64)
    assert found.shape == wanted.shape, name
    if np.max(np.abs(found - wanted), initial=0) > SLACK * rounding:
      check(name, found, RELATIVE / SLACK, wanted)

  return run


# Rows of the recordings, as a system's batches have them ------------------------------------------


def training_batch() -> dict[str, np.ndarray]:
  """The recorded one; a label is the id that the place before it predicts."""
  tokens, mask, labels = (
    recorded(f"train.{k}").astype(np.int32) for k in ("input_ids", "attention_mask", "labels")
  )
  grids = grids_of("train")
  positions, _ = mrope.mrope_positions(tokens, mask, grids, CFG.image_token, CFG.visual.merge)
  np.testing.assert_array_equal(positions, recorded("train.position_ids"))
  shifted = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
  rows = {
    "tokens": tokens,
    "segments": mask,
    "labels": np.where(shifted < 0, chat.IGNORED, shifted),
    "positions": np.moveaxis(positions, 1, 0),
  }
  return rows | pictures(recorded("train.pixel_values"), grids, [1, 2, 1], 18 * 18)


@jax.jit
def trained(
  network: Network, batch: Mapping[str, Any], terms: Any, weights: Mapping[str, Any]
) -> Any:
  """((loss, (metrics, what lies between)), gradients of all but the tower); terms: text, image."""
  tower = network.params["visual"]

  def loss(params: Any) -> Any:
    module = nnx.merge(network.graphdef, params | {"visual": tower})
    module.cfg = dataclasses.replace(CFG, loss=nexus.Loss(*terms))
    seen = module.seen(batch["tokens"], *places.shown(batch))
    inputs = module.inputs(batch["tokens"], batch["labels"], seen)
    hidden = module.hidden(batch, seen)
    between = (seen, inputs, hidden, module.vision_head(hidden))
    value, metrics = module.loss(batch, jax.random.key(0), weights)
    return value, (metrics, between)

  rest = {name: leaf for name, leaf in network.params.items() if name != "visual"}
  return jax.value_and_grad(loss, has_aux=True)(rest)


# Training -----------------------------------------------------------------------------------------


def test_training(network, near):
  batch = training_batch()
  weights = network.module().weights(batch)
  (value, (metrics, between)), grads = trained(network, batch, RELEASED, weights)
  seen, inputs, hidden, vectors = map(np.asarray, between)
  slots = recorded("train.labels") == CFG.image_token
  at = batch["tokens"] == CFG.image_token
  read = batch["labels"] == CFG.image_token
  near("train.image_embeds", seen[at], ROUNDING["images"])
  near("train.target_vectors", seen[slots], ROUNDING["images"])
  near("train.inputs_embeds", inputs)
  valid = batch["segments"][..., None] != 0
  near("train.last_hidden", np.where(valid, hidden, 0), ROUNDING["hidden"])
  near("train.read_hidden", hidden[read], ROUNDING["hidden"])
  near("train.predicted_vectors", vectors[read], ROUNDING["hidden"])
  for name, found in (
    ("mse", metrics["image_square"]),
    ("cosine", metrics["image_cosine"]),
    ("image_loss", metrics["image_loss"]),
    ("ce", metrics["text_loss"]),
    ("loss", value),
  ):
    near(f"train.{name}", found)
  (value, _), _ = trained(network, batch, FIRST, weights)
  near("train.loss_code_default_weights", value)
  flat = trees.flatten(grads)
  assert set(flat) == {p for p in trees.flatten(network.params) if not p.startswith("visual/")}
  tower = {p: leaf for p, leaf in trees.flatten(network.params).items() if p.startswith("visual/")}
  found = dict(table.export(TABLE, flat | tower))
  names = sorted(n for n in found if not n.startswith("visual."))
  kept = [n for n in RECORDED if n.startswith("train.grad.")]
  assert len(kept) == 9
  for name in kept:
    wanted = recorded(name)
    near(name, found[name.removeprefix("train.grad.")], GRADIENT * np.abs(wanted).max())
  wanted = recorded("train.grad_norms")
  near("train.grad_norms", [np.linalg.norm(found[n]) for n in names], GRADIENT * wanted.max())


def test_training_of_the_first_version(network, near):
  batch = training_batch()
  weights = network.module().weights(batch)
  (value, (_, between)), _ = trained(first_version(network), batch, FIRST, weights)
  read = batch["labels"] == CFG.image_token
  near("v1.train_predicted_vectors", np.asarray(between[3])[read], ROUNDING["hidden"])
  near("v1.train_loss", value)


def test_the_loss_does_not_depend_on_how_rows_are_split(network):
  """Each row thrice, to be of one shape with the whole, with the normalisers of the whole."""
  batch = training_batch()
  weights = network.module().weights(batch)
  assert float(weights["image"]) == 2 * CFG.slots
  (value, _), grads = trained(network, batch, RELEASED, weights)
  rows = [{k: np.repeat(v[i : i + 1], 3, 0) for k, v in batch.items()} for i in range(3)]
  found = [trained(network, row, RELEASED, weights) for row in rows]
  assert sum(float(v) for (v, _), _ in found) / 3 == pytest.approx(float(value), rel=1e-5)
  parts = [trees.flatten(g) for _, g in found]
  for path, wanted in trees.flatten(grads).items():
    total = sum(np.asarray(part[path]) for part in parts) / 3
    assert relative_error(total, wanted) < 1e-5, path


def test_an_empty_image_loss_is_0_with_finite_gradients(network):
  """No picture is predicted; of one row pictures are seen, of the others no more."""
  batch = training_batch()
  batch["labels"] = np.where(batch["labels"] == CFG.image_token, chat.IGNORED, batch["labels"])
  weights = network.module().weights(batch)
  (value, (metrics, _)), grads = trained(network, batch, RELEASED, weights)
  assert float(metrics["image_loss"]) == 0
  assert float(value) == pytest.approx(3 * float(metrics["text_loss"]))
  flat = trees.flatten(grads)
  assert all(np.isfinite(leaf).all() for leaf in flat.values())
  for path in ("vision_head/kernel", "slots/embedding"):
    assert not np.any(flat[path]), path
  assert np.any(flat["backbone/layers/mlp/down_proj/kernel"])


# Answers ------------------------------------------------------------------------------------------


def asked() -> dict[str, Any]:
  """The three recorded prompts as one batch: without a picture, with a large and a small one."""
  names, shown = ("gen", "edit", "und"), ("edit", "und")
  rows = [recorded(f"{name}.input_ids")[0].tolist() for name in names]
  tokens, segments = chat.pad_left(rows, PROMPT, 500)
  grids = [grid for name in shown for grid in grids_of(name)]
  positions, deltas = mrope.mrope_positions(
    tokens, segments, grids, CFG.image_token, CFG.visual.merge
  )
  pixels = np.concatenate([recorded(f"{name}.pixel_values") for name in shown])
  arrays = pictures(pixels, grids, [0, 1, 1], ROOM)
  patches, layout = places.shown(arrays)
  prompt = {"tokens": tokens, "segments": segments, "positions": positions, "deltas": deltas}
  return prompt | {"patches": patches, "layout": layout}


def answers(network: Network, **options: Any) -> list[speaking.Answer]:
  """To all three prompts, greedy, as the reference says it: of all ids, the padded ones too."""
  given = {k: options.pop(k) for k in ("forced", "limits") if k in options}
  ends, length = options.pop("ends", (END,)), options.pop("length", 32)
  rules = speaking.rules(CFG, 3, length, CFG.backbone.vocab_size, ends, **given)
  return speaking.answer(network, asked(), rules, **options)


def test_answers(network, near):
  """With words after the picture where training has them, and where the reference has them.

  Of the former five are recorded, whether one of them is the end or not.
  """
  found = {
    "training": answers(network, ends=(-1,)),
    "reference": answers(network, tail="reference"),
  }
  for row, name in enumerate(("gen", "edit")):
    prompt = recorded(f"{name}.input_ids")[0]
    text = recorded(f"{name}.text_tokens").tolist()
    for tail, key in (
      ("training", "tail_tokens_training_positions"),
      ("reference", "tail_tokens_reference"),
    ):
      answer, wanted = found[tail][row], recorded(f"{name}.{key}").tolist()
      slots = [CFG.image_token] * CFG.slots + [CFG.eoi]
      assert answer.tokens[: len(text) + len(slots)] == text + slots
      assert answer.tokens[len(text) + len(slots) :][: len(wanted)] == wanted
      assert answer.words[0] == text[:-1]
      near(f"{name}.image_vectors", answer.vectors[:1], ROUNDING["hidden"])
    written = [*prompt.tolist(), *found["reference"][row].tokens]
    wanted = recorded(f"{name}.sequence")[0].tolist()
    assert written[: len(wanted)] == wanted
  words = recorded("und.tokens").tolist()
  assert found["reference"][2].tokens == words == [*found["reference"][2].words[0], END]
  assert found["reference"][2].vectors.shape == (0, CFG.slots, CFG.backbone.dim)
  assert found["training"][2].tokens[: len(words)] == words


def test_the_mark_after_a_picture_would_be_said(network):
  """The recorded answers have steps at which it is the likeliest, so that the ban is seen."""
  free = speaking.rules(CFG, 3, 32, CFG.backbone.vocab_size, (END,))
  free = free._replace(banned=np.full_like(free.banned, -1))
  assert any(CFG.eoi in answer.words[0] for answer in speaking.answer(network, asked(), free))


@pytest.mark.parametrize(("penalty", "name"), [(1.05, "tokens_105"), (1.3, "tokens_130")])
def test_penalty(network, penalty, name):
  wanted = recorded(f"gen_penalty.{name}").tolist()
  limits = decoding.Limits(penalty=penalty)
  found = answers(network, limits=limits, length=len(wanted))
  assert found[0].tokens[: len(wanted)] == wanted


def test_a_prompt_that_ends_in_the_mark(network, near):
  assert recorded("forced.input_ids")[0].tolist() == [
    *recorded("gen.input_ids")[0].tolist(),
    CFG.boi,
  ]
  found = answers(network, forced=(CFG.boi,), pictures=1)
  slots = [CFG.boi, *[CFG.image_token] * CFG.slots, CFG.eoi]
  assert [a.tokens[: len(slots)] for a in found] == [slots] * 3
  assert [a.words[0] for a in found] == [[]] * 3
  near("forced.image_vectors", found[0].vectors, ROUNDING["hidden"])


def test_answers_of_the_first_version(network, near):
  found = answers(first_version(network))
  for row, name in enumerate(("gen", "edit")):
    text = recorded(f"v1.{name}_text_tokens").tolist()
    assert found[row].tokens[: len(text)] == text
    near(f"v1.{name}_image_vectors", found[row].vectors[:1], ROUNDING["hidden"])


# One pass over what is known ----------------------------------------------------------------------


def rows_with_answers() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """(a batch of what `gen`, `edit` and `single` say, `und`; recorded positions), left-padded.

  The picture that they predict is the last one of the row.
  """
  names = ("gen", "edit", "single", "und")
  said = {name: recorded(f"{name}.input_ids")[0].tolist() for name in names}
  for name in ("gen", "edit"):
    said[name] += recorded(f"{name}.text_tokens").tolist() + [CFG.image_token] * CFG.slots
  tokens, segments = chat.pad_left(list(said.values()), 192, 500)
  target = (CFG.target_grid, CFG.target_grid)
  given = [*grids_of("edit"), grids_of("single")[0], *grids_of("und")]
  grids = [target, given[0], target, given[1], target, given[2]]
  positions, _ = mrope.mrope_positions(tokens, segments, grids, CFG.image_token, CFG.visual.merge)
  labels = np.full_like(tokens, chat.IGNORED)
  for row in range(3):
    (at,) = np.nonzero(tokens[row] == CFG.image_token)
    labels[row, at[-CFG.slots :] - 1] = CFG.image_token
  pixels = ("edit.pixel_values", "single.source_pixel_values", "und.pixel_values")
  rows = {
    "tokens": tokens,
    "segments": segments,
    "labels": labels,
    "positions": np.moveaxis(positions, 1, 0),
  }
  batch = rows | pictures(np.concatenate([recorded(n) for n in pixels]), given, [0, 1, 1, 1], ROOM)
  kept = {n: positions[:, row, -len(said[n]) :] for row, n in enumerate(said)}
  return batch, kept


@jax.jit
def known(network: Network, batch: Mapping[str, Any]) -> Any:
  module = network.module()
  seen = module.seen(batch["tokens"], *places.shown(batch), module.outputs(batch["labels"]))
  hidden = module.hidden(batch, seen)
  return seen, hidden, module.backbone.logits(hidden), module.vectors(batch)


def test_one_pass(network, near):
  """Rows that hold their answer: vectors, hidden vectors, positions and logits."""
  batch, positions = rows_with_answers()
  seen, hidden, logits, vectors = map(np.asarray, known(network, batch))
  near("gen.image_vectors", vectors[:1], ROUNDING["hidden"])
  near("edit.image_vectors", vectors[1:2], ROUNDING["hidden"])
  near("single.predicted_vectors", vectors[2:3], ROUNDING["hidden"])
  read = batch["labels"] == CFG.image_token
  for row, name in enumerate(("gen", "edit")):
    near(f"{name}.read_hidden", hidden[row, read[row]][None], ROUNDING["hidden"])
    np.testing.assert_array_equal(positions[name], recorded(f"{name}.position_ids")[:, 0])
  shown = (batch["tokens"] == CFG.image_token) & ~np.pad(read, ((0, 0), (1, 0)))[:, :-1]
  near("single.source_embeds", seen[2, shown[2]], ROUNDING["images"])
  near("und.image_embeds", seen[3, shown[3]], ROUNDING["images"])
  length = recorded("und.input_ids").shape[1]
  near("und.last_hidden", hidden[3:, -length:], ROUNDING["hidden"])
  near("und.logits", logits[3:, -length:], ROUNDING["logits"])
  np.testing.assert_array_equal(positions["und"], recorded("und.position_ids")[:, 0])


def test_positions_and_deltas():
  """Where the three prompts' answers go on, and where a picture stands in them."""
  prompt = asked()
  length = recorded("und.input_ids").shape[1]
  np.testing.assert_array_equal(prompt["deltas"][2:] + PROMPT - length, recorded("und.rope_deltas"))
  for row, name in enumerate(("gen", "edit")):
    text = len(recorded(f"{name}.text_tokens"))
    at = PROMPT + prompt["deltas"][row] + text - 1
    found = speaking.positions(CFG, jnp.asarray(at), jnp.int32(9))[:, :, :-1]
    np.testing.assert_array_equal(found, recorded(f"{name}.position_ids")[..., -CFG.slots - 1 :])


# Greedy answers of transformers -------------------------------------------------------------------
