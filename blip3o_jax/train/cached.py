"""Cached features: which encoder made them of which pictures, and whether a run may train on them.

A set that `train.encoding` wrote says so in its manifest, under "encoder":

  fingerprint  of the encoder's parameters, see `encoder.fingerprint`
  parameters   the dtype in which they were loaded
  design       of its network, as the system's `encoder` describes it
  shape, dtype of the features of a picture
  transform    what was made of a record first, see `transform`
  tokenizer    its fingerprint, of an encoder that reads texts
  versions     of this package and of JAX
"""

from collections.abc import Iterable
from collections.abc import Mapping
import json
from typing import Any

from absl import logging
import jax

from blip3o_jax import trees
from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import Source
from blip3o_jax.data.sources import mixed
from blip3o_jax.data.sources.arrayrecord import ArrayRecordSource
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.train import encoder
from blip3o_jax.train.run import Run

AGAIN = "encode the pictures again with blip3o encode, or train on what they were encoded for"


def transform(data: Data, made: Any = None) -> dict[str, Any]:
  """What is made of a record before an encoder sees it; Pillow's version does not change it.

  Args:
    made: a `systems.parts.encoders.Encoder`; None for one of plain pictures.
  """
  if made is not None and made.read is not None:
    return {**made.read(data), "resize": images.RESIZE}
  out: dict[str, Any] = {name: getattr(data, name) for name in ("image_size", "squash", "friendly")}
  return out | {"resize": images.RESIZE}


class Caches:
  """Checks what a run reads from caches of features against what the run is of."""

  def __init__(self, run: Run, system: Any):
    self._run, self._system = run, system
    self._encoder = system.encoder(run.model) if system.encoder else None
    self._first: tuple[str, str] | None = None
    self._found: dict[str, tuple[str, str]] = {}

  def check(self, source: Source, data: Data) -> None:
    """Looks at every set of a source that is read for its features.

    Raises:
      ValueError: a packed set without features; pictures that were read otherwise than `data` says;
        features of another shape, or of another encoder than `config.init_from` holds or than the
        other sets are of.
    """
    for piece in mixed.pieces(source):
      if not isinstance(piece.source, ArrayRecordSource):
        logging.info("cached features of %s: nothing says which encoder made them", piece.name)
        continue
      home, manifest = piece.source.index.home, piece.source.manifest
      if not any(shard.get("fields", {}).get("features") for shard in manifest["shards"]):
        raise ValueError(
          f"{home}: holds no cached features, and config.data.features is set; blip3o encode "
          "makes a set that does"
        )
      if about := manifest.get("encoder"):
        self._check(home, about, data)
      else:
        logging.warning("%s: nothing says which encoder made its features", home)

  def _check(self, home: str, about: Mapping[str, Any], data: Data) -> None:
    if faults := list(self._faults(about, data)):
      raise ValueError(f"{home}: {'; '.join(faults)}; {AGAIN}")
    made = about["fingerprint"]
    if self._first is None:
      self._first = home, made
    if made != self._first[1]:
      where, other = self._first
      raise ValueError(
        f"{home}: its features are of the encoder {made}, those of {where} of {other}; a run "
        "trains on features of one encoder: encode one of them again"
      )
    if self._encoder is None:
      return
    found, why = self._held(about["parameters"])
    if not found:
      text = "%s: its features are of the encoder %s, which cannot be checked: %s"
      logging.warning(text, home, made, why)
    elif found != made:
      raise ValueError(
        f"{home}: its features are of the encoder {made}, but that of config.init_from "
        f"({', '.join(self._run.train.init_from)}) is {found}; encode the pictures again with it, "
        "or start from the weights that they were encoded with"
      )
    else:
      logging.info("%s: its features are of the encoder in config.init_from, %s", home, made)

  def _faults(self, about: Mapping[str, Any], data: Data) -> Iterable[str]:
    """What of a set does not fit the run, but for the parameters."""
    had, now = about["transform"], transform(data, self._encoder)
    if self._encoder is None:
      now.pop("image_size")  # of the run's own pictures, which its encoder did not see
      spec = self._system.batch_spec(self._run.model, 1, 1)
      shape = spec["features"].shape[1:] if "features" in spec else None
    else:
      shape = self._encoder.shape
      old, new = trees.flatten(about["design"]), trees.flatten(_plain(self._encoder.design))
      for path in sorted(old | new):
        if old.get(path) != new.get(path):
          name = path.replace("/", ".")
          yield f"its encoder has {name} {old.get(path)}, the run's {new.get(path)}"
    if self._encoder is not None and self._encoder.texts and self._run.tokenizer:
      words = Tokenizer.load(self._run.tokenizer, self._system.SPECIAL).fingerprint
      if words != about.get("tokenizer"):
        yield f"its tokenizer was {about.get('tokenizer')}, that of config.tokenizer is {words}"
    for name, value in now.items():
      if had.get(name) != value:
        where = "this package's is" if name == "resize" else f"config.data.{name} is"
        yield f"its pictures were encoded with {name} {had.get(name)!r}, {where} {value!r}"
    if shape is None:
      yield "its features have no place in this run's batches"
    elif list(shape) != list(about["shape"]):
      yield f"its features have the shape {about['shape']}, the run's {list(shape)}"

  def _held(self, dtype: str) -> tuple[str, str]:
    """The fingerprint of the encoder that `init_from` holds, or "" and why it is not known.

    Every process reads all of it, once a run.
    """
    if dtype not in self._found:
      self._found[dtype] = self._read(dtype)
    return self._found[dtype]

  def _read(self, dtype: str) -> tuple[str, str]:
    entries = self._run.train.init_from
    if not entries:
      return "", "config.init_from is empty"
    parts = encoder.abstract(self._system, self._encoder, dtype)
    here = jax.sharding.SingleDeviceSharding(_host())
    placed = {
      path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
      for path, leaf in parts.wanted.items()
    }
    try:
      filled = encoder.weights(self._system, self._encoder, entries, parts._replace(wanted=placed))
    except FileNotFoundError as error:  # a run that goes on may find its sources elsewhere
      return "", str(error)
    if not filled:
      return "", f"config.init_from ({', '.join(entries)}) holds no encoder"
    return encoder.fingerprint(filled), ""


def _plain(value: Any) -> Any:
  """As JSON gives it back."""
  return json.loads(json.dumps(value))


def _host() -> jax.Device:
  """The CPU of this process, which has room where an accelerator may not; if JAX may use it."""
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:
    return jax.local_devices()[0]
