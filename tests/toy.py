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
from blip3o_jax.data import pipeline as datasets
from blip3o_jax.data.records import Record
from blip3o_jax.systems.parts import layout
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config
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
    x = batch["x"] * batch.get("scale", 1.0)
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
  """Batches that depend on the step alone, with a scalar beside the rows."""

  def __init__(self, batch: int, dim: int = 8):
    self.batch, self.dim = batch, dim

  def batch_at(self, step: int) -> dict[str, np.ndarray]:
    rows = range(self.batch)
    made = [np.random.default_rng((step, r)).normal(size=(3, self.dim)) for r in rows]
    return {
      "x": np.stack(made).astype(np.float32),
      "mask": np.asarray([(step + r) % 3 > 0 for r in rows], np.float32),
      "bin": np.asarray([r % 3 for r in rows], np.int32),
      "scale": np.ones((), np.float32),
    }


class Row:
  """What a record becomes: noise of its own, of `length` cells; long captions have many tokens."""

  counts = "eighths of the letters"

  def __init__(self, length: int, dim: int):
    self.length, self.dim = length, dim

  def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
      "x": rng.normal(size=(self.length, self.dim)).astype(np.float32),
      "mask": np.float32(rng.random() < 0.7),
      "bin": np.int32(rng.integers(BINS)),
    }

  def tokens(self, record: Record) -> int:
    return len(record.prompt) // 8


class System:
  """The contract of a system; `released` writes the files that it reads."""

  Config = Config
  SPECIAL: dict[str, str] = {}  # noqa: RUF012

  def build(self, cfg: Config, rngs: nnx.Rngs) -> Toy:
    return Toy(cfg, rngs)

  def check(self, cfg: Config, trained: Any) -> None:
    pass

  def batch_spec(self, cfg: Config, batch: int, bucket: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
      "x": jax.ShapeDtypeStruct((batch, bucket, cfg.dim), jnp.float32),
      "mask": jax.ShapeDtypeStruct((batch,), jnp.float32),
      "bin": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }

  def flops(self, cfg: Config, spec: Any) -> float:
    rows, length, dim = spec["x"].shape
    return 6.0 * rows * length * (4 * cfg.depth + 1) * dim * dim

  def transforms(self, cfg: Config, data: Any, tokenizer: Any) -> dict[int, Any]:
    return {bucket: Row(bucket, cfg.dim) for bucket in data.buckets}

  def sampler(self, cfg: Config, samples: Any, tokenizer: str) -> Any:
    return lambda module, step: np.full((3, 4, 4, 3), step, np.uint8)

  def parts(self, files: layout.Files) -> layout.Layout:
    if not files.names():
      return layout.Layout(None, ())
    modules = ("encoder", "blocks", "head")
    return layout.Layout(None, (layout.Part("toy", "", layout.MAIN, modules, dict),))

  def rows_of(self, kind: str, names: Any, home: Any) -> list[table.Row]:
    return [table.row(name, name) for name in names]

  def stored_as(self, cfg: Config) -> dict[str, str]:
    return {}


def values(cfg: Config, train: Train, buckets: tuple[int, ...] = (3,)) -> Any:
  """The config of a run of the toy, as a config file gives it; 64 records, 16 held out."""
  data = datasets.Data(source="shapes", split="generator", records=64, buckets=buckets)
  held_out = dataclasses.replace(data, split="validation", records=16, shuffle=False)
  out = to_config("toy", cfg, train, data, held_out)
  out.samples.update(decoder="the toy's own", prompts=("anything",))
  return out


def released(directory: Any, cfg: Config, pattern: str = "", seed: int = 7) -> str:
  """Writes random weights whose paths start with `pattern` as a released directory."""
  model = Toy(cfg, nnx.Rngs(seed))
  flat = trees.flatten(nnx.to_pure_dict(nnx.state(model)))
  directory.mkdir(parents=True, exist_ok=True)
  kept: dict[str, Any] = {p: np.asarray(v) for p, v in flat.items() if p.startswith(pattern)}
  save_file(kept, directory / "model.safetensors")
  return str(directory)
