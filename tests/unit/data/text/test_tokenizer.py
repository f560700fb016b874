"""The tokenizer wrapper: special ids, ordinary text, the fall-back files, training a small one."""

import json
import shutil

from fakes import TINY
import pytest
from transformers import AutoTokenizer

from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.data.text.tokenizer import train_bpe
from blip3o_jax.systems.blip3o.prompts import SPECIAL

TEXTS = [
  "a red circle left of a blue square",
  "It's 1234 o'clock,\n\n  naïve  café -- 你好 🙂!",
  "  leading and trailing  ",
  "",
]


def test_special_ids_of_the_recorded_model():
  tok = Tokenizer.load(TINY, SPECIAL)
  assert tok.special == {name: getattr(tok, name) for name in SPECIAL}
  assert tok.special == {
    "pad": 500,
    "im_start": 508,
    "im_end": 509,
    "vision_start": 501,
    "vision_end": 502,
    "image_pad": 503,
    "video_pad": 504,
    "image_start": 505,
    "image_end": 506,
    "image": 507,
  }
  assert tok.size == 510


def test_plain_text_has_the_ids_of_transformers():
  tok, oracle = Tokenizer.load(TINY, SPECIAL), AutoTokenizer.from_pretrained(str(TINY))
  for text in TEXTS:
    assert tok.encode(text) == oracle.encode(text, add_special_tokens=False)
    assert tok.decode(tok.encode(text)) == text


def test_special_strings_in_a_text_are_ordinary():
  tok = Tokenizer.load(TINY, SPECIAL)
  special = set(tok.special.values())
  text = "x [IMG] y <image> z " + " ".join(SPECIAL.values())
  ids = tok.encode(text)
  assert not special & set(ids)
  assert tok.decode(ids) == text
  wrapped = [tok.im_start, *tok.encode("red"), tok.im_end]
  assert tok.decode(wrapped) == "red"
  assert tok.decode(wrapped, skip_special=False) == "<|im_start|>red<|im_end|>"


def _altered(tmp_path, change):
  values = json.loads((TINY / "tokenizer.json").read_text())
  change(values)
  (tmp_path / "tokenizer.json").write_text(json.dumps(values))
  return tmp_path


def test_plain_added_token_and_truncation_in_the_file_do_not_leak(tmp_path):
  def change(values):
    for token in values["added_tokens"]:
      token["special"] = token["special"] and token["content"] != "<image>"
    values["truncation"] = dict(direction="Right", max_length=4, strategy="LongestFirst", stride=0)

  tok = Tokenizer.load(_altered(tmp_path, change), SPECIAL)
  ids = tok.encode("a <image> of a long red line")
  assert tok.image not in ids
  assert ids == Tokenizer.load(TINY, SPECIAL).encode("a <image> of a long red line")


def test_missing_special_token_is_named(tmp_path):
  def change(values):
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] != "[/IMG]"]

  with pytest.raises(ValueError, match=r"lacks the special tokens \[/IMG\]"):
    Tokenizer.load(_altered(tmp_path, change), SPECIAL)


def test_absent_or_broken_tokenizer(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json, or vocab\.json and merges\.txt"):
    Tokenizer.load(tmp_path, SPECIAL)
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(ValueError, match="not a tokenizer"):
    Tokenizer.load(tmp_path, SPECIAL)


def test_vocab_and_merges_are_read_by_transformers(tmp_path):
  whole = tmp_path / "whole"
  train_bpe(TEXTS * 3, 320, whole, SPECIAL)
  values = json.loads((whole / "tokenizer.json").read_text())
  parts = tmp_path / "parts"
  parts.mkdir()
  (parts / "vocab.json").write_text(json.dumps(values["model"]["vocab"]))
  lines = ["#version: 0.2", *(" ".join(m) for m in values["model"]["merges"])]
  (parts / "merges.txt").write_text("\n".join(lines) + "\n")
  settings = json.loads((whole / "tokenizer_config.json").read_text())
  added = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in values["added_tokens"]}
  settings |= {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
  (parts / "tokenizer_config.json").write_text(json.dumps(settings))
  tok, expected = (Tokenizer.load(folder, SPECIAL) for folder in (parts, whole))
  for text in TEXTS[:3]:
    assert tok.encode(text) == expected.encode(text)
  assert tok.image_start == expected.image_start


def test_trained_tokenizer(tmp_path):
  texts = ["a red circle", "two blue squares and a red circle", "where is the circle?"] * 10
  tok = train_bpe(texts, 300, tmp_path, SPECIAL)
  again, oracle = Tokenizer.load(tmp_path, SPECIAL), AutoTokenizer.from_pretrained(str(tmp_path))
  assert tok.size == again.size == len(oracle) <= 300
  assert len(set(tok.special.values())) == len(SPECIAL)
  for text in ("a red circle", *TEXTS):
    assert tok.encode(text) == again.encode(text) == oracle.encode(text, add_special_tokens=False)
    assert tok.decode(tok.encode(text)) == text
  assert len(tok.encode(" circle")) == 1
  assert tok.encode("12") == [*tok.encode("1"), *tok.encode("2")]  # digit by digit
  assert oracle.convert_tokens_to_ids("[IMG]") == tok.image_start
  assert oracle.pad_token == "<|endoftext|>"
  assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
  shutil.rmtree(tmp_path)
  second = train_bpe(texts, 300, tmp_path, SPECIAL)
  assert second.encode("two red squares") == tok.encode("two red squares")


def test_too_small_a_vocabulary(tmp_path):
  with pytest.raises(ValueError, match="bytes and special tokens are 266"):
    train_bpe(["a"], 265, tmp_path, SPECIAL)


def test_another_systems_special_tokens(tmp_path):
  """A vocabulary of Qwen's tokens alone is enough for a chat, and one of others has theirs."""
  plain = train_bpe(TEXTS * 3, 300, tmp_path / "qwen", chat.QWEN)
  assert plain.special.keys() == chat.QWEN.keys()
  ids = chat.chat_ids(plain, "a red [IMG]", [2], system="Be brief.")
  assert ids.count(plain.image_pad) == 2
  text = plain.decode(ids, skip_special=False)
  assert text.startswith(
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
  )
  assert text.endswith("a red [IMG]<|im_end|>\n<|im_start|>assistant\n")
  with pytest.raises(AttributeError, match="'image_start' is none of the special tokens pad, im_"):
    _ = plain.image_start
  with pytest.raises(ValueError, match=r"lacks the special tokens \[IMG\], \[/IMG\], <image>"):
    Tokenizer.load(tmp_path / "qwen", SPECIAL)
  special = {"pad": "<pad>", "im_end": "</s>", "drawing": "<draw>"}
  other = train_bpe(TEXTS * 3, 300, tmp_path / "other", special)
  again = Tokenizer.load(tmp_path / "other", special)
  assert again.drawing == other.drawing == other.special["drawing"]
  assert again.drawing not in again.encode("<draw>")
  settings = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
  assert (settings["pad_token"], settings["eos_token"]) == ("<pad>", "</s>")
