"""The image tower of a miniature: contrastive with captions, plus a light reconstruction.

    image ─► encoder (EVA, pooled) ─► mean over cells ─► image_proj ┐
    caption tokens ─► text ─────────────────────────► text_proj ────┴► softmax over the batch
    pooled features ─► narrow + noise ─► pixels of each cell, so that fine detail survives in few
        channels, of which each matters; they become the generator's target space

Released systems take their tower trained (spec 2.2); this system exists so that a miniature has
one made by the package's own parts. Only `encoder` is kept afterwards.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from pathlib import Path
import re
from typing import Any

import einops
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Transform
from blip3o_jax.data.records import Record
from blip3o_jax.data.text import chat
from blip3o_jax.models import clip_text
from blip3o_jax.systems.parts import features as feature_space
from blip3o_jax.systems.parts import features_files
from blip3o_jax.systems.parts import flops as operations
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import normalising
from blip3o_jax.systems.parts import targets
from blip3o_jax.systems.parts.recorded import Call
from blip3o_jax.weights import table

SPECIAL = {name: chat.QWEN[name] for name in ("pad", "im_end")}
encoder = None  # its own is trained, so that nothing can be kept of it
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and weights.

  Attributes:
    features: the image side. text: the text side. dim: of the shared space.
    reconstruction: weight of the mean squared pixel error beside the contrastive loss.
    channels: of the narrow features, each of unit variance over a batch. noise: std of what is
      added to them, so that what is said with few of them costs least: colours and shapes apart.
    hidden: width of the map from narrow features to pixels.
  """

  features: feature_space.Config
  text: clip_text.Config
  dim: int = 64
  reconstruction: float = 15.0
  channels: int = 16
  noise: float = 0.2
  hidden: int = 256


class Contrast(nnx.Module):
  """The two towers, their projections, the narrow features and the map back to pixels."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.cfg = cfg
    tower = cfg.features.tower
    self.encoder = feature_space.FeatureEncoder(cfg.features, rngs=rngs)
    self.text = clip_text.ClipText(cfg.text, rngs=rngs)
    axes = ("embed", "rest")
    self.image_proj = layers.linear(tower.dim, cfg.dim, axes, bias=False, rngs=rngs)
    self.text_proj = layers.linear(cfg.text.dim, cfg.dim, axes, bias=False, rngs=rngs)
    self.cell = tower.image_size // cfg.features.grid
    self.narrow = layers.linear(tower.dim, cfg.channels, axes, bias=False, rngs=rngs)
    self.widen = layers.linear(cfg.channels, cfg.hidden, ("rest", "mlp"), rngs=rngs)
    self.pixels = layers.linear(cfg.hidden, 3 * self.cell**2, ("mlp", "rest"), rngs=rngs)
    self.logit_scale = nnx.Param(layers.filled((1,), math.log(1 / 0.07)), axes=("rest",))

  def prepare(self, batch: Batch) -> Batch:
    """Normalises `images` that came as uint8."""
    return {**batch, "images": normalising.clip(batch["images"])}

  def weights(self, batch: Batch) -> dict[str, jax.Array]:
    """The number of samples, float32[]."""
    return {"image": jnp.float32(batch["images"].shape[0])}

  def loss(
    self, batch: Batch, key: jax.Array, weights: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Symmetric softmax contrastive loss plus reconstruction.

    Args:
      batch: prepared: images float32[B, H, W, 3] as EVA takes them, tokens, segments int[B, T].
      key: of the noise. weights: from `weights`.

    Returns:
      float32[] and additive metrics. Accumulated micro-batches contrast within themselves.
    """
    images = batch["images"]
    pooled = self.encoder.pooled(images)
    shown = self.image_proj(jnp.mean(pooled, (1, 2)))
    told = self.text_proj(self.text(batch["tokens"], batch["segments"]))
    shown, told = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (shown, told))
    logits = jnp.exp(jnp.minimum(self.logit_scale[...], jnp.log(100.0))) * shown @ told.T
    own = jnp.arange(len(logits))
    by_image = jax.nn.log_softmax(logits, 1)[own, own]
    by_text = jax.nn.log_softmax(logits, 0)[own, own]
    contrast = -jnp.sum(by_image + by_text) / (2 * weights["image"])
    cells = einops.rearrange(images, "b (h p) (w q) c -> b h w (p q c)", p=self.cell, q=self.cell)
    error = jnp.mean(jnp.square(self._rebuild(pooled, key) - cells), (1, 2, 3))
    rebuilt = jnp.sum(error) / weights["image"]
    right = jnp.sum(jnp.argmax(logits, 1) == own) / weights["image"]
    total = contrast + self.cfg.reconstruction * rebuilt
    return total, {"contrast_loss": contrast, "pixel_error": rebuilt, "retrieval": right}

  def _rebuild(self, pooled: jax.Array, key: jax.Array) -> jax.Array:
    """Pixels float[B, h, w, 3 * cell^2] of pooled features, through narrow ones with noise."""
    x = self.narrow(pooled)
    x = (x - jnp.mean(x, (0, 1, 2))) * jax.lax.rsqrt(jnp.var(x, (0, 1, 2)) + 1e-6)
    x += self.cfg.noise * jax.random.normal(key, x.shape)
    return self.pixels(jax.nn.gelu(self.widen(x)))


def build(cfg: Config, rngs: nnx.Rngs) -> Contrast:
  """The module; abstract under `nnx.eval_shape`."""
  return Contrast(cfg, rngs=rngs)


def check(cfg: Config, trained: Sequence[str]) -> None:
  """Raises ValueError for a choice of trained leaves that cannot be trained; all can."""
  del cfg, trained


def batch_spec(cfg: Config, batch: int, bucket: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Arrays of a batch of pictures with captions of `bucket` tokens."""
  ids = jax.ShapeDtypeStruct((batch, bucket), jnp.int32)
  side = cfg.features.tower.image_size
  images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
  return {"tokens": ids, "segments": ids, "images": images}


def flops(cfg: Config, spec: Mapping[str, Any]) -> float:
  """Operations of one training step on a batch {name: anything with a shape}; all is trained."""
  rows, length = spec["tokens"].shape
  tower, cell = cfg.features.tower, cfg.features.tower.image_size // cfg.features.grid
  each = operations.eva(tower) + operations.text(cfg.text, length)
  each += 2 * cfg.dim * (tower.dim + cfg.text.dim + rows)  # projections, and every other text
  rebuilt = tower.dim * cfg.channels + cfg.channels * cfg.hidden + cfg.hidden * 3 * cell**2
  return 3.0 * rows * (each + 2 * cfg.features.grid**2 * rebuilt)


def sampler(cfg: Config, samples: Any, tokenizer: str) -> Callable[[nnx.Module, int], np.ndarray]:
  """Raises ValueError: this system draws no pictures."""
  raise ValueError("config.log.samples_every: the system contrast draws no pictures")


def transforms(cfg: Config, data: Data, tokenizer: chat.Tokenizer | None) -> dict[int, Transform]:
  """{bucket: `Pair`}: tokens, segments int32[B, P] and images uint8[B, S, S, 3], or features.

  Raises:
    ValueError: another task than "contrast", a field that it does not read, no tokenizer.
  """
  del cfg
  data.check_task("contrast")
  data.refuse("pictures", "aspect", "drop_captions", "swap_captions")
  if tokenizer is None:
    raise ValueError(f"config.tokenizer: task {data.task!r} needs a directory with tokenizer.json")
  return {bucket: Pair(data, tokenizer, bucket) for bucket in data.buckets}


class Pair:
  """A picture and its bare caption, cut to `bucket` tokens with <|im_end|> as the last."""

  def __init__(self, data: Data, tokenizer: chat.Tokenizer, bucket: int):
    self._data, self._tokenizer, self._bucket = data, tokenizer, bucket
    self.counts = f"caption and its end, {tokenizer.fingerprint}"

  def tokens(self, record: Record) -> int:
    """Of the caption, uncut, and its end."""
    return len(self._tokenizer.encode(record.prompt)) + 1

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    del rng
    limit = self._bucket
    caption = chat.cut(self._tokenizer.encode(record.prompt), limit - 1, "caption", limit)
    row = chat.token_row([*caption, self._tokenizer.im_end], limit, self._tokenizer.pad)
    return row | targets.target(record, self._data)


def recorded(names: Iterable[str]) -> dict[str, Call]:
  """Nothing: the encoder, all that is kept of it, is recorded with the system that uses it."""
  del names
  return {}


def replay(
  directory: Path, dtype: layers.Dtype, recording: Mapping[str, np.ndarray]
) -> Callable[..., dict[str, Any]]:
  """Refused, since `recorded` offers nothing.

  Raises:
    ValueError: always.
  """
  raise ValueError(f"{directory}: no recording is of the system contrast")


# Its files: the image tower of another system's directory, and none of its own -------------------

COMPONENTS: dict[str, str] = {}
LOOKS_FOR = (
  "nothing: it has no released layout; a run of it may start from a folder with an EVA tower"
)


def recognises(files: layout.Files) -> bool:
  """No folder: this system has no layout of its own."""
  del files
  return False


def parts(files: layout.Files) -> layout.Layout:
  """The image tower, alone in a folder or inside a model's main files; their other tensors stay."""
  if features_files.alone(files):
    return layout.Layout(None, (features_files.part_alone(files),))
  kept = f"(?!{re.escape(features_files.PREFIX)}|model\\.gen_feature_whiten\\.).*"
  inside = layout.Part(features_files.INSIDE, "", layout.MAIN, ("encoder",), dict, {kept: ""})
  return layout.Layout(None, (inside,))


def rows_of(kind: str, names: Collection[str], home: Path) -> list[table.Row]:
  """The table of the tower."""
  del home
  return features_files.rows(kind, names)


def stored_as(cfg: Config) -> dict[str, str]:
  """Its modules are stored by their own names."""
  del cfg
  return {}


def licence(component: str, cfg: Config | None, parameters: int) -> layout.Licence:
  """Unknown: nothing of it was released."""
  del component, cfg, parameters
  return layout.Licence()


def differences(cfg: Config) -> list[str]:
  """Nothing: there is no release."""
  del cfg
  return []


def exported(
  cfg: Config, bases: Sequence[layout.Base], paths: Collection[str], tokenizer: Path | None
) -> layout.Export:
  """Raises ValueError: this system has no released layout."""
  del cfg, bases, paths, tokenizer
  raise ValueError("a run of the system 'contrast', which has no released layout")


def write_json(cfg: Config, export: layout.Export, folder: Path, tokenizer: Path | None) -> None:
  """Raises ValueError, as `exported`."""
  del export, folder
  exported(cfg, (), (), tokenizer)


# Use ---------------------------------------------------------------------------------------------

VERBS: tuple[str, ...] = ()


def stages(cfg: Config, ask: Any) -> list[Any]:
  """None: this system has no verbs."""
  del cfg, ask
  return []


def load(directory: Path, *, dtype: layers.Dtype, memory: Any = None) -> Any:
  """Raises ValueError: alone, this system has no verbs."""
  raise ValueError(f"{directory}: the system contrast has nothing that it can be asked")
