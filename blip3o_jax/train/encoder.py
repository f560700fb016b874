"""A frozen encoder alone: its parameters, a hash of them, and itself on devices."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import time
from typing import Any
from typing import NamedTuple

from absl import logging
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import compiling
from blip3o_jax import layers
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.data.batch import Arrays
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import distributed
from blip3o_jax.train import placement
from blip3o_jax.train.run import Run
from blip3o_jax.train.state import Partition
from blip3o_jax.weights import hashes

_PIECE = 1 << 24  # bytes that are hashed at a time


class Abstract(NamedTuple):
  """The model that an encoder is part of, without arrays: itself, all leaves, the encoder's."""

  module: nnx.Module
  model: loading.Leaves
  wanted: loading.Leaves


def abstract(system: Any, encoder: Any, dtype: str) -> Abstract:
  """The leaves of a system's `parts.encoders.Encoder`, floating ones in `dtype`; no shardings."""
  module = layers.abstract(lambda rngs: system.build(encoder.cfg, rngs))
  model: loading.Leaves = {}
  for path, leaf in trees.flatten(nnx.to_pure_dict(nnx.state(module))).items():
    kind = jnp.dtype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    model[path] = jax.ShapeDtypeStruct(leaf.shape, kind)
  wanted = {path: leaf for path, leaf in model.items() if trees.top(path) in encoder.modules}
  return Abstract(module, model, wanted)


def weights(
  system: Any, encoder: Any, entries: Sequence[str], parts: Abstract
) -> dict[str, jax.Array]:
  """An encoder's parameters from what `init_from` names; {} where nothing there has all of them.

  A run on cached features leaves the encoder of its directories out ("#only=backbone"). So where
  they are read as they are named and none gives it, what they hold is taken all the same.

  Raises:
    FileNotFoundError, ValueError: see `loading.resolve` and `loading.fill`.
  """
  named = loading.resolve(entries)
  whole = [dataclasses.replace(s, item="") if s.kind == "released" else s for s in named]
  for sources in (named, whole) if named != whole else (named,):
    filled, left = loading.fill(system, encoder.cfg, sources, parts.wanted, parts.model)
    if not left:
      return filled
  return {}


def fingerprint(leaves: Mapping[str, Any]) -> str:
  """A BLAKE3 hash of parameters: paths, dtypes, shapes and bytes, in the order of the paths."""
  digest = hashes.new("blake3")
  for path in sorted(leaves):
    value = np.ascontiguousarray(leaves[path])
    digest.update(json.dumps([path, str(value.dtype), value.shape]).encode())
    data = value.reshape(-1).view(np.uint8)
    for start in range(0, len(data), _PIECE):
      digest.update(data[start : start + _PIECE])
  return f"blake3:{digest.hexdigest()}"


class OnDevices:
  """An encoder on all devices of this process, each with records of its own.

  Parameters lie whole on each device or split over them, as `config.mesh.frozen` says and `auto`
  finds room.

  Attributes:
    mesh: over the devices. rows: of a call. fingerprint: of the parameters.

  Raises:
    FileNotFoundError, ValueError: no encoder in `config.init_from`, or one that does not fit.
  """

  def __init__(self, run: Run, system: Any, encoder: Any, per_device: int, dtype: str):
    cfg = run.train
    self.mesh = distributed.make_mesh(distributed.Mesh(), jax.local_devices())
    parts = abstract(system, encoder, cfg.frozen_dtype)
    graphdef = nnx.split(parts.module)[0]
    places = trees.flatten(sharding.shardings(parts.module, self.mesh))
    placed = {
      path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[path])
      for path, leaf in parts.wanted.items()
    }
    alone = Partition(graphdef, {}, placed, {}, frozenset())
    alone, said = placement.place(alone, self.mesh, cfg.mesh)
    filled = weights(system, encoder, cfg.init_from, parts._replace(wanted=dict(alone.frozen)))
    if not filled:
      where = ", ".join(cfg.init_from) or "it is empty"
      raise ValueError(
        f"config.init_from ({where}): holds no {' and '.join(encoder.modules)} with all of the "
        f"{len(placed)} parameters, so there is nothing to encode with"
      )
    for line in said:
      logging.info("%s", line)
    self.fingerprint = fingerprint(filled)
    self._params = trees.unflatten(filled)
    others = {path: leaf for path, leaf in parts.model.items() if path not in filled}
    rest, kind = trees.unflatten(others), jnp.dtype(dtype)

    def encode(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
      # What else the model has is never looked at, so it stays a description.
      model: Any = nnx.merge(graphdef, trees.merge(params, rest))
      return model.prepare(batch)["features"].reshape(-1, *encoder.shape).astype(kind)

    self.rows = per_device * self.mesh.size
    self._encode = jax.jit(encode)
    self._compiled: Any = None

  def __call__(self, batch: Arrays) -> jax.Array:
    """Features [n, h, w, C] of `rows` rows {name: array}; returns before they are there.

    The first call compiles for its shapes, which those of all others are.
    """
    placed = distributed.put(batch, self.mesh, self.rows)
    if self._compiled is None:
      options = compiling.options(self.mesh.devices.flat[0].device_kind)
      began = time.monotonic()
      with jax.set_mesh(self.mesh):
        lowered = self._encode.lower(self._params, placed)
        self._compiled = lowered.compile(compiler_options=options or None)
      text = "compiled the encoder in %.1f s, for %d records at a time on %d devices"
      logging.info(text, time.monotonic() - began, self.rows, self.mesh.size)
    return self._compiled(self._params, placed)
