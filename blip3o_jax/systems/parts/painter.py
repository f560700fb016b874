"""Features to pixels through a UNet and an autoencoder (spec 5).

    image ─► autoencoder ─► latents;  features ─► condition;  unet(x_t, t, condition) ≈ noise
    noise ─► unet, guided, Euler ─► latents ─► autoencoder, float32 ─► image in [0, 1]

`paint` is the whole way for a loaded network, in three programs: what comes before the loop, the
loop, and what comes after. B batch, H W pixels, h w cells, C channels.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax.diffusion import eps
from blip3o_jax.diffusion import flow
from blip3o_jax.diffusion import guidance
from blip3o_jax.models import autoencoder
from blip3o_jax.models import unet
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import features as feature_space
from blip3o_jax.systems.parts import finite
from blip3o_jax.systems.parts import seeds as seed_arrays
from blip3o_jax.systems.parts import watching
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program

STAGE = "pixels"
States = list[eps.State]  # of the shares of a batch, see `cores`
Advance = Callable[[States, np.int32, np.int32], States]
AXES: Any = unet.Condition(keys_values=1, pooled=0, time_ids=0)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and design.

  Attributes:
    unet, autoencoder, schedule: of the networks and of the noise.
    grid: latent cells a side. feature_grid: feature cells a side.
    places: channels of a fixed code of each feature cell's row and column, appended to the features
      (released: 0). Cross-attention knows no order; whitened features do not say where they lie.

  Raises:
    ValueError: networks whose latent channels differ, an odd number of `places`.
  """

  unet: unet.Config
  autoencoder: autoencoder.Config
  schedule: eps.Schedule = eps.Schedule()
  grid: int = 128
  feature_grid: int = 8
  places: int = 0

  def __post_init__(self) -> None:
    wanted = self.autoencoder.latent_channels
    if (self.unet.in_channels, self.unet.out_channels) != (wanted, wanted):
      raise ValueError(
        f"unet takes {self.unet.in_channels} and gives {self.unet.out_channels} channels, latents "
        f"have {wanted}"
      )
    if not 0 <= self.places < (width := self.unet.context_dim) or self.places % 2:
      raise ValueError(f"places {self.places}: expected an even number below context_dim {width}")

  @property
  def size(self) -> int:
    """Pixels a side of an image."""
    return self.grid * self.autoencoder.factor


class PixelDecoder(nnx.Module):
  """The two networks, without a UNet where only the autoencoder is wanted."""

  def __init__(self, cfg: Config, *, paints: bool = True, rngs: nnx.Rngs):
    self.cfg = cfg
    self.unet = unet.UNet(cfg.unet, rngs=rngs) if paints else None
    self.autoencoder = autoencoder.Autoencoder(cfg.autoencoder, rngs=rngs)

  @property
  def network(self) -> unet.UNet:
    """The UNet; ValueError where there is none."""
    if self.unet is None:
      raise ValueError("this decoder was built to train its autoencoder and has no UNet")
    return self.unet

  def condition(self, features: jax.Array) -> unet.Condition:
    """float[B, h, w, C] -> what the UNet is given: tokens row by row, their mean, the time ids."""
    tokens = features.reshape(len(features), -1, features.shape[-1]).astype(jnp.float32)
    if self.cfg.places:
      code = jnp.asarray(feature_space.place_code(self.cfg.feature_grid, self.cfg.places))
      code = jnp.broadcast_to(code, (len(tokens), *code.shape))
      tokens = jnp.concatenate([tokens, code], -1)
    size = self.cfg.size
    ids = jnp.asarray([size, size, 0, 0, size, size], jnp.float32)
    return unet.Condition(
      keys_values=self.network.prepare(tokens),
      pooled=jnp.mean(tokens, 1),
      time_ids=jnp.broadcast_to(ids, (len(tokens), len(ids))),
    )

  def encode(self, images: jax.Array) -> jax.Array:
    """Images [-1, 1] float[B, H, W, 3] -> scaled latents float32[B, h, w, C], the mean."""
    return self.autoencoder.latents(images)

  def pixels(self, latents: jax.Array) -> jax.Array:
    """Scaled latents float[B, h, w, C] -> images in [0, 1]; see `Autoencoder.pixels`."""
    return self.autoencoder.pixels(latents)


def build(cfg: Config, rngs: nnx.Rngs) -> PixelDecoder:
  """The module with random parameters."""
  return PixelDecoder(cfg, rngs=rngs)


def paint(
  network: Network,
  features: Any,
  seeds: Sequence[int],
  *,
  steps: int = 50,
  scale: float = 3.0,
  null: Any = None,
  watch: watching.Watch | None = None,
) -> np.ndarray:
  """Features float[B, h, w, C] to pictures uint8[B, H, W, 3], each from its own seed below 2**64.

  Another number of pictures up to the next power of two, of steps, another scale or null compiles
  nothing. Arguments and errors: as `sample`.

  Args:
    watch: called between the steps; a preview shows the latents that are expected then.

  Raises:
    ValueError: a seed that is none; an output that is not finite, which names the part. Whatever
      `watch` raises.
  """
  noise = seed_arrays.words(seeds)

  def shown(states: States, done: int) -> np.ndarray:
    return _shown(network, [eps.expected(each, table, done) for each in states], len(noise))

  table = eps.table(network.module().cfg.schedule, steps)
  advance, states = _sampler(network, features, noise, table, scale, null)
  states = watching.run(advance, states, steps, watch, STAGE, shown)
  return _shown(network, [each.x for each in states], len(noise))


def _shown(network: Network, latents: Sequence[Any], count: int) -> np.ndarray:
  """The pictures uint8[count, H, W, 3] of the first of all latents; ValueError if not finite."""
  decoder = cores.part(network, "autoencoder")
  found = cores.each(lambda each: _pixels(decoder, each), latents)
  images = np.asarray(cores.joined(found))[:count]
  if not np.isfinite(images).all():
    finite.check(np.asarray(cores.joined(latents))[:count], "UNet", network)
    raise finite.fault("autoencoder", network)
  return np.round(images * np.float32(255)).astype(np.uint8)


def compile_for(network: Network, rows: int, shape: Sequence[int], *, guided: bool) -> None:
  """Compiles what `paint` runs for so many pictures; runs nothing.

  A thread may do this while another program compiles or runs: `paint` then finds its programs.

  Args:
    rows: pictures, a power of two. shape: [h, w, C] of the features. guided: a scale other than 1.
  """
  if network.home is not None:  # where arrays lie is known when there are some
    return
  rows //= cores.ways(network, rows)
  array = functools.partial(jax.ShapeDtypeStruct, dtype=np.float32)
  null = array((1, *shape)) if guided else None
  seeds = jax.ShapeDtypeStruct((rows, 2), np.uint32)
  given, one = (network, array((rows, *shape)), seeds, null), np.float32(1)
  condition, state = _start.trace(*given, one).out_info
  table, number = eps.table(network.module().cfg.schedule, 1), np.int32(0)
  looping = cores.halved(network, "unet", rows, guided=guided)
  # The longest first: it compiles while the caller's own programs are traced.
  _loop.lower(looping, condition, one if guided else None, state, table, number, number).compile()
  _start.lower(*given, one).compile()
  _pixels.lower(cores.part(network, "autoencoder"), array(state.x.shape)).compile()


def sample(
  network: Network,
  features: Any,
  noise: Any,
  *,
  steps: int = 50,
  scale: float = 3.0,
  null: Any = None,
) -> np.ndarray:
  """Features to scaled latents by the guided Euler sampler (spec 5.5).

  Args:
    features: float[B, h, w, C], as the generator or the encoder gives them.
    noise: float32[B, h', w', C'] of unit variance, or a seed for each image.
    steps: network calls. scale: of guidance; 1 costs one evaluation a step, not two.
    null: float[h, w, C] or [1 or B, h, w, C], the absence of a condition; default zeros, as in
      training here. The released model wants its own (a stage-1 sample of " ").

  Returns:
    float32[B, h', w', C'].

  Raises:
    ValueError: features and noise of different batch.
  """
  table = eps.table(network.module().cfg.schedule, steps)
  advance, states = _sampler(network, features, noise, table, scale, null)
  states = watching.run(advance, states, steps, None, STAGE)
  return np.asarray(cores.joined([each.x for each in states]))[: len(noise)]


def _sampler(
  network: Network,
  features: Any,
  noise: Any,
  table: eps.Table,
  scale: float,
  null: Any,
) -> tuple[Advance, States]:
  """What goes through the steps of `sample`, and from where.

  The batch is padded to a power of two, the rows beyond the given ones repeated. Each share of it
  has a state, and goes through its steps in its own thread.
  """
  features, noise = np.asarray(features, np.float32), np.asarray(noise)
  if noise.ndim == 1:
    noise = seed_arrays.words(noise)
  if len(noise) != len(features):
    raise ValueError(f"{len(features)} features but noise for {len(noise)} images")
  rows = buckets.power(len(features))
  features, noise = (buckets.repeat_last(x, rows) for x in (features, noise))
  if scale == 1:
    null = None
  elif null is None:
    null = np.zeros((1, *features.shape[1:]), np.float32)
  else:
    null = np.asarray(null, np.float32)
    null = null[None] if null.ndim == features.ndim - 1 else null
    null = null if len(null) == 1 else buckets.repeat_last(null, rows)
  given = cores.shares((features, noise, null), cores.ways(network, rows))
  begun = cores.each(lambda each: _start(network, *each, table.start), given)
  conditions, states = map(list, zip(*begun, strict=True))
  factor = None if scale == 1 else np.float32(scale)
  looping = cores.halved(network, "unet", rows, guided=factor is not None)

  def go(condition: unet.Condition, state: eps.State, first: Any, last: Any) -> eps.State:
    return _loop(looping, condition, factor, state, table, first, last)

  def advance(states: States, first: np.int32, last: np.int32) -> States:
    return cores.each(lambda c, state: go(c, state, first, last), conditions, states)

  return advance, states


@program(brief=True)
def _start(
  network: Network, features: jax.Array, noise: jax.Array, null: jax.Array | None, start: jax.Array
) -> tuple[unet.Condition, eps.State]:
  """The condition, before it that of `null`, if any, and the noise, drawn where it is seeds."""
  module = network.module()
  if noise.ndim == 2:
    cfg = module.cfg
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(seed_arrays.keys(noise))
    noise = flow.noise(keys, (cfg.grid, cfg.grid, cfg.autoencoder.latent_channels))
  found = module.condition(features)
  if null is not None:
    found = guidance.join(module.condition(null), found, AXES)
  return found, eps.begin(noise, start)


@program()
def _loop(
  network: Network,
  condition: unet.Condition,
  scale: jax.Array | None,
  state: eps.State,
  table: eps.Table,
  first: jax.Array,
  last: jax.Array,
) -> eps.State:
  found = network.module().network
  fn = (
    guidance.cfg(found, condition, None, 1)
    if scale is None
    else guidance.joined(found, condition, scale, layers.constrain_pairs)
  )
  return eps.euler_steps(fn, state, table, first, last)


@program()
def _pixels(network: Network, latents: jax.Array) -> jax.Array:
  """Of a `PixelDecoder`, or of its autoencoder alone."""
  return network.module().pixels(latents)


# Files -------------------------------------------------------------------------------------------


parts = decoder_files.parts
rows_of = decoder_files.rows_of


def stored_as(cfg: Config) -> dict[str, str]:
  """Its modules are stored by their own names."""
  del cfg
  return {}
