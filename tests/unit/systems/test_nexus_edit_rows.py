"""Rows of edits: where the pictures stand, and what their places name."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import Record
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.systems.nexus_gen.tasks import transforms

TINY = Path(__file__).parents[2] / "data" / "tiny-nexus-gen"
TOK = Tokenizer.load(TINY, prompts.SPECIAL)
CFG, _ = released.read(TINY, "float32")
SMALL = dataclasses.replace(CFG, form=prompts.Form(max_pixels=252**2))
SLOT = CFG.image_token
FIVE = Data(task="messages", buckets=(480,), pictures=5)


def picture(seed):
  return np.random.default_rng(seed).integers(0, 256, (56, 112, 3), np.uint8)


EDIT = Record(
  image=picture(1), inputs=(picture(2),), prompt="Change the sign to a pot.", name="edit"
)


def made(record, cfg=SMALL):
  return transforms(cfg, FIVE, TOK)[480](record, np.random.default_rng(0))


def test_pictures_stand_before_an_instruction_or_after_it():
  shown = "<|vision_start|><|vision_end|>"
  after = dataclasses.replace(SMALL, form=prompts.Form(max_pixels=252**2, pictures="after"))
  marked = dataclasses.replace(EDIT, prompt=f"{chat.MARK}, {EDIT.prompt}", extra={"placed": True})
  for cfg, record, user in (
    (SMALL, EDIT, f"{shown} {EDIT.prompt}"),
    (after, EDIT, f"{EDIT.prompt} {shown}"),
    (after, marked, f"{shown}, {EDIT.prompt}"),
  ):
    out = made(record, cfg=cfg)
    text = TOK.decode(out["tokens"][out["segments"] > 0], skip_special=False)
    assert f"user\n{user}<|im_end|>" in text.replace("<|image_pad|>", "")
  assert transforms(SMALL, FIVE, TOK)[480].counts != transforms(after, FIVE, TOK)[480].counts


def test_places_of_a_picture_that_is_given_name_what_they_become():
  names = tuple("abcdefgh")
  plain = made(EDIT)
  out = made(dataclasses.replace(EDIT, extra={"places": names}))
  assert out.keys() == plain.keys()
  named = np.flatnonzero(out["labels"] != plain["labels"])
  assert (out["tokens"][named] == SLOT).all()
  assert "".join(TOK.decode([i]) for i in out["labels"][named]) == "abcdefgh"
  # The slots predict what they did, and none of them names anything.
  assert (out["labels"] == SLOT).sum() == 81
  assert not (out["labels"][:-1][named - 1] == SLOT).any()
  with pytest.raises(ValueError, match=r"'a vibrant street' is .* tokens, but one hidden vector"):
    made(dataclasses.replace(EDIT, extra={"places": ("a vibrant street",) * 8}))
