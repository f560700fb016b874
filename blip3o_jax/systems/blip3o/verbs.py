"""A loaded model and its verbs: prompts to pictures, pictures and questions to text, and back.

Brings the system, its pixel decoder and the tokenizer of one directory together. Prompts are padded
to one of a few lengths and batches to powers of two, answers live in a static cache, and what is a
number is an argument, so a second call compiles nothing.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import functools
import math
from pathlib import Path
from typing import Any
from typing import Literal

import jax
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
from blip3o_jax.systems.blip3o import layout as files_of
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import others
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.train import checkpoint

VERBS = ("generate", "chat", "reconstruct")
Sampler = Literal["euler", "heun"]
# Lengths that prompts are padded to; a longer generation prompt is cut, a longer question refused.
BUCKETS = (32, 64, 160, 448)
PICTURE_BUCKETS = (64, 160, 448, 1024, 2048, 4096)
CHAT_BUCKETS = (32, 64, 160, 512, 1024, 2048, 4096)
PATCHES = 16  # the fewest that a picture is padded to


class Model:
  """What `load` returns, or what a training run puts together from its own arrays.

  Attributes:
    cfg, settings: sizes and settings.
    system, decoder: the networks (decoder None without pixels).
    tokenizer: of the directory.
  """

  def __init__(
    self,
    cfg: blip3o.Config,
    settings: released.Settings,
    system: Network,
    decoder: Network | None,
    tokenizer: Tokenizer,
  ):
    self.cfg, self.settings, self.tokenizer = cfg, settings, tokenizer
    self.system, self.decoder = system, decoder
    self._null: np.ndarray | None = None
    self._painted: set[int] = set()  # numbers of pictures whose programs are compiled

  def features(
    self,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    images: Sequence[Image.Image | None] = (),
    steps: int = 0,
    scale: float = 0.0,
    sampler: Sampler = "euler",
  ) -> np.ndarray:
    """Captions to features float32[B, h, w, C]; one seed an image. Zeros mean the settings'.

    Args:
      images: a picture or None for each caption; a prompt with a picture asks to draw after it.

    Raises:
      ValueError: as many seeds as texts are expected, and as many images or none.
    """
    if len(texts) != len(seeds):
      raise ValueError(f"{len(texts)} prompts but {len(seeds)} seeds")
    if not any(image is not None for image in images):
      form = self.settings.prompt_form
      rows = [
        prompts.generation_ids(self.tokenizer, t, limit=BUCKETS[-1], form=form) for t in texts
      ]
      return self._draw(rows, seeds, steps, scale, sampler)
    patches, grids = self._patches(images)
    places = self._places(images, grids)
    rows = [self._prompt(text, n) for text, n in zip(texts, places, strict=True)]
    return self._draw(rows, seeds, steps, scale, sampler, self._pictures(patches, grids, len(rows)))

  def _prompt(self, text: str, places: Sequence[int]) -> list[int]:
    """Ids that ask for a drawing, after the picture of so many places that the prompt may have."""
    form = self.settings.prompt_form
    if not places:
      return prompts.generation_ids(self.tokenizer, text, limit=BUCKETS[-1], form=form)
    return prompts.edit_ids(self.tokenizer, text, *places, limit=PICTURE_BUCKETS[-1], form=form)

  def _draw(
    self,
    rows: list[list[int]],
    seeds: Sequence[int],
    steps: int,
    scale: float,
    sampler: Sampler,
    pictures: Mapping[str, Any] | None = None,
  ) -> np.ndarray:
    count = buckets.power(len(rows))
    tokens, segments = self._pad(rows, PICTURE_BUCKETS if pictures else BUCKETS)
    prompt = {"tokens": tokens, "segments": segments, **(pictures or {})}
    scale = scale or self.settings.scale
    table = flow.table(steps or self.settings.steps)
    guided = None if scale == 1 else np.float32(scale)
    noise = buckets.seeds(seeds, count)
    return np.asarray(draw(self.system, prompt, noise, table, guided, sampler))[: len(rows)]

  def generate(
    self, texts: Sequence[str], seeds: Sequence[int], *, pixel_steps: int = 0, **options: Any
  ) -> np.ndarray:
    """Captions to pictures uint8[B, H, W, 3]; the result of one does not depend on the others.

    The options, `images`, `steps`, `scale` and `sampler`, are those of `features`.
    """
    decoder = self._painter()  # before any long work
    with futures.ThreadPoolExecutor(1) as beside:  # the programs that paint compile meanwhile
      painting = beside.submit(self._compile_painter, decoder, buckets.power(len(texts)))
      features = self.features(texts, seeds, **options)
      painting.result()
    return self.paint(features, seeds, pixel_steps=pixel_steps)

  def _painter(self) -> Network:
    """The pixel decoder; ValueError where there is none."""
    if self.decoder is None:
      raise ValueError("this model has no pixel decoder (folder diffusion-decoder), cannot draw")
    return self.decoder

  def _compile_painter(self, decoder: Network, rows: int) -> None:
    """Compiles `paint` for so many pictures, once."""
    if rows not in self._painted:
      shape = (self.cfg.grid, self.cfg.grid, self.cfg.channels)
      painter.compile_for(decoder, rows, shape, guided=self.settings.pixel_scale != 1)
      self._painted.add(rows)

  def reconstruct(
    self, images: Sequence[Image.Image], seeds: Sequence[int], *, pixel_steps: int = 0
  ) -> np.ndarray:
    """Pictures through encoder and pixel decoder, without the language model (spec 5.6)."""
    null = None
    if self.settings.null != "zeros":  # the reference's reconstruction compares with black
      null = self._black()
    return self.paint(self.encode(images), seeds, pixel_steps=pixel_steps, null=null)

  def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
    """Features float32[B, h, w, C] of pictures, squashed to the tower's square (spec 5.6)."""
    size = self.cfg.features.tower.image_size
    squashed = np.stack([pictures.square(i, size, squash=True) for i in images])
    return self._targets(pictures.normalise(squashed))

  def _black(self) -> np.ndarray:
    """Features [1, h, w, C] of zero normalised pixels."""
    size = self.cfg.features.tower.image_size
    return self._targets(np.zeros((1, size, size, 3), np.float32))

  def _targets(self, images: np.ndarray) -> np.ndarray:
    padded = buckets.repeat_last(images, buckets.power(len(images)))
    return np.asarray(_targets(self.system, padded))[: len(images)]

  def paint(
    self,
    features: Any,
    seeds: Sequence[int],
    *,
    pixel_steps: int = 0,
    null: Any = None,
  ) -> np.ndarray:
    """Features float32[B, h, w, C] to pictures uint8[B, H, W, 3].

    Raises:
      ValueError: a model without a pixel decoder.
    """
    return painter.paint(
      self._painter(),
      features,
      seeds,
      steps=pixel_steps or self.settings.pixel_steps,
      scale=self.settings.pixel_scale,
      null=self.null() if null is None else null,
    )

  def null(self) -> np.ndarray | None:
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
    limits: decoding.Limits | None = None,
  ) -> list[str]:
    """Answers of at most `length` tokens; each question may have one picture before it.

    Greedy at temperature 0. `limits` are on what may be said.

    Raises:
      ValueError: a conversation longer than the largest bucket, or a picture of unusable size.
    """
    cfg, limits = self.cfg, limits or decoding.Limits()
    patches, grids = self._patches(images)
    places = self._places(images, grids)
    ids = [
      chat.chat_ids(self.tokenizer, question, n, system=prompts.SYSTEM)
      for question, n in zip(questions, places, strict=True)
    ]
    tokens, segments = self._pad(ids, CHAT_BUCKETS)
    count = len(tokens)
    positions, deltas = mrope.mrope_positions(
      tokens[: len(ids)], segments[: len(ids)], grids, cfg.image_token, cfg.visual.merge
    )
    prompt = {
      "tokens": tokens,
      "segments": segments,
      "positions": np.moveaxis(buckets.repeat_last(np.moveaxis(positions, 1, 0), count), 0, 1),
      "deltas": buckets.repeat_last(deltas, count),
      **self._pictures(patches, grids, count),
    }
    rules = decoding.rules(
      count,
      length,
      min(self.tokenizer.size, cfg.backbone.vocab_size),
      self._ends(),
      forced=self.tokenizer.encode(limits.begin),
      temperature=temperature,
      limits=limits,
    )
    drawn = np.uint32(seed) if temperature > 0 else None
    out = np.asarray(answer(self.system, prompt, rules, drawn))
    return [self._until_end(row) for row in out[: len(ids), :length]]

  def _ends(self) -> tuple[int, ...]:
    return (self.tokenizer.im_end, self.tokenizer.pad)

  def _until_end(self, row: np.ndarray) -> str:
    ids = row.tolist()
    stop = min([ids.index(e) for e in self._ends() if e in ids], default=len(ids))
    return self.tokenizer.decode(ids[:stop]).strip()

  def _pad(self, rows: list[list[int]], lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segments int32[B', P] of prompts, the last one repeated up to a power of two."""
    longest = max(len(r) for r in rows)
    if longest > lengths[-1]:
      raise ValueError(f"a prompt of {longest} tokens is longer than the limit of {lengths[-1]}")
    length, count = chat.bucket_of(longest, lengths), buckets.power(len(rows))
    tokens, segments = chat.pad_left(rows, length, self.tokenizer.pad)
    return buckets.repeat_last(tokens, count), buckets.repeat_last(segments, count)

  def _patches(
    self, images: Sequence[Image.Image | None]
  ) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Patches and grids of the pictures that there are, in order."""
    vision, settings = self.cfg.visual, self.settings
    found = [
      pictures.qwen_image(
        image,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        patch_size=vision.patch_size,
        merge=vision.merge,
        temporal_patch_size=vision.temporal_patch_size,
      )
      for image in images
      if image is not None
    ]
    return [rows for rows, _ in found], [grid for _, grid in found]

  def _places(
    self, images: Sequence[Image.Image | None], grids: Sequence[tuple[int, int]]
  ) -> list[list[int]]:
    """For each prompt the number of places of its picture, [] without one."""
    counts = iter(math.prod(grid) // self.cfg.visual.merge**2 for grid in grids)
    return [[] if image is None else [next(counts)] for image in images]

  def _pictures(
    self, patches: Sequence[np.ndarray], grids: Sequence[tuple[int, int]], rows: int
  ) -> dict[str, Any]:
    """`patches` and `layout` of the pictures of prompts, absent ones behind them; {} for none.

    A row that is repeated beyond `rows` looks at absent pictures, and nobody at it.
    """
    if not grids:
      return {}
    vision, count = self.cfg.visual, buckets.power(rows)
    n = buckets.fine(max(len(p) for p in patches), max(PATCHES, vision.merge**2))
    n = -(-n // vision.merge**2) * vision.merge**2
    stacked = np.zeros((count, n, patches[0].shape[1]), np.float32)
    for i, p in enumerate(patches):
      stacked[i, : len(p)] = p
    layout = qwen_vision.layout(grids, n, vision)
    room = count - len(grids)
    layout = jax.tree.map(lambda x: np.pad(x, ((0, room), *((0, 0),) * (x.ndim - 1))), layout)
    return {"patches": stacked, "layout": layout}


@functools.partial(jax.jit, static_argnums=5)
def draw(
  network: Network,
  prompt: Mapping[str, Any],
  noise: jax.Array,
  steps: flow.Table,
  scale: jax.Array | None,
  sampler: Sampler,
) -> jax.Array:
  """Features float[B, h, w, C] of padded prompts (see `Blip3o.generate`).

  Args:
    noise: float32[B, h, w, C], or a seed for each row, uint32[B].
  """
  module = network.module()
  if noise.ndim == 1:
    noise = flow.noise(noise, (module.cfg.grid, module.cfg.grid, module.cfg.channels))
  return module.generate(prompt, noise, steps, scale, sampler)


@jax.jit
def _targets(network: Network, images: jax.Array) -> jax.Array:
  return network.module().targets(images)


@jax.jit
def answer(
  network: Network,
  prompt: Mapping[str, Any],
  rules: decoding.Rules,
  seed: jax.Array | None,
) -> jax.Array:
  """Ids int32[B, L] after padded prompts (see `decoding.write`); greedy without a seed.

  `prompt` is what `decoding.write` takes, and `patches` and `layout` of its pictures, if any.
  """
  module = network.module()
  inputs = module.embed(prompt["tokens"], prompt.get("patches"), prompt.get("layout"))
  key = None if seed is None else jax.random.key(seed)
  return decoding.write(module.backbone, inputs, prompt, rules, key)


def load(directory: str | Path, *, dtype: layers.Dtype = "float32", decoder: bool = True) -> Model:
  """A model of a directory, released, converted or of a run, stored and computing in `dtype`.

  Without `decoder` the pixel decoder is left unread.

  Raises:
    FileNotFoundError, ValueError: what is absent or wrong, by file and name.
  """
  home = loading.home_of(directory, "config.json")
  others.check(layout.Files(home))
  if not checkpoint.is_run(directory) and files_of.is_plain(layout.Files(home)):
    others.refuse_qwen(home)
  cfg, settings = released.read(home, dtype)
  if checkpoint.is_run(directory):
    cfg = released.whole(loading.config_of(blip3o, directory), dtype)
  tokenizer = Tokenizer.load(loading.tokenizer_of(directory), prompts.SPECIAL)
  released.check_tokens(home, tokenizer.special)
  # The smaller part first: what is wrong with it is said before the language model is read.
  found = _decoder_of(directory) if decoder else None
  drawn = None if found is None else painter_files.load(found, cfg.grid, dtype)
  system = loading.load(blip3o, cfg, directory, dtype=dtype)
  return Model(cfg, settings, system, drawn, tokenizer)


def _decoder_of(directory: str | Path) -> Path | None:
  """The directory that holds the pixel decoder of a model; None where there is none."""
  try:
    home = loading.home_of(directory, diffusers_files.FOLDER)
  except FileNotFoundError:
    return None
  return home if (home / diffusers_files.FOLDER).is_dir() else None
