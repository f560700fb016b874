"""A tiny system for the tests of training: a frozen encoder, stacked residual blocks, a head."""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from blip3o_jax import layers
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.systems.parts import layout
from blip3o_jax.weights import table

TRAINED = ("blocks/.*", "head/.*")
BINS = 4


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 8
  depth: int = 2
  noise: float = 0.0
  dtype: layers.Dtype = "float32"


class Block(nnx.Module):
  def __init__(self, cfg: Config, rngs: nnx.Rngs):
    self.norm = layers.RMSNorm(cfg.dim)
    make = layers.linear
    self.up_proj = make(cfg.dim, 2 * cfg.dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.down_proj = make(2 * cfg.dim, cfg.dim, ("mlp", "embed"), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return x + self.down_proj(jax.nn.silu(self.up_proj(self.norm(x))))


class Toy(nnx.Module):
  """Predicts the mean of tokens' encodings; `mask` says which samples count."""

  def __init__(self, cfg: Config, rngs: nnx.Rngs):
    self.encoder = layers.linear(cfg.dim, cfg.dim, ("embed", "rest"), rngs=rngs)
    self.blocks = layers.stack(lambda r: Block(cfg, r), cfg.depth, rngs)
    self.head = layers.linear(cfg.dim, cfg.dim, ("embed", "rest"), dtype=cfg.dtype, rngs=rngs)
    self.noise = cfg.noise

  def prepare(self, batch: Any) -> Any:
    return batch | {"target": self.encoder(batch["x"]).mean(1)}

  def weights(self, batch: Any) -> Any:
    return {"samples": batch["mask"].sum()}

  def loss(self, batch: Any, key: jax.Array, weights: Any) -> Any:
    x = batch["x"] * batch["scale"]
    x = x + self.noise * jax.random.normal(key, x.shape)
    x = sharding.constrain(x, "batch", "length", None)
    x, _ = layers.scan(self.blocks, x, lambda block, y: (block(y), None))
    each = jnp.mean((self.head(x).mean(1) - batch["target"]).astype(jnp.float32) ** 2, -1)
    each = each * batch["mask"]
    bins = jax.nn.one_hot(batch["bin"], BINS)
    metrics = {
      "mse": each.sum() / weights["samples"],
      "loss_by_time/sum": each @ bins,
      "loss_by_time/count": batch["mask"] @ bins,
    }
    return each.sum() / weights["samples"], metrics


class Data:
  """Rows of batches that depend on (seed, step, row) alone; two lengths in turn when `buckets`."""

  def __init__(
    self, batch: int, dim: int = 8, seed: int = 0, rows: range | None = None, buckets: bool = False
  ):
    self.batch, self.dim, self.seed, self.buckets = batch, dim, seed, buckets
    self.rows = rows or range(batch)

  def batch_at(self, step: int) -> dict[str, np.ndarray]:
    length = 5 if self.buckets and step % 2 else 3
    rows = [np.random.default_rng((self.seed, step, r)) for r in self.rows]
    return {
      "x": np.stack([r.normal(size=(length, self.dim)) for r in rows]).astype(np.float32),
      "mask": np.asarray([(step + r) % 3 > 0 for r in self.rows], np.float32),
      "bin": np.asarray([r % 3 for r in self.rows], np.int32),
      "scale": np.ones((), np.float32),
    }


class System:
  """The functions of a system's module; `released` writes the files that it reads."""

  def build(self, cfg: Config, rngs: nnx.Rngs) -> Toy:
    return Toy(cfg, rngs)

  def flops(self, cfg: Config, batch: Any) -> float:
    rows, length, dim = batch["x"].shape
    return 6.0 * rows * length * (4 * cfg.depth + 1) * dim * dim

  def parts(self, files: layout.Files) -> layout.Layout:
    if not files.names():
      return layout.Layout(None, ())
    modules = ("encoder", "blocks", "head")
    return layout.Layout(None, (layout.Part("toy", "", layout.MAIN, modules, dict),))

  def rows_of(self, kind: str, names: Any, home: Any) -> list[table.Row]:
    return [table.row(name, name) for name in names]

  def stored_as(self, cfg: Config) -> dict[str, str]:
    return {}


def released(directory: Any, cfg: Config, pattern: str = "", seed: int = 7) -> str:
  """Writes random weights whose paths start with `pattern` as a released directory."""
  model = Toy(cfg, nnx.Rngs(seed))
  flat = trees.flatten(nnx.to_pure_dict(nnx.state(model)))
  directory.mkdir(parents=True, exist_ok=True)
  kept: dict[str, Any] = {p: np.asarray(v) for p, v in flat.items() if p.startswith(pattern)}
  save_file(kept, directory / "model.safetensors")
  return str(directory)
