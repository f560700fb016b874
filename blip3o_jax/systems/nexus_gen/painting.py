"""Image vectors to pictures: the guided sampler of a decoder, then the autoencoder (spec 7).

    noise, vectors ─► generator or editor, Euler steps ─► latents ─► autoencoder ─► uint8

`paint` is the whole way for a loaded network, in two programs. B batch, D width of the vectors,
H W pixels, h w latent cells.
"""

from collections.abc import Sequence
import functools
from typing import Any
from typing import Literal

import jax
import numpy as np

from blip3o_jax.diffusion import flow
from blip3o_jax.diffusion import guidance as guiding
from blip3o_jax.models import flux
from blip3o_jax.systems.nexus_gen import decoders
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import finite
from blip3o_jax.systems.parts import seeds as seed_arrays
from blip3o_jax.systems.parts.network import Network

Which = Literal["generator", "editor"]
NAMES: dict[Which, str] = {"generator": "generation decoder", "editor": "editing decoder"}
SCALES: dict[Which, float] = {"generator": 3.0, "editor": 1.0}  # of guidance, as released
SIZE = (512, 512)


def table(steps: int) -> flow.Table:
  """What the sampler visits in so many steps; ValueError for fewer than one."""
  return flow.table(steps, truncate=False, shift=decoders.SHIFT, last=decoders.LAST)


def sample(
  decoder: decoders.Decoder,
  constants: decoders.Constants,
  given: decoders.Given,
  noise: jax.Array,
  steps: flow.Table,
  scale: float | jax.Array | None = None,
  guidance: float | jax.Array = decoders.GUIDANCE,
) -> jax.Array:
  """Vectors to scaled latents; jit-able, the whole loop in one program.

  Args:
    given: vectors float[B, n, D], and those of the reference or None.
    noise: float32[B, h, w, 16]. steps: `table` of their number.
    scale: of guidance away from the null, may be traced; None is unguided, one pass a step.
    guidance: that is embedded.

  Returns:
    float32[B, h, w, 16].

  Raises:
    ValueError: see `decoders.Decoder.context`.
  """
  rows, height, width, _ = noise.shape
  size = (height, width)
  null = None if scale is None else decoder.null(constants, rows, size, guidance)
  condition = decoder.condition(constants, *given, size, guidance)
  velocity = guiding.cfg(decoder.dit, condition, null, 1 if scale is None else scale, apart=True)
  return flux.unpatchify(flow.euler(velocity, flux.patchify(noise), steps), height, width)


def paint(
  network: Network,
  vectors: Any,
  seeds: Sequence[int],
  *,
  reference: Any = None,
  decoder: Which = "generator",
  size: tuple[int, int] = SIZE,
  steps: int = 50,
  scale: float | None = None,
) -> np.ndarray:
  """Vectors to pictures uint8[B, H, W, 3], each from its own seed.

  Another number of pictures up to the next power of two, of steps, another seed or scale compiles
  nothing.

  Args:
    network: of `model.NexusGen` with the decoder, "autoencoder" and "constants".
    vectors: float[B, n, D]. seeds: B whole numbers below 2**64.
    reference: float[B, r, D] of the pictures that are edited; the editor can do without.
    decoder: which of the two. size: height and width in pixels. steps: of the sampler.
    scale: of guidance, default `SCALES`; 1 costs one pass a step, not two.

  Raises:
    ValueError: a part that the network lacks, a size that is no multiple of 16, arrays of another
      batch, a seed that is none, an output that is not finite, which names the part; and see
      `sample`.
  """
  cells = _cells(network, decoder, size)
  words = seed_arrays.words(seeds)
  given = (
    _checked("vectors", vectors, len(words)),
    None if reference is None else _checked("reference", reference, len(words)),
  )
  if not len(words):
    return np.zeros((0, *size, 3), np.uint8)
  rows = buckets.power(len(words))
  scale = SCALES[decoder] if scale is None else scale
  latents = _latents(
    network,
    tuple(None if x is None else buckets.repeat_last(x, rows) for x in given),
    buckets.repeat_last(words, rows),
    table(steps),
    None if scale == 1 else np.float32(scale),
    decoder=decoder,
    size=cells,
  )
  images = np.asarray(_pixels(network, latents))[: len(words)]
  if not np.isfinite(images).all():
    finite.check(np.asarray(latents)[: len(words)], NAMES[decoder], network)
    raise finite.fault("autoencoder", network)
  return bytes_of(images)


def bytes_of(images: np.ndarray) -> np.ndarray:
  """Images float32 in [0, 1] as uint8, cut and not rounded, as released (spec 7)."""
  return (images * np.float32(255)).astype(np.uint8)


def _checked(what: str, values: Any, count: int) -> np.ndarray:
  """Vectors as float32[B, n, D] on the host."""
  found = np.asarray(values, np.float32)
  if found.ndim != 3 or len(found) != count:
    raise ValueError(
      f"{what} of shape {found.shape}: expected [B, count, width], one for each of {count} seeds"
    )
  if not np.isfinite(found).all():
    raise ValueError(f"{what}: not finite (NaN or infinity), so there is nothing to paint")
  return found


def _cells(network: Network, decoder: Which, size: tuple[int, int]) -> tuple[int, int]:
  """Height and width in latent cells of a picture of `size` pixels that the network can paint."""
  module = network.module()
  for part in (decoder, "constants"):
    module.part(part)
  factor = module.part("autoencoder").cfg.factor
  step = factor * flux.PATCH
  if any(side < step or side % step for side in size):
    raise ValueError(f"size {size}: expected a height and a width that are multiples of {step}")
  return size[0] // factor, size[1] // factor


@functools.partial(jax.jit, static_argnames=("decoder", "size"))
def _latents(
  network: Network,
  given: decoders.Given,
  words: jax.Array,
  steps: flow.Table,
  scale: jax.Array | None,
  *,
  decoder: Which,
  size: tuple[int, int],
) -> jax.Array:
  module = network.module()
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(seed_arrays.keys(words))
  noise = flow.noise(keys, (*size, module.autoencoder.cfg.latent_channels))
  found, guidance = getattr(module, decoder), module.cfg.guidance
  return sample(found, module.constants, given, noise, steps, scale, guidance)


@jax.jit
def _pixels(network: Network, latents: jax.Array) -> jax.Array:
  return network.module().autoencoder.pixels(latents)
