"""Conversations answered: ids of all rows as text that is heard, and what is asked of them."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.nexus_gen import batches
from blip3o_jax.systems.nexus_gen import speaking
from blip3o_jax.systems.nexus_gen.how import PAINTS
from blip3o_jax.systems.nexus_gen.how import How
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import talking
from blip3o_jax.systems.parts import writing
from blip3o_jax.systems.parts.network import Network

Said = tuple[speaking.Answer, writing.Writing]


def options(given: Mapping[str, Any]) -> tuple[talking.How, How]:
  """How is answered, and how the pictures of answers are painted.

  Raises:
    ValueError: an option that there is not, or out of its range.
  """
  asked.check_options("chat", given, (*talking.OPTIONS, *PAINTS))
  paints = {name: value for name, value in given.items() if name in PAINTS}
  told = {name: value for name, value in given.items() if name not in PAINTS}
  return talking.how(told), How(**paints)


def answers(
  network: Network,
  tokenizer: Tokenizer,
  rows: Mapping[str, Any],
  rules: decoding.Rules,
  seeds: Sequence[int],
  how: talking.How,
) -> list[Said]:
  """The answer to each row that has a seed, and its text; the rows that repeat the last one wait.

  Args:
    rows: of `Batches.talks`. rules: of as many.

  Raises:
    ValueError: see `speaking.answer`.
  """
  count, boi = len(rows["tokens"]), network.module().cfg.boi
  lengths = np.where(np.arange(count) < len(seeds), rules.length, 0).astype(np.int32)
  ends = set(rules.stops.tolist()) - {boi}
  texts = [writing.Writing(tokenizer, ends, how, row, boi) for row in range(len(seeds))]
  found = speaking.answer(
    network,
    batches.prompt(rows),
    rules._replace(length=lengths),
    keys=how.keys(seeds, count) if rules.temperature > 0 else None,
    listen=lambda row, ids: texts[row].take(ids),
    chunk=writing.CHUNK if how.hear or how.stop else 0,
  )
  return list(zip(found, texts, strict=False))


def lists(images: Any, count: int) -> list[list[Image.Image]]:
  """The pictures of each question, of one, several or None; see `asked.images_of`."""
  if isinstance(images, str | Image.Image) or not hasattr(images, "__len__"):
    raise ValueError(f"images: expected a list of pictures, got {type(images).__name__}")
  each = [x if isinstance(x, list | tuple) else [] if x is None else [x] for x in images]
  if len(each) != count:
    raise ValueError(f"{count} questions but {len(each)} images; None stands for no picture")
  flat = iter(
    asked.all_images([x for own in each for x in own], None, "image") if any(each) else []
  )
  return [[next(flat) for _ in own] for own in each]
