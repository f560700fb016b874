"""The words of the embedded set are those of its captions and questions, no more and no fewer."""

import re

from blip3o_jax.data import shapes
from blip3o_jax.data.shapes.source import EmbeddedSource
from blip3o_jax.data.shapes.source import Mixture


def test_words():
  found = set()
  for mixture in (
    Mixture(long_captions=0.5),
    Mixture(categories=shapes.CATEGORIES),
    Mixture(questions=True, turns=3),
  ):
    source = EmbeddedSource("world", 800, mixture)
    for i in range(len(source)):
      record = source._text(i)[1]
      for text in (record.prompt, *(question for question, _ in record.turns)):
        found |= set(re.findall(r"[^\W_]+", text))
  for category in shapes.CATEGORIES:
    for prompt in shapes.test_prompts(category):
      found |= set(prompt["prompt"].split())
  assert found == set(shapes.WORDS)
  edited = EmbeddedSource("world", 1000, Mixture(edits=shapes.EDITS))
  for i in range(len(edited)):
    found |= set(edited._text(i)[1].prompt.split())
  assert found == set(shapes.EDIT_WORDS)
