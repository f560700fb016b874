"""Training of the pixel decoder (`parts.painter`): first its autoencoder, then its UNet.

    image ─► autoencoder ─► latents;  features ─► condition;  unet(x_t, t, condition) ≈ noise

Two trainings share the module, chosen by `Config.train`: first the autoencoder alone, then the UNet
on its frozen latents. B batch, H W pixels, h w cells, C channels.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Transform
from blip3o_jax.data.records import Record
from blip3o_jax.diffusion import eps
from blip3o_jax.models import autoencoder
from blip3o_jax.models import unet
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import flops as operations
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import normalising
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import targets
from blip3o_jax.systems.parts.painter_recordings import recorded as recorded
from blip3o_jax.systems.parts.painter_replay import replay as replay

SPECIAL: dict[str, str] = {}  # no text
encoder = None  # its features are another system's
Batch = Mapping[str, jax.Array]
TIME_BINS = 10


@dataclasses.dataclass(frozen=True)
class Loss:
  """Which terms, and how.

  Attributes:
    drop: share of samples whose features become the null, zeros (classifier-free guidance).
    feature_noise: std of what is added to the features that the UNet is given, so that it draws
      well from features that are nearly right (released: none).
    l1, mse: weights of the autoencoder's pixel errors. edges: of the L1 error of differences
      between neighbouring pixels. kl: of the divergence of the latents from N(0, 1), mean over
      their elements.
  """

  drop: float = 0.1
  feature_noise: float = 0.0
  l1: float = 1.0
  mse: float = 0.0
  edges: float = 0.0
  kl: float = 1e-6


@dataclasses.dataclass(frozen=True)
class Config(painter.Config):
  """The decoder's sizes, and its training.

  Attributes:
    train: which network `loss` trains.
  """

  train: Literal["autoencoder", "unet"] = "unet"
  loss: Loss = Loss()


VARIANTS = {"emu2_gen": Config(unet.VARIANTS["emu2_gen"], autoencoder.VARIANTS["sdxl"])}


class PixelTraining(painter.PixelDecoder):
  """The decoder and its losses."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    # An autoencoder is trained before there is a UNet, which would only lie beside it.
    super().__init__(cfg, paints=cfg.train == "unet", rngs=rngs)
    self.cfg: Config = cfg

  def prepare(self, batch: Batch) -> Batch:
    """Brings `images`, uint8 or in [-1, 1], to the latter; the UNet is given `latents` for them.

    These are made without gradient; a batch that has them stays as it is.
    """
    if "latents" in batch:
      return batch
    out = {**batch, "images": normalising.signed(batch["images"])}
    if self.cfg.train == "unet":
      out["latents"] = jax.lax.stop_gradient(self.encode(out.pop("images")))
      out["features"] = out["features"].astype(jnp.float32)
    return out

  def weights(self, batch: Batch) -> dict[str, jax.Array]:
    """The normaliser of the whole batch: {"samples": float32[]}."""
    rows = next(iter(batch.values())).shape[0]
    return {"samples": jnp.float32(rows)}

  def loss(
    self, batch: Batch, key: jax.Array, weights: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the network that `Config.train` names.

    Args:
      batch: see `batch_spec`, prepared. key: of the step. weights: of the whole batch.

    Returns:
      float32[] and additive metrics.
    """
    train = self._autoencoder_loss if self.cfg.train == "autoencoder" else self._unet_loss
    return train(batch, key, weights["samples"])

  def _autoencoder_loss(
    self, batch: Batch, key: jax.Array, weight: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    cfg, images = self.cfg.loss, batch["images"].astype(jnp.float32)
    mean, logvar = self.autoencoder.encode(images)
    latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, jnp.float32)
    error = self.autoencoder.decode(latents) - images
    count = len(images) / weight  # a mean over the rows here becomes their share of the whole
    terms = {
      "l1": jnp.mean(jnp.abs(error)),
      "mse": jnp.mean(jnp.square(error)),
      "kl": 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar),
    }
    if cfg.edges:
      down, right = jnp.diff(error, axis=1), jnp.diff(error, axis=2)
      terms["edges"] = jnp.mean(jnp.abs(down)) + jnp.mean(jnp.abs(right))
    terms = {name: value * count for name, value in terms.items()}
    total = sum((getattr(cfg, n) * v for n, v in terms.items()), start=jnp.float32(0.0))
    return total, {f"autoencoder_{name}": value for name, value in terms.items()}

  def _unet_loss(
    self, batch: Batch, key: jax.Array, weight: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    k_time, k_noise, k_drop, k_features = jax.random.split(key, 4)
    x0, features = batch["latents"], batch["features"]
    features += self.cfg.loss.feature_noise * jax.random.normal(k_features, features.shape)
    keep = jax.random.bernoulli(k_drop, 1 - self.cfg.loss.drop, (len(x0), 1, 1, 1))
    condition = self.condition(jnp.where(keep, features, jnp.zeros_like(features)))
    t = eps.times(k_time, len(x0), self.cfg.schedule)
    noise = jax.random.normal(k_noise, x0.shape, jnp.float32)
    each = eps.loss(
      lambda x, times: self.network(x, times, condition), x0, noise, t, self.cfg.schedule
    )
    value = jnp.sum(each) / weight
    which = jax.nn.one_hot(t * TIME_BINS // self.cfg.schedule.train_steps, TIME_BINS)
    return value, {
      "pixels_loss": value,
      "pixels_loss_by_t/sum": each @ which,
      "pixels_loss_by_t/count": jnp.sum(which, 0),
    }


def build(cfg: Config, rngs: nnx.Rngs) -> PixelTraining:
  """The module with random parameters."""
  return PixelTraining(cfg, rngs=rngs)


def check(cfg: Config, trained: Sequence[str]) -> None:
  """Raises ValueError for a choice of trained leaves that cannot be trained; all can."""
  del cfg, trained


def batch_spec(cfg: Config, batch: int, bucket: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of one batch: images, and for the UNet features. There are no buckets."""
  del bucket
  g, c = cfg.feature_grid, cfg.unet.context_dim - cfg.places
  out = {"images": jax.ShapeDtypeStruct((batch, cfg.size, cfg.size, 3), jnp.uint8)}
  if cfg.train == "unet":
    out["features"] = jax.ShapeDtypeStruct((batch, g, g, c), jnp.float32)
  return out


def flops(cfg: Config, spec: Mapping[str, Any]) -> float:
  """Operations of one training step on a batch {name: anything with a shape}.

  Training the UNet, the autoencoder only encodes, without gradients.
  """
  rows, side = next(iter(spec.values())).shape[0], cfg.size
  if cfg.train == "autoencoder":
    return (
      3.0
      * rows
      * (operations.encode(cfg.autoencoder, side) + operations.decode(cfg.autoencoder, side))
    )
  tokens = cfg.feature_grid**2
  call = operations.paint_condition(cfg.unet, tokens) + operations.paint(cfg.unet, cfg.grid, tokens)
  return rows * (3.0 * call + (operations.encode(cfg.autoencoder, side) if "images" in spec else 0))


def sampler(cfg: Config, samples: Any, tokenizer: str) -> Callable[[nnx.Module, int], np.ndarray]:
  """Raises ValueError: nothing here makes features of a prompt."""
  raise ValueError("config.log.samples_every: the system pixels draws nothing from prompts")


# Its files ---------------------------------------------------------------------------------------

COMPONENTS = decoder_files.COMPONENTS
LOOKS_FOR = decoder_files.LOOKS_FOR
recognises = decoder_files.recognises
parts = decoder_files.parts
rows_of = decoder_files.rows_of
stored_as = painter.stored_as


def licence(component: str, cfg: Config | None, parameters: int) -> layout.Licence:
  """Under which licence a network of this size was released."""
  del cfg
  return decoder_files.licence(component, parameters)


def differences(cfg: Config) -> list[str]:
  """Nothing: a decoder is as its config files say."""
  del cfg
  return []


def exported(
  cfg: Config, bases: Sequence[layout.Base], paths: Collection[str], tokenizer: Path | None
) -> layout.Export:
  """The directory that a run becomes: its networks, beside whatever model it started from."""
  del cfg, tokenizer
  base = layout.base_of(bases)
  modules = {trees.top(path) for path in paths}
  networks, extra = decoder_files.exported(bases, base, modules)
  others = [p for p in (base.parts if base else ()) if p["kind"] not in decoder_files.FOLDERS]
  directory = None if base is None else base.directory
  return layout.Export(directory, (*others, *networks), extra)


def write_json(cfg: Config, export: layout.Export, folder: Path, tokenizer: Path | None) -> None:
  """Writes the config.json of the networks, and the schedule."""
  del tokenizer
  networks = {part["kind"] for part in export.parts} & set(decoder_files.FOLDERS)
  decoder_files.write_json(cfg, folder / decoder_files.home_of(export.parts), networks)


def transforms(cfg: Config, data: Data, tokenizer: Any) -> dict[int, Transform]:
  """{bucket: `Picture`}, which is the same for each: images and, if `data` asks for them, features.

  Raises:
    ValueError: another task than "pixels", a field that it does not read.
  """
  del cfg, tokenizer
  data.check_task("pixels")
  data.refuse("pictures", "aspect", "drop_captions", "swap_captions")
  return {bucket: Picture(data) for bucket in data.buckets}


@dataclasses.dataclass(frozen=True)
class Picture:
  """images uint8[S, S, 3], and the cached features [h, w, C] of their own type."""

  data: Data
  counts = ""

  def tokens(self, record: Record) -> int:
    """0: there is no text."""
    del record
    return 0

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    del rng
    images = targets.square(record, self.data)
    return {"images": images} | (targets.cached(record) if self.data.features else {})


# Use ---------------------------------------------------------------------------------------------

VERBS: tuple[str, ...] = ()


def stages(cfg: Config, ask: Any) -> list[Any]:
  """None: this system has no verbs."""
  del cfg, ask
  return []


def load(directory: Path, *, dtype: layers.Dtype, memory: Any = None) -> Any:
  """Raises ValueError: alone, this system has no verbs."""
  raise ValueError(f"{directory}: the system pixels has nothing that it can be asked")
