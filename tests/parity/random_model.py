"""A model of random sizes and random weights, as our configs; every leaf is away from neutral."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx
import jax.numpy as jnp
import numpy as np

from blip3o_jax import trees
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import eva_vit
from blip3o_jax.models import next_dit
from blip3o_jax.models import qwen_vision
from blip3o_jax.models import unet
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import features
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts.network import Network


def backbone(sizes: np.random.Generator, **given: Any) -> decoder_lm.Config:
  """A language model; sections of the rotation are uneven."""
  pick = sizes.choice
  kv, share, quarter = int(pick([1, 2, 3])), int(pick([1, 2, 3])), int(pick([2, 3, 4]))
  head, first = 8 * quarter, int(pick([1, 2]))
  rest = head // 2 - first
  return decoder_lm.Config(
    dim=kv * share * head,
    depth=int(pick([1, 2, 3])),
    heads=kv * share,
    kv_heads=kv,
    head_dim=head,
    mlp_dim=int(pick([40, 72, 96])),
    rope_theta=float(pick([1e4, 5e5, 1e6])),
    mrope_section=(first, rest // 2, rest - rest // 2),
    norm_eps=float(pick([1e-6, 1e-5])),
    tie_embeddings=bool(pick([True, False])),
    **given,
  )


def vision(sizes: np.random.Generator, out_dim: int) -> qwen_vision.Config:
  """A vision tower of the released patches."""
  pick = sizes.choice
  heads, depth = int(pick([1, 2, 3])), int(pick([2, 3, 4]))
  return qwen_vision.Config(
    dim=heads * int(pick([8, 12, 16])),
    depth=depth,
    heads=heads,
    mlp_dim=int(pick([24, 40, 56])),
    out_dim=out_dim,
    window_size=int(pick([56, 84, 112])),
    full_layers=tuple(sorted({int(pick(depth)), depth - 1})),
  )


def system(sizes: np.random.Generator, tokenizer: Tokenizer) -> blip3o.Config:
  """All networks of the system."""
  pick = sizes.choice
  language = backbone(sizes, vocab_size=tokenizer.size + int(pick([1, 17, 40])))
  grid, pool, patch = int(pick([2, 3])), int(pick([1, 2, 3])), int(pick([7, 14]))
  heads, kv_share = int(pick([2, 4])), int(pick([1, 2]))
  tower_heads = int(pick([1, 2, 3]))
  tower = eva_vit.Config(
    image_size=grid * pool * patch,
    patch_size=patch,
    dim=tower_heads * int(pick([12, 16, 20])),
    depth=int(pick([1, 2, 3])),
    heads=tower_heads,
    mlp_dim=int(pick([50, 77, 96])),
  )
  return blip3o.Config(
    backbone=language,
    visual=vision(sizes, language.dim),
    denoiser=next_dit.Config(
      in_channels=tower.dim,
      grid=grid,
      condition_dim=language.dim,
      dim=heads * int(pick([8, 12, 16])),
      depth=int(pick([1, 2, 3])),
      heads=heads,
      kv_heads=heads // kv_share,
      multiple_of=int(pick([8, 24, 32])),
    ),
    features=features.Config(tower, pool),
    latents=autoencoder.Config(),
    slots=int(pick([3, 4, 9])),
    image_token=tokenizer.image_pad,
  )


def decoder(sizes: np.random.Generator) -> painter.Config:
  """A pixel decoder of two or three levels, attention from some level down."""
  pick = sizes.choice
  groups, levels = int(pick([2, 4])), int(pick([2, 3]))
  channels = tuple(groups * int(pick([4, 6, 8])) for _ in range(levels))
  depths = [int(pick([1, 2])) for _ in range(levels)]
  depths[0] = int(pick([0, depths[0]]))
  widths = tuple(groups * int(pick([2, 4])) for _ in range(int(pick([1, 2, 3]))))
  return painter.Config(
    unet=unet.Config(
      channels=channels,
      heads=tuple(int(pick([1, 2])) for _ in channels),
      depths=tuple(depths),
      mid_depth=depths[-1],
      resnets=int(pick([1, 2])),
      context_dim=int(pick([12, 20, 36])),
      time_ids_dim=int(pick([8, 16])),
      groups=groups,
    ),
    autoencoder=autoencoder.Config(channels=widths, depth=int(pick([1, 2])), groups=groups),
    grid=8,
    feature_grid=2,
  )


def randomised(make: Callable[[], nnx.Module], seed: int) -> Network:
  """The module with random leaves; no gate, bias or norm is neutral."""
  rng = np.random.default_rng(seed)
  graphdef, state = nnx.split(nnx.eval_shape(make))
  flat = {
    path: jnp.asarray(_leaf(path, leaf.shape, rng))
    for path, leaf in trees.flatten(nnx.to_pure_dict(state)).items()
  }
  return Network(graphdef, trees.unflatten(flat))


def _leaf(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  value = rng.standard_normal(shape, np.float32)
  if path.endswith("/scale"):
    return 1 + 0.2 * value
  if path.endswith("/kernel"):
    inputs = shape[-2] if len(shape) == 3 else np.prod(shape[:-1])  # three: stacked matrices
    return value / np.sqrt(np.float32(inputs))
  return value if path.endswith(("/embedding", "/gate")) else 0.2 * value


def model(sizes: np.random.Generator, tokenizer: Path, *, paints: bool = True) -> verbs.Model:
  """A model with the tokenizer of a directory; `paints` gives it a pixel decoder."""
  words, seed = Tokenizer.load(tokenizer, blip3o.SPECIAL), int(sizes.integers(1 << 30))
  cfg, drawing = system(sizes, words), decoder(sizes)
  return verbs.Model(
    cfg,
    released.Settings(),
    randomised(lambda: blip3o.build(cfg, nnx.Rngs(0)), seed),
    randomised(lambda: painter.build(drawing, nnx.Rngs(0)), seed + 1) if paints else None,
    words,
  )
