"""A loaded model and its verbs: prompts to pictures, pictures and questions to text, and back.

Brings the system, its pixel decoder and the tokenizer of one directory together. Prompts are padded
to one of a few lengths and answers live in a static cache, so a second call compiles nothing.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from blip3o_jax import layers
from blip3o_jax.data import images as pictures
from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.diffusion import flow
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import pixels
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import checkpoint

# Lengths that prompts are padded to; a longer generation prompt is cut, a longer question refused.
BUCKETS = (32, 64, 160, 448)
CHAT_BUCKETS = (32, 64, 160, 512, 1024, 2048, 4096)


class Model:
  """What `load` returns, or what a training run puts together from its own arrays.

  Attributes:
    cfg, settings: sizes and settings. system, decoder: the networks (decoder None without pixels).
    tokenizer: of the directory.
  """

  def __init__(
    self,
    cfg: blip3o.Config,
    settings: released.Settings,
    system: loading.Network,
    decoder: loading.Network | None,
    tokenizer: Tokenizer,
  ):
    self.cfg, self.settings, self.tokenizer = cfg, settings, tokenizer
    self.system, self.decoder = system, decoder
    self._null: jax.Array | None = None

  def features(
    self,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 0,
    scale: float = 0.0,
    sampler: str = "euler",
  ) -> jax.Array:
    """Captions to features float32[B, h, w, C]; one seed an image. Zeros mean the settings'.

    Raises:
      ValueError: as many seeds as texts are expected.
    """
    if len(texts) != len(seeds):
      raise ValueError(f"{len(texts)} prompts but {len(seeds)} seeds")
    form = self.settings.prompt_form
    rows = [prompts.generation_ids(self.tokenizer, t, limit=BUCKETS[-1], form=form) for t in texts]
    return self._draw(rows, seeds, steps, scale, sampler)

  def _draw(
    self, rows: list[list[int]], seeds: Sequence[int], steps: int, scale: float, sampler: str
  ) -> jax.Array:
    tokens, segments = self._pad(rows, BUCKETS)
    shape = (self.cfg.grid, self.cfg.grid, self.cfg.channels)
    noise = flow.noise(jnp.asarray(seeds, jnp.uint32), shape)
    return sample(
      self.system.graphdef,
      self.system.params,
      tokens,
      segments,
      noise,
      steps or self.settings.steps,
      scale or self.settings.scale,
      sampler,
    )

  def generate(
    self,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 0,
    scale: float = 0.0,
    sampler: str = "euler",
    pixel_steps: int = 0,
  ) -> np.ndarray:
    """Captions to pictures uint8[B, H, W, 3]; the result of one does not depend on the others."""
    x = self.features(texts, seeds, steps=steps, scale=scale, sampler=sampler)
    return self.paint(x, seeds, pixel_steps=pixel_steps)

  def reconstruct(
    self, images: Sequence[Image.Image], seeds: Sequence[int], *, pixel_steps: int = 0
  ) -> np.ndarray:
    """Pictures through encoder and pixel decoder, without the language model (spec 5.6)."""
    null = None
    if self.settings.null != "zeros":  # the reference's reconstruction compares with black
      null = self._black()
    x = jnp.asarray(self.encode(images))
    return self.paint(x, seeds, pixel_steps=pixel_steps, null=null)

  def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
    """Features float32[B, h, w, C] of pictures, squashed to the tower's square (spec 5.6)."""
    size = self.cfg.features.tower.image_size
    squashed = np.stack([pictures.square(i, size, squash=True) for i in images])
    batch = jnp.asarray(pictures.normalise(squashed))
    return np.asarray(_targets(self.system.graphdef, self.system.params, batch))

  def _black(self) -> jax.Array:
    """Features [1, h, w, C] of zero normalised pixels."""
    size = self.cfg.features.tower.image_size
    black = jnp.zeros((1, size, size, 3))
    return _targets(self.system.graphdef, self.system.params, black)

  def paint(
    self,
    features: jax.Array,
    seeds: Sequence[int],
    *,
    pixel_steps: int = 0,
    null: jax.Array | None = None,
  ) -> np.ndarray:
    """Features float32[B, h, w, C] to pictures uint8[B, H, W, 3].

    Raises:
      ValueError: a model without a pixel decoder.
    """
    if self.decoder is None:
      raise ValueError("this model has no pixel decoder (folder diffusion-decoder), cannot draw")
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), 1))(
      jnp.asarray(seeds, jnp.uint32)
    )
    images = self.decoder.module().decode(
      features,
      keys,
      steps=pixel_steps or self.settings.pixel_steps,
      scale=self.settings.pixel_scale,
      null=self.null() if null is None else null,
    )
    return np.asarray(jnp.round(images * 255)).astype(np.uint8)

  def null(self) -> jax.Array | None:
    """The pixel decoder's null features, made once: see `released.Settings.null`."""
    if self._null is None and self.settings.null == "space":
      # The raw string, without template (spec 5.5-2), from a seed of its own.
      ids = [*self.tokenizer.encode(" "), self.tokenizer.image_start]
      self._null = self._draw([ids], [0], 0, 0.0, "euler")
    elif self._null is None and self.settings.null == "black":
      self._null = self._black()
    return self._null

  def chat(
    self,
    questions: Sequence[str],
    images: Sequence[Image.Image | None],
    *,
    length: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> list[str]:
    """Answers of at most `length` tokens; each question may have one picture before it.

    Greedy at temperature 0.

    Raises:
      ValueError: a conversation longer than the largest bucket, or a picture of unusable size.
    """
    cfg, vision = self.cfg, self.cfg.visual
    patches, grids = [], []
    for image in images:
      if image is not None:
        rows, grid = pictures.qwen_image(
          image,
          min_pixels=self.settings.min_pixels,
          max_pixels=self.settings.max_pixels,
          patch_size=vision.patch_size,
          merge=vision.merge,
          temporal_patch_size=vision.temporal_patch_size,
        )
        patches.append(rows)
        grids.append(grid)
    places = iter(grids)
    ids = []
    for question, image in zip(questions, images, strict=True):
      counts = [] if image is None else [math.prod(next(places)) // vision.merge**2]
      ids.append(chat.chat_ids(self.tokenizer, question, counts, system=prompts.SYSTEM))
    tokens, segments = self._pad(ids, CHAT_BUCKETS)
    positions, deltas = mrope.mrope_positions(
      tokens, segments, grids, cfg.image_token, vision.merge
    )
    stacked, layout = None, None
    if grids:
      n = max(len(p) for p in patches)
      stacked = np.stack([np.pad(p, ((0, n - len(p)), (0, 0))) for p in patches])
      layout = qwen_vision.layout(grids, n, vision)
    out = answer(
      self.system.graphdef,
      self.system.params,
      (tokens, segments, positions, deltas, stacked, layout),
      (length, min(self.tokenizer.size, cfg.backbone.vocab_size), self._ends()),
      temperature,
      jax.random.key(seed),
    )
    return [self._until_end(row) for row in np.asarray(out)]

  def _ends(self) -> tuple[int, ...]:
    return (self.tokenizer.im_end, self.tokenizer.pad)

  def _until_end(self, row: np.ndarray) -> str:
    ids = row.tolist()
    stop = min([ids.index(e) for e in self._ends() if e in ids], default=len(ids))
    return self.tokenizer.decode(ids[:stop]).strip()

  def _pad(self, rows: list[list[int]], buckets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(r) for r in rows)
    if longest > buckets[-1]:
      raise ValueError(f"a prompt of {longest} tokens is longer than the limit of {buckets[-1]}")
    return chat.pad_left(rows, chat.bucket_of(longest, buckets), self.tokenizer.pad)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def sample(
  graphdef: Any,
  params: Any,
  tokens: jax.Array,
  segments: jax.Array,
  noise: jax.Array,
  steps: int,
  scale: float,
  sampler: Any,
) -> jax.Array:
  """Features float[B, h, w, C] of padded prompts int32[B, P], from noise of the same shape."""
  module = nnx.merge(graphdef, params)
  return module.generate(tokens, segments, noise, steps=steps, scale=scale, sampler=sampler)


@functools.partial(jax.jit, static_argnums=0)
def _targets(graphdef: Any, params: Any, images: jax.Array) -> jax.Array:
  return nnx.merge(graphdef, params).targets(images)


@functools.partial(jax.jit, static_argnums=(0, 3))
def answer(
  graphdef: Any,
  params: Any,
  inputs: tuple[Any, ...],
  limits: tuple[int, int, tuple[int, ...]],
  temperature: jax.Array,
  key: jax.Array,
) -> jax.Array:
  """Ids int32[B, length]: one prefill, then a loop over a static cache until every row has ended.

  `limits`: the length, the number of ids that may be chosen (the lowest), and the ending ids, the
  last of which fills what follows an end.
  """
  tokens, segments, positions, deltas, patches, layout = inputs
  length, allowed, ends = limits
  module = nnx.merge(graphdef, params)
  batch, prompt = tokens.shape

  def pick(hidden: jax.Array, step: jax.Array) -> jax.Array:
    scores = module.backbone.logits(hidden[:, -1:])[:, 0]
    scores = jnp.where(jnp.arange(scores.shape[-1]) < allowed, scores, -jnp.inf)
    warm = jax.random.categorical(
      jax.random.fold_in(key, step), scores / jnp.maximum(temperature, 1e-6)
    )
    return jnp.where(temperature > 0, warm, jnp.argmax(scores, -1)).astype(jnp.int32)

  x = module.embed(tokens, patches, layout)
  hidden, cache = module.backbone.prefill(x, positions, segments, prompt + length)
  first = pick(hidden, jnp.int32(0))
  out = jnp.full((batch, length), ends[-1], jnp.int32).at[:, 0].set(first)
  done = jnp.isin(first, jnp.asarray(ends))

  def more(state: tuple[Any, ...]) -> jax.Array:
    step, _, done, _ = state
    return (step < length) & ~jnp.all(done)

  def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
    step, out, done, cache = state
    last = jax.lax.dynamic_slice_in_dim(out, step - 1, 1, 1)
    where = jnp.broadcast_to((prompt + step - 1 + deltas)[None], (3, batch, 1))
    hidden, cache = module.backbone.extend(module.backbone.embed(last), where, cache)
    token = jnp.where(done, ends[-1], pick(hidden, step))
    out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], step, 1)
    return step + 1, out, done | jnp.isin(token, jnp.asarray(ends)), cache

  return jax.lax.while_loop(more, advance, (jnp.int32(1), out, done, cache))[1]


def load(directory: str | Path, *, dtype: layers.Dtype = "float32", decoder: bool = True) -> Model:
  """A model of a directory, released, converted or of a run, stored and computing in `dtype`.

  Without `decoder` the pixel decoder is left unread.

  Raises:
    FileNotFoundError, ValueError: what is absent or wrong, by file and name.
  """
  home = loading.home_of(directory, "config.json")
  cfg, settings = released.read(home, dtype)
  if checkpoint.is_run(directory):
    cfg = released.whole(loading.config_of(blip3o, directory), dtype)
  tokenizer = Tokenizer.load(loading.home_of(directory, "tokenizer.json"), prompts.SPECIAL)
  system = loading.load(blip3o, cfg, directory, dtype=dtype)
  painter = None
  if decoder and (found := _decoder_of(directory)) is not None:
    painter = load_decoder(found, cfg.grid, dtype)
  return Model(cfg, settings, system, painter, tokenizer)


def _decoder_of(directory: str | Path) -> Path | None:
  """The directory that holds the pixel decoder of a model; None where there is none."""
  try:
    home = loading.home_of(directory, diffusers_files.FOLDER)
  except FileNotFoundError:
    return None
  return home if (home / diffusers_files.FOLDER).is_dir() else None


def load_decoder(directory: Path, feature_grid: int, dtype: layers.Dtype) -> loading.Network:
  """The pixel decoder of a directory, for features of `feature_grid` cells a side.

  The UNet is stored and computes in `dtype`, the autoencoder in float32 (it overflows in half
  precision, spec 5.3).
  """
  cfg = pixels.read_config(directory, feature_grid=feature_grid)
  cfg = dataclasses.replace(cfg, unet=dataclasses.replace(cfg.unet, dtype=dtype))
  return loading.load(pixels, cfg, directory, dtype=dtype, keep=("autoencoder",))
