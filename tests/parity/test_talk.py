"""Conversations against transformers: its template, its generate, its processors of scores."""

import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest
import random_model
import test_qwen

from blip3o_jax import trees
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.files import read_json
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import batches
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import save
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import writing
from blip3o_jax.systems.parts.talking import Message
from blip3o_jax.weights.safetensors import Tensors

DATA = Path(__file__).parents[1] / "data"
RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 255, (*size, 3), np.uint8) for size in ((84, 112), (56, 84))]
TALK = [
  Message("user", ["Look at ", " and ", ": what?"], PICTURES),
  Message("assistant", ["Two cats.\n"]),
  Message("user", ["  Are they…\n\nred?"]),
]


def untied(sizes: np.random.Generator) -> verbs.Model:
  """A random model; with tied embeddings it would say one word for ever."""
  words = Tokenizer.load(DATA / "tiny-blip3o", prompts.SPECIAL)
  cfg = random_model.system(sizes, words)
  backbone = dataclasses.replace(cfg.backbone, tie_embeddings=False)
  cfg = dataclasses.replace(cfg, backbone=backbone)
  network = random_model.randomised(lambda: blip3o.build(cfg, nnx.Rngs(0)), 7)
  return verbs.Model(cfg, released.Settings(), network, None, words)


def rendered(talk: list[Message], places: list[int]) -> str:
  """What transformers' template makes of a conversation, each picture with its places."""
  rendering = pytest.importorskip("transformers.utils.chat_template_utils")
  messages = []
  for role, texts, pictures in talk:
    parts: list[dict[str, Any]] = [{"type": "text", "text": texts[0]}]
    for text in texts[1:]:
      parts += [{"type": "image"}, {"type": "text", "text": text}]
    messages.append({"role": role, "content": parts if pictures else texts[0]})
  template = read_json(DATA / "tiny-nexus-gen" / "chat_template.json")["chat_template"]
  texts, _ = rendering.render_jinja_template(
    [messages], chat_template=template, add_generation_prompt=True
  )
  text, *rest = texts[0].split("<|image_pad|>")
  return text + "".join("<|image_pad|>" * n + x for n, x in zip(places, rest, strict=True))


@pytest.mark.torch
@pytest.mark.parametrize("system", [None, "Answer in\none word.", ""])
def test_template(system):
  tokenizers = pytest.importorskip("tokenizers")
  inner = tokenizers.Tokenizer.from_file(str(DATA / "tiny-blip3o" / "tokenizer.json"))
  talk = TALK if system is None else [Message("system", [system]), *TALK]
  home = DATA / "tiny-blip3o"
  made = batches.Batches(*released.read(home, "float32"), Tokenizer.load(home, prompts.SPECIAL))
  prompt, counts = made.talks([talk])
  ids = prompt["tokens"][0][prompt["segments"][0] > 0].tolist()
  wanted = inner.encode(rendered(talk, [12, 6]), add_special_tokens=False).ids
  assert ids == wanted
  assert counts == [len(wanted)]


def oracle_of(model: verbs.Model, folder: Path) -> Any:
  """transformers' Qwen2.5-VL with the weights of a model."""
  torch = pytest.importorskip("torch")
  flat = trees.flatten(model.system.params)
  flat = {path: x for path, x in flat.items() if path.startswith(("backbone/", "visual/"))}
  save.write_weights(flat, folder)
  oracle = test_qwen.transformers_model(model.cfg.backbone, model.cfg.visual)
  words = model.tokenizer
  oracle.config.image_token_id = words.image_pad
  oracle.config.vision_start_token_id, oracle.config.vision_end_token_id = (
    words.vision_start,
    words.vision_end,
  )
  tensors, state = Tensors(folder), {}
  for name in tensors:
    new = f"model.{name}" if name.startswith("visual.") else name
    new = new.replace("model.", "model.language_model.", 1) if new == name else new
    state[new.replace("model.language_model.lm_head", "lm_head")] = torch.tensor(tensors.read(name))
  lost = set(oracle.state_dict()) - set(state)
  assert not lost
  assert not oracle.load_state_dict(state, strict=False).unexpected_keys
  return oracle


@pytest.mark.torch
def test_transformers_generate(sizes, tmp_path, monkeypatch):
  """Token for token, of two turns and two pictures, at several penalties, in one go and heard."""
  torch = pytest.importorskip("torch")
  model = untied(sizes)
  oracle = oracle_of(model, tmp_path)
  prompt, _ = model._batches.talks([TALK])
  row = prompt["tokens"][0][prompt["segments"][0] > 0]
  there = prompt["layout"].segments > 0
  words, length = model.tokenizer, 24
  given = {
    "input_ids": torch.tensor(row[None]).long(),
    "attention_mask": torch.ones((1, len(row))).long(),
    "pixel_values": torch.tensor(np.concatenate([p[x] for p, x in zip(prompt["patches"], there)])),  # noqa: B905
    "image_grid_thw": torch.tensor([(1, 6, 8), (1, 4, 6)]),
    "mm_token_type_ids": torch.tensor((row[None] == words.image_pad).astype(np.int64)),
  }
  beyond = list(range(words.size, model.cfg.backbone.vocab_size))
  taken: list[int] = []
  take = writing.Writing.take
  monkeypatch.setattr(
    writing.Writing, "take", lambda self, ids: taken.extend(ids) or take(self, ids)
  )
  said = []
  for penalty in (1.0, 1.2, 8.0):
    with torch.no_grad():
      wanted = oracle.generate(
        **given,
        do_sample=False,
        max_new_tokens=length,
        repetition_penalty=penalty,
        suppress_tokens=beyond,
        eos_token_id=[words.im_end, words.pad],
        pad_token_id=words.pad,
      )[0, len(row) :].tolist()
    limits = decoding.Limits(penalty=penalty)
    for hear in (None, lambda row, text: None):
      taken.clear()
      (reply,) = model.talk([TALK], length=length, limits=limits, hear=hear)
      assert taken[: reply.tokens] == wanted
    assert reply.text == words.decode(wanted).strip()
    said.append(tuple(wanted))
  assert len(set(said)) > 1, "the penalty changes nothing"


@pytest.mark.torch
@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p", "penalty"),
  [
    (1.0, 0, 1.0, 1.3),
    (0.7, 0, 0.9, 1.0),
    (1.7, 5, 1.0, 1.0),
    (0.9, 20, 0.6, 1.1),
    (2.0, 1, 0.1, 1.0),
  ],
)
def test_transformers_processors(temperature, top_k, top_p, penalty):
  """The distribution that an id is drawn from, of random scores."""
  torch = pytest.importorskip("torch")
  process = pytest.importorskip("transformers.generation.logits_process")
  rng = np.random.default_rng(1)
  scores = (3 * rng.normal(size=(8, 97))).astype(np.float32)
  ids = rng.integers(0, 97, (8, 11))
  chain: list[Any] = [process.RepetitionPenaltyLogitsProcessor(penalty)]
  chain += [process.TemperatureLogitsWarper(temperature)]
  chain += [process.TopKLogitsWarper(top_k)] if top_k else []
  chain += [process.TopPLogitsWarper(top_p)] if top_p < 1 else []
  wanted = torch.tensor(scores)
  for each in chain:
    wanted = each(torch.tensor(ids), wanted)
  limits = decoding.Limits(top_k=top_k, top_p=top_p, penalty=penalty)
  rules = decoding.rules(8, 1, 97, (0,), temperature=temperature, limits=limits)
  said = np.zeros((8, 97), bool)
  said[np.arange(8)[:, None], ids] = True
  limited = decoding._limited(jnp.asarray(scores), jnp.asarray(said), rules)
  found = np.asarray(decoding._filtered(limited / rules.temperature, rules))
  np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted.numpy()))
  shares = np.exp(found - found.max(1, keepdims=True))
  shares /= shares.sum(1, keepdims=True)
  np.testing.assert_allclose(shares, torch.softmax(wanted, -1).numpy(), rtol=2e-5, atol=1e-8)
