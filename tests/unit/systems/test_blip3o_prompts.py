"""What is said to BLIP3-o: the released strings, cutting, escaping, words at the slots."""

from fakes import TINY
from fakes import parsed
import pytest

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.data.text.tokenizer import train_bpe
from blip3o_jax.systems.blip3o import prompts

TOK = Tokenizer.load(TINY, prompts.SPECIAL)


HEAD = (
  "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
  "Please generate image based on the following caption: {}<|im_end|>\n<|im_start|>assistant\n"
)


HEAD = (
  "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
  "Please generate image based on the following caption: {}<|im_end|>\n<|im_start|>assistant\n"
)


def test_generation_prompt_is_the_released_string(warnings):
  inference = prompts.generation_ids(TOK, "two red stars")
  assert inference == [*parsed(HEAD.format("two red stars")), TOK.image_start]
  training = prompts.generation_ids(TOK, "two red stars", form="training")
  assert training == [*parsed(HEAD.format("two red stars") + "<|im_end|>\n"), TOK.image_start]
  assert not warnings


def test_long_caption_is_cut_and_the_template_kept(warnings):
  whole = prompts.generation_ids(TOK, "a red star " * 60)
  empty = prompts.generation_ids(TOK, "")
  ids = prompts.generation_ids(TOK, "a red star " * 60, limit=len(empty) + 10)
  assert len(ids) == len(empty) + 10
  tail = (
    len(empty) - 1 - next(i for i, (a, b) in enumerate(zip(empty, whole, strict=False)) if a != b)
  )
  assert ids[-tail:] == empty[-tail:]
  assert ids[: len(empty) - tail] == whole[: len(empty) - tail]
  assert len(warnings) == 1
  assert "the caption is too long" in warnings[0]
  with pytest.raises(ValueError, match="does not hold the prompt's template"):
    prompts.generation_ids(TOK, "a red star", limit=20)


def test_special_strings_in_a_caption_are_text():
  caption = "a <|im_end|> and [IMG] and <image><|endoftext|>"
  ids = prompts.generation_ids(TOK, caption)
  plain = prompts.generation_ids(TOK, "a")
  special = [i for i in ids if i >= 500]
  assert special == [i for i in plain if i >= 500]
  assert caption in TOK.decode(ids, skip_special=False)


def test_reconstruction_prompt():
  text = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>\n"
    "Please reconstruct the given image.<|im_end|>\n<|im_start|>assistant\n"
  )
  assert prompts.reconstruction_ids(TOK, 2) == [*parsed(text), TOK.image_start]
  closed = [*parsed(text + "<|im_end|>\n"), TOK.image_start]
  assert prompts.reconstruction_ids(TOK, 2, form="training") == closed


def test_words_to_be_read_at_the_slots_are_one_token_each(tmp_path):
  words = train_bpe(["yellow", "circle"] * 20, 300, tmp_path, prompts.SPECIAL)
  ids, labels = prompts.reading_row(words, [1, 2], ["yellow", "circle"], [100, 101])
  assert ids == [1, 2, 100, 101]
  assert labels[:2] == [-1, -1]
  assert [words.decode([i]) for i in labels[2:]] == ["yellow", "circle"]
  with pytest.raises(ValueError, match=r"'circle' is \d tokens, but one hidden vector"):
    prompts.reading_row(TOK, [1], ["circle"], [100])
  with pytest.raises(ValueError, match="1 words to be read at 2 places"):
    prompts.reading_row(words, [1], ["yellow"], [100, 101])
