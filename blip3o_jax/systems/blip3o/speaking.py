"""Answers of BLIP3-o: one prefill of padded conversations, then ids in as many pieces as are heard.

`begin` and `more` are each compiled once for a bucket of rows, prompt and length; how many ids are
written before somebody looks at them is an argument, so that the answer is the same however it is
heard, bit for bit.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import finite
from blip3o_jax.systems.parts import talking
from blip3o_jax.systems.parts import writing
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program


def talk(
  network: Network,
  tokenizer: Tokenizer,
  ends: Sequence[int],
  prompt: Mapping[str, Any],
  counts: Sequence[int],
  how: talking.How,
) -> list[talking.Reply]:
  """Answers padded prompts.

  Args:
    ends: ids that end an answer. prompt, counts: of `talking.Prompts.rows`.

  Raises:
    ValueError: another number of seeds than of conversations, an answer that cannot hold what it
      begins with; scores that are not finite.
  """
  limits, temperature = how.limits or decoding.Limits(), how.temperature or 0.0
  batch, vocabulary = len(prompt["tokens"]), network.module().cfg.backbone.vocab_size
  rules = decoding.rules(
    batch,
    how.length,
    min(tokenizer.size, vocabulary),
    ends,
    forced=tokenizer.encode(limits.begin),
    temperature=temperature,
    limits=limits,
  )
  seeds = how.seeds(len(counts))
  keys = how.keys(seeds, batch) if temperature > 0 else None
  rows = [writing.Writing(tokenizer, ends, how, row) for row in range(len(counts))]
  _write(network, prompt, rules, keys, rows, how)
  return [row.reply(count) for row, count in zip(rows, counts, strict=True)]


def _write(
  network: Network,
  prompt: Mapping[str, Any],
  rules: decoding.Rules,
  keys: jax.Array | None,
  rows: Sequence[writing.Writing],
  how: talking.How,
) -> None:
  """Writes answers until each has ended; the rows that repeat the last one wait."""
  going = np.arange(len(prompt["tokens"])) < len(rows)
  size, parts = writing.CHUNK if how.hear or how.stop else how.length, cores.apart(network)
  answers, done, until = begin(parts, prompt, rules, keys), 0, 1
  while True:
    new = np.array(answers.ids)[:, done:until]  # a copy, for the answers are given away
    for row in np.flatnonzero(going):
      if (new[row] == decoding.BROKEN).any():
        raise finite.fault("language model", network)
      going[row] = rows[int(row)].take(new[row].tolist())
    done, until = until, min(until + size, how.length)
    if done == until or not going.any():
      return
    left = dataclasses.replace(answers, ended=~going)  # type: ignore[arg-type]
    answers = more(parts, left, rules, keys, np.int32(until))


def answer(network: Network, prompt: Mapping[str, Any], rules: decoding.Rules) -> jax.Array:
  """The likeliest ids int32[B, L] after padded prompts, see `decoding.Answers`."""
  network = cores.apart(network)
  answers = begin(network, prompt, rules, None)
  return more(network, answers, rules, None, np.int32(rules.forced.shape[1])).ids


@program()
def begin(
  network: Network,
  prompt: Mapping[str, Any],
  rules: decoding.Rules,
  keys: jax.Array | None,
) -> decoding.Answers:
  """Reads prompts and says the first id of each.

  `prompt` is what `decoding.begin` takes, and `patches` and `layout` of its pictures, if any.
  """
  module = network.module()
  inputs = module.embed(prompt["tokens"], prompt.get("patches"), prompt.get("layout"))
  state = decoding.begin(module.backbone, inputs, prompt, rules.forced.shape[1])
  return decoding.first(module.backbone, state, rules, keys)


@program(donate_argnums=1)
def more(
  network: Network,
  answers: decoding.Answers,
  rules: decoding.Rules,
  keys: jax.Array | None,
  until: jax.Array,
) -> decoding.Answers:
  """Goes on until every row has `until` ids or has ended; see `decoding.more`."""
  return decoding.more(network.module().backbone, answers, rules, keys, until)
