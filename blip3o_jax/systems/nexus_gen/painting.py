"""Image vectors to pictures: the guided sampler of a decoder, then the autoencoder (spec 7).

    noise, vectors ─► generator or editor, Euler steps ─► latents ─► autoencoder ─► uint8

`paint` is the whole way for a loaded network, in three programs: what comes before the sampler's
loop, the loop from any step to any other, and what comes after. B batch, D width of the vectors,
H W pixels, h w latent cells, N tokens of latents.
"""

from collections.abc import Sequence
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
from blip3o_jax.systems.parts import watching
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program

Which = Literal["generator", "editor"]
NAMES: dict[Which, str] = {"generator": "generation decoder", "editor": "editing decoder"}
SCALES: dict[Which, float] = {"generator": 3.0, "editor": 1.0}  # of guidance, as released
SIZE = (512, 512)
STAGE = "pixels"
Condition = tuple[flux.Condition, flux.Condition | None]  # and its absence, where it is guided


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
  condition = _condition(decoder, constants, given, noise.shape[:3], scale is not None, guidance)
  state = advance(decoder, condition, scale, _begin(noise), steps, 0, steps.steps)
  return flux.unpatchify(state.x, *noise.shape[1:3])


def _condition(
  decoder: decoders.Decoder,
  constants: decoders.Constants,
  given: decoders.Given,
  shape: tuple[int, ...],
  guided: bool,
  guidance: float | jax.Array,
) -> Condition:
  """What the transformer is told of latents of `shape` (B, h, w) at every step."""
  rows, *size = shape
  cells = (size[0], size[1])
  null = decoder.null(constants, rows, cells, guidance) if guided else None
  return decoder.condition(constants, *given, cells, guidance), null


def _begin(noise: jax.Array) -> flow.State:
  return flow.begin(flux.patchify(noise))


def advance(
  decoder: decoders.Decoder,
  condition: Condition,
  scale: float | jax.Array | None,
  state: flow.State,
  table: flow.Table,
  first: int | jax.Array,
  last: int | jax.Array,
) -> flow.State:
  """The sampler from step `first` to before step `last`, of tokens float32[B, N, C]; one loop."""
  velocity = guiding.cfg(decoder.dit, *condition, 1 if scale is None else scale, apart=True)
  return flow.euler_steps(velocity, state, table, first, last)


def paint(
  network: Network,
  given: tuple[Any, Any],
  seeds: Sequence[int],
  *,
  decoder: Which = "generator",
  size: tuple[int, int] = SIZE,
  steps: int = 50,
  scale: float | None = None,
  watch: watching.Watch | None = None,
) -> np.ndarray:
  """Vectors to pictures uint8[B, H, W, 3], each from its own seed.

  Another number of pictures up to the next power of two, of steps, another seed or scale compiles
  nothing.

  Args:
    network: of `model.NexusGen` with the decoder, "autoencoder" and "constants".
    given: vectors float[B, n, D], and those of the pictures that are edited, float[B, r, D], or
      None; the editor can do without.
    seeds: B whole numbers below 2**64.
    decoder: which of the two. size: height and width in pixels. steps: of the sampler.
    scale: of guidance, default `SCALES`; 1 costs one pass a step, not two.
    watch: called between the steps; a preview shows the latents that are expected then.

  Raises:
    ValueError: a part that the network lacks, a size that is no multiple of 16, arrays of another
      batch, a seed that is none, an output that is not finite, which names the part; and see
      `sample`. Whatever `watch` raises.
  """
  cells = _cells(network, decoder, size)
  words = seed_arrays.words(seeds)
  vectors, reference = given
  checked = (
    _checked("vectors", vectors, len(words)),
    None if reference is None else _checked("reference", reference, len(words)),
  )
  if not len(words):
    return np.zeros((0, *size, 3), np.uint8)
  rows = buckets.power(len(words))
  padded = tuple(None if x is None else buckets.repeat_last(x, rows) for x in checked)
  scale, visited = SCALES[decoder] if scale is None else scale, table(steps)
  guided = None if scale == 1 else np.float32(scale)
  many = buckets.repeat_last(words, rows)
  condition, state = _start(
    network, padded, many, decoder=decoder, size=cells, guided=guided is not None
  )

  def go_on(state: flow.State, first: np.int32, last: np.int32) -> flow.State:
    return _loop(network, condition, guided, state, visited, first, last, decoder=decoder)

  def shown(tokens: Any) -> np.ndarray:
    images = np.asarray(_pixels(network, tokens, size=cells))[: len(words)]
    if not np.isfinite(images).all():
      finite.check(np.asarray(tokens)[: len(words)], NAMES[decoder], network)
      raise finite.fault("autoencoder", network)
    return bytes_of(images)

  def preview(state: flow.State, done: int) -> np.ndarray:
    return shown(flow.expected(state, visited, done))

  return shown(watching.run(go_on, state, steps, watch, STAGE, preview).x)


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


@program(static_argnames=("decoder", "size", "guided"))
def _start(
  network: Network,
  given: decoders.Given,
  words: jax.Array,
  *,
  decoder: Which,
  size: tuple[int, int],
  guided: bool,
) -> tuple[Condition, flow.State]:
  """What the transformer is told, and the start of the sampler, by seeds uint32[B, 2]."""
  module = network.module()
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(seed_arrays.keys(words))
  noise = flow.noise(keys, (*size, module.autoencoder.cfg.latent_channels))
  found, guidance = getattr(module, decoder), module.cfg.guidance
  told = _condition(found, module.constants, given, (len(words), *size), guided, guidance)
  return told, _begin(noise)


@program(static_argnames="decoder")
def _loop(
  network: Network,
  condition: Condition,
  scale: jax.Array | None,
  state: flow.State,
  table: flow.Table,
  first: jax.Array,
  last: jax.Array,
  *,
  decoder: Which,
) -> flow.State:
  return advance(getattr(network.module(), decoder), condition, scale, state, table, first, last)


@program(static_argnames="size")
def _pixels(network: Network, tokens: jax.Array, *, size: tuple[int, int]) -> jax.Array:
  """Pictures in [0, 1] of tokens float32[B, N, C] of scaled latents of `size` (h, w)."""
  return network.module().autoencoder.pixels(flux.unpatchify(tokens, *size))
