"""Pictures drawn while training: the fixed prompts, by what is trained and what it lacks.

A run has no part that it does not train with. `samples.decoder` names a Nexus-Gen that gives the
others: a decoder and its autoencoder to the language model, the language model to a decoder.
"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import numpy as np

from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.nexus_gen.model import Part
from blip3o_jax.systems.nexus_gen.model import build
from blip3o_jax.systems.parts.network import Network

NEEDED: tuple[Part, ...] = ("language", "generator", "autoencoder", "constants")


def sampler(cfg: Any, samples: Any, tokenizer: str) -> Callable[[nnx.Module, int], np.ndarray]:
  """See `systems.System.sampler`."""
  if cfg.stage == "editing":
    raise ValueError(
      "config.log.samples_every: the editing decoder paints beside a picture, and samples.prompts "
      "have none; set it to 0"
    )
  if samples.pixel_steps:
    raise ValueError("config.samples.pixel_steps: not read; config.samples.steps are the decoder's")
  if not samples.decoder:
    raise ValueError(
      "config.log.samples_every needs config.samples.decoder, a Nexus-Gen that has the parts which "
      "this run does not train with"
    )
  other, home = verbs.load(samples.decoder, dtype=cfg.backbone.dtype), Path(samples.decoder)
  settings, choice, there = other.settings, other.choice, trees.flatten(other.network.params)
  whole = dataclasses.replace(cfg, parts=NEEDED)
  (graphdef, wanted), (_, own) = _abstract(whole), _abstract(cfg)
  given = {
    path: _given(there, path, leaf, home) for path, leaf in wanted.items() if path not in own
  }
  del other, there  # what is not needed goes
  words = Tokenizer.load(tokenizer or home, prompts.SPECIAL)
  options = {name: getattr(samples, name) for name in ("steps", "scale") if getattr(samples, name)}

  def draw(module: nnx.Module, step: int) -> np.ndarray:
    del step  # the same noise each time shows what training changes
    trained = trees.flatten(Network.of(module).params)
    params = given | {path: trained[path] for path in wanted if path in own}
    network = Network(graphdef, trees.unflatten(params))
    model = verbs.Model(whole, settings, network, words, choice, home)
    return model.generate(samples.prompts, range(len(samples.prompts)), **options)

  return draw


def _abstract(cfg: Config) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
  """The structure of a model, and its leaves by path."""
  graphdef, state = nnx.split(layers.abstract(lambda rngs: build(cfg, rngs)))
  return graphdef, trees.flatten(nnx.to_pure_dict(state))


def _given(there: Any, path: str, leaf: jax.ShapeDtypeStruct, home: Path) -> Any:
  """A leaf of the other model; raises ValueError where it has none, or one of another shape."""
  found = there.get(path)
  if found is None:
    raise ValueError(f"config.samples.decoder {home}: holds no {path}, and neither does the run")
  if found.shape != leaf.shape:
    raise ValueError(
      f"config.samples.decoder {home}: {path} is {found.shape}, but this run's is {leaf.shape}"
    )
  return found
