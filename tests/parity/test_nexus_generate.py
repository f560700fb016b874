"""Greedy answers of Nexus-Gen's language model against transformers' own, on random models."""

import dataclasses

import nexus_miniature
from nexus_miniature import CFG
import numpy as np
import pytest
import random_model
import test_qwen

from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.systems.nexus_gen import speaking
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import places


@pytest.mark.torch
@pytest.mark.slow
def test_transformers_generate(sizes):
  """Two rows of a random model, one after a picture, with one id banned and two that end."""
  torch = pytest.importorskip("torch")
  lm = dataclasses.replace(random_model.backbone(sizes, vocab_size=120), tie_embeddings=False)
  tower = random_model.vision(sizes, lm.dim)
  oracle = test_qwen.transformers_model(lm, tower)
  cfg = dataclasses.replace(CFG, backbone=lm, visual=tower, image_token=110, boi=112, eoi=113)
  weights = {k: v.detach().numpy() for k, v in oracle.state_dict().items()}
  rng = np.random.default_rng(1)
  weights["vision_head.weight"] = rng.normal(size=(lm.dim, lm.dim)).astype(np.float32)
  weights["image_prefill_embeds.weight"] = rng.normal(size=(81, lm.dim)).astype(np.float32)
  shapes = {k: v.shape for k, v in weights.items()}
  network = nexus_miniature.load(cfg, shapes, lambda name, index: weights[name][index])
  text, grids, length = rng.integers(1, 100, (2, 9)), [(4, 6)], 14
  rows = [[*text[0, :3], 112, *[110] * 6, 113, *text[0]], text[1]]
  # The padding is an id of the padded row: transformers has its penalty for padding as well.
  tokens, segments = chat.pad_left(rows, 20, int(text[1, 0]))
  pixels = rng.normal(size=(24, 1176)).astype(np.float32)
  positions, deltas = mrope.mrope_positions(tokens, segments, grids, cfg.image_token, tower.merge)
  patches, layout = places.shown(nexus_miniature.pictures(pixels, grids, [1, 0], 24, tower))
  prompt = {"tokens": tokens, "segments": segments, "positions": positions, "deltas": deltas}
  prompt |= {"patches": patches, "layout": layout}
  given = {
    "input_ids": torch.tensor(tokens).long(),
    "attention_mask": torch.tensor(segments).long(),
    "pixel_values": torch.tensor(pixels),
    "image_grid_thw": torch.tensor([(1, *grids[0])]),
    "mm_token_type_ids": torch.tensor((tokens == 110).astype(np.int64)),
  }
  for penalty in (1.0, 1.2):
    with torch.no_grad():
      wanted = oracle.generate(
        **given,
        do_sample=False,
        max_new_tokens=length,
        repetition_penalty=penalty,
        suppress_tokens=[cfg.eoi],
        eos_token_id=[cfg.boi, 7],
        pad_token_id=7,
      ).numpy()[:, tokens.shape[1] :]
    limits = decoding.Limits(penalty=penalty)
    rules = speaking.rules(cfg, 2, length, lm.vocab_size, (7,), limits=limits)
    state = speaking.start(network, prompt, length)
    answers = speaking.first(network, state, rules, None)
    answers = speaking.more(network, answers, rules, None, np.int32(length))
    for said, row in zip(np.asarray(answers.ids)[:, : wanted.shape[1]], wanted, strict=True):
      end = next((i + 1 for i, token in enumerate(row) if token in (cfg.boi, 7)), len(row))
      assert said[:end].tolist() == row[:end].tolist()
