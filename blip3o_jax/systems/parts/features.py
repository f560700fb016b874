"""Images to the generator's target space: the EVA tower, pooled; whitened by option.

Shared by the systems that make, train on, or draw from features.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax.models import eva_vit


@dataclasses.dataclass(frozen=True)
class Config:
  """The target space.

  Attributes:
    tower: the EVA tower.
    pool: stride of the average pooling of its patch grid (released: 4, 32 x 32 to 8 x 8).
    whiten: channels kept by a fixed affine map after pooling; 0 is off, as released.
  """

  tower: eva_vit.Config
  pool: int = 4
  whiten: int = 0

  def __post_init__(self) -> None:
    if self.tower.image_size % (self.tower.patch_size * self.pool):
      raise ValueError(
        f"pool {self.pool} does not divide the tower's grid of "
        f"{self.tower.image_size // self.tower.patch_size} patches a side"
      )

  @property
  def grid(self) -> int:
    """Cells a side of the feature map."""
    return self.tower.image_size // self.tower.patch_size // self.pool

  @property
  def channels(self) -> int:
    """Channels of a feature."""
    return self.whiten or self.tower.dim


class Whiten(nnx.Module):
  """A fixed affine map per cell and channel: (x - mean) @ kernel, float32.

  `mean` float32[h, w, C] and `kernel` float32[C, c] are measured on data, never trained.
  """

  def __init__(self, grid: int, dim: int, kept: int, *, rngs: nnx.Rngs):
    self.mean = nnx.Param(layers.filled((grid, grid, dim)), axes=("rest", "rest", "rest"))
    kernel = layers.orthogonal(rngs.params(), (dim, kept))
    self.kernel = nnx.Param(kernel, axes=("rest", "rest"))

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32) - self.mean[...].astype(jnp.float32)
    return x @ self.kernel[...].astype(jnp.float32)


class FeatureEncoder(nnx.Module):
  """float[B, H, W, 3], normalised as EVA's input -> features float32[B, h, w, c] (spec 2.5)."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.tower = eva_vit.EvaVit(cfg.tower, rngs=rngs)
    self.whiten = Whiten(cfg.grid, cfg.tower.dim, cfg.whiten, rngs=rngs) if cfg.whiten else None
    self.pool = cfg.pool

  def pooled(self, images: jax.Array) -> jax.Array:
    """The pooled features before whitening, float32[B, h, w, C]."""
    return eva_vit.pool(self.tower(images), self.pool).astype(jnp.float32)

  def __call__(self, images: jax.Array) -> jax.Array:
    x = self.pooled(images)
    return x if self.whiten is None else self.whiten(x)


def fit_whitening(
  pooled: np.ndarray,
  kept: int,
  through: np.ndarray | None = None,
  factors: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
  """Measures the affine map of `Whiten` on a sample of pooled features.

  Mean and directions are those of all cells together, the `kept` principal ones, each of unit
  variance. A mean per cell would take a cell's place out of its feature, and the pixel decoder,
  whose cross-attention knows no order, could not put anything where it belongs.

  With `factors` the directions are scaled by what the factors do not explain, to which all of them
  then give the same variance (within-class covariance normalisation); the mean variance of a
  direction is 1. What a prompt can ask for then outweighs where in its cell an object lies.

  Args:
    pooled: float[n, h, w, C].
    kept: how many directions to keep.
    through: float[C, c], a map whose outputs are to be whitened; without it the features are.
    factors: bool[n, h, w, f], what a cell shows (a colour, a shape), nothing where it shows none.

  Returns:
    mean float32[h, w, C], kernel float32[C, kept], and the share of variance kept (of what
    `through` gives).

  Raises:
    ValueError: more directions than channels.
  """
  n, h, w, c = pooled.shape
  most = c if through is None else through.shape[1]
  if kept > most:
    raise ValueError(f"whiten {kept}: there are only {most} channels")
  x = pooled.reshape(n * h * w, c).astype(np.float64)
  mean = x.mean(0)
  x -= mean
  if through is not None:
    x = x @ through.astype(np.float64)
  values, vectors = np.linalg.eigh(x.T @ x / len(x))
  values, vectors = values[::-1][:kept], vectors[:, ::-1][:, :kept]
  share = float(values.sum() / np.trace(x.T @ x / len(x)))
  kernel = vectors / np.sqrt(np.maximum(values, 1e-8))
  if factors is not None:
    kernel = kernel @ _within(x @ kernel, factors.reshape(len(x), -1).astype(np.float64))
  if through is not None:
    kernel = through @ kernel
  same = np.broadcast_to(mean, (h, w, c)).astype(np.float32)
  return same, kernel.astype(np.float32), share


def _within(x: np.ndarray, factors: np.ndarray) -> np.ndarray:
  """float[c, c]: makes what `factors` leave of x white, and the variance of x 1 on average."""
  shows = factors.any(-1)
  seen, known = x[shows], factors[shows]
  left = seen - known @ np.linalg.lstsq(known, seen, rcond=None)[0]
  values, vectors = np.linalg.eigh(left.T @ left / len(left))
  # A direction in which next to nothing varies within is noise to the rest: not above 100 : 1.
  out = vectors / np.sqrt(np.maximum(values, values.max() / 100)) @ vectors.T
  return out / np.sqrt(np.var(x @ out, 0).mean())


def place_code(grid: int, channels: int) -> np.ndarray:
  """Cosines of unit variance over the rows, then over the columns: float32[grid * grid, channels].

  The first channels / 2 harmonics of the discrete cosine transform, so with grid - 1 of them each
  row is orthogonal to every other after the mean.
  """
  harmonics = np.arange(1, channels // 2 + 1)
  line = np.sqrt(2) * np.cos(np.pi / grid * (np.arange(grid)[:, None] + 0.5) * harmonics)
  rows, columns = np.repeat(line, grid, 0), np.tile(line, (grid, 1))
  return np.concatenate([rows, columns], -1).astype(np.float32)
