"""A loaded model and its verbs: prompts to pictures, pictures and questions to text, and back.

Brings the system, its pixel decoder and the tokenizer of one directory together. Prompts and their
number are padded to a few sizes (`batches`), answers live in a static cache, and what is a number
is an argument, so a second call compiles nothing.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Any
from typing import get_args

import jax
import numpy as np

from blip3o_jax import layers
from blip3o_jax.data import images as pictures
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.diffusion import flow
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import batches
from blip3o_jax.systems.blip3o import layout as files_of
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import sampling
from blip3o_jax.systems.blip3o import speaking
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import finite
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import memory as memories
from blip3o_jax.systems.parts import others
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.systems.parts import seeds as seed_arrays
from blip3o_jax.systems.parts import talking
from blip3o_jax.systems.parts import watching
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program
from blip3o_jax.train import checkpoint

VERBS = ("generate", "chat", "reconstruct")
GENERATES = ("images", "steps", "pixel_steps", "scale", "sampler", "max_pixels")  # its options
QUANTISED = ("backbone", "denoiser")  # modules whose blocks may lie in int8
PREVIEW = 4  # pixel steps of a picture of features that are still expected


class Model:
  """What `load` returns, or what a training run puts together from its own arrays.

  Attributes:
    cfg, settings: sizes and settings.
    system, decoder: the networks (decoder None without pixels).
    tokenizer: of the directory.
    words, squashes: see `systems.System.load`.
  """

  squashes = True

  def __init__(
    self,
    cfg: blip3o.Config,
    settings: released.Settings,
    system: Network,
    decoder: Network | None,
    tokenizer: Tokenizer,
  ):
    self.cfg, self.settings, self.tokenizer = cfg, settings, tokenizer
    self.words = settings.words
    self.system, self.decoder = system, decoder
    self._batches = batches.Batches(cfg, settings, tokenizer)
    self._null: np.ndarray | None = None
    self._painted: set[int] = set()  # numbers of pictures whose programs are compiled

  def takes(self, verb: str, **given: Any) -> dict[str, Any]:
    """The options of a verb, with what they are unless given, whatever others are."""
    settings = self.settings
    painting: dict[str, Any] = {"pixel_steps": settings.pixel_steps}
    drawing: dict[str, Any] = {"steps": settings.steps, "scale": settings.scale, "sampler": "euler"}
    takes = {"reconstruct": painting, "generate": drawing | painting | {"max_pixels": 0}}
    takes["chat"] = talking.takes(0.0, decoding.Limits())
    return takes.get(verb, {})

  def features(
    self,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    images: Sequence[asked.Picture | None] = (),
    steps: int = 0,
    scale: float = 0.0,
    sampler: sampling.Sampler = "euler",
    max_pixels: int = 0,
    watch: watching.Watch | None = None,
  ) -> np.ndarray:
    """Captions to features float32[B, h, w, C]. Zeros mean the settings'.

    Args:
      seeds: one an image, each from 0 to 2**64 - 1.
      images: a picture or None for each caption; a prompt with a picture asks to draw after it. Of
        PIL or uint8[h, w, 3]; see `data.images.rgb`.
      max_pixels: see `chat`.
      watch: called between the steps, see `watching.Step`; with a pixel decoder it can paint the
        features that are expected then. It changes nothing in what comes out.

    Raises:
      ValueError: lists that are empty or of different lengths, what is no text, seed or picture, a
        number out of its range; an output that is not finite, which names the part. Whatever
        `watch` raises.
    """
    how: dict[str, Any] = dict(steps=steps, scale=scale, sampler=sampler)
    prompt, noise = self._asked(texts, seeds, images, max_pixels, **how)
    preview = self._preview(seeds) if self.decoder is not None else None
    return self._draw(prompt, noise, watch=watch, preview=preview, **how)

  def _asked(
    self,
    texts: Sequence[str],
    seeds: Sequence[int],
    images: Sequence[asked.Picture | None] = (),
    max_pixels: int = 0,
    *,
    steps: int = 0,
    scale: float = 0.0,
    sampler: sampling.Sampler = "euler",
  ) -> tuple[dict[str, Any], np.ndarray]:
    """The padded prompt and the seeds of what is asked for, all of it checked; see `features`."""
    known = get_args(sampling.Sampler)
    if sampler not in known:
      raise ValueError(f"sampler {sampler!r}: expected one of {', '.join(known)}")
    asked.check_numbers(0, steps=steps, scale=scale, max_pixels=max_pixels)
    prompt, noise = self._batches.drawing(texts, images, max_pixels), seed_arrays.words(seeds)
    if len(texts) != len(noise):
      raise ValueError(f"{len(texts)} prompts but {len(noise)} seeds")
    return prompt, noise

  def _draw(
    self,
    prompt: Mapping[str, Any],
    noise: np.ndarray,
    *,
    steps: int = 0,
    scale: float = 0.0,
    sampler: sampling.Sampler = "euler",
    watch: watching.Watch | None = None,
    preview: Callable[[np.ndarray], np.ndarray] | None = None,
  ) -> np.ndarray:
    scale = scale or self.settings.scale
    table = flow.table(steps or self.settings.steps)
    guided = None if scale == 1 else np.float32(scale)
    padded = buckets.repeat_last(noise, len(prompt["tokens"]))
    ask = (self.system, prompt, padded, table, guided, sampler)
    out = np.asarray(sampling.draw(*ask, watch=watch, preview=preview))[: len(noise)]
    if not np.isfinite(out).all():
      finite.check(sampling.condition(self.system, prompt), "language model", self.system)
      raise finite.fault("denoiser", self.system)
    return out

  def _preview(self, seeds: Sequence[int], steps: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """What paints features float32[B', h, w, C], those of padding too, in few of `steps`."""
    few = min(PREVIEW, steps or self.settings.pixel_steps)
    return lambda features: self.paint(features[: len(seeds)], seeds, pixel_steps=few)

  def generate(
    self,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    pixel_steps: int = 0,
    watch: watching.Watch | None = None,
    **options: Any,
  ) -> np.ndarray:
    """Captions to pictures uint8[B, H, W, 3].

    A picture does not depend on the others, nor on its place among them. Their number is padded to
    a power of two, for each of which there is a program of its own, and two programs round
    differently: a picture alone may differ by a level from the same among four.

    The options, `images`, `steps`, `scale`, `sampler` and `max_pixels`, `watch` and what is raised
    are those of `features`; its stages are "features" and "pixels".
    """
    asked.check_options("generate", options, GENERATES)
    decoder = self._painter()  # before any long work
    asked.check_numbers(0, pixel_steps=pixel_steps)
    prompt, noise = self._asked(texts, seeds, **options)
    drawing = {name: options[name] for name in ("steps", "scale", "sampler") if name in options}
    with futures.ThreadPoolExecutor(1) as beside:  # the programs that paint compile meanwhile
      painting = beside.submit(self._compile_painter, decoder, buckets.power(len(texts)))
      preview = self._preview(seeds, pixel_steps)
      features = self._draw(prompt, noise, watch=watch, preview=preview, **drawing)
      painting.result()
    return self.paint(features, seeds, pixel_steps=pixel_steps, watch=watch)

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
    self,
    images: Sequence[asked.Picture],
    seeds: Sequence[int],
    *,
    pixel_steps: int = 0,
    watch: watching.Watch | None = None,
    **options: Any,
  ) -> np.ndarray:
    """Pictures through encoder and pixel decoder, without the language model (spec 5.6).

    Args, Raises: as `features`; what `generate` returns is a list of pictures. There are no other
    options. The stage that is watched is "pixels".
    """
    asked.check_options("reconstruct", options, ("pixel_steps",))
    self._painter()
    asked.check_numbers(0, pixel_steps=pixel_steps)
    if len(seed_arrays.words(seeds)) != len(asked.images_of(images, None, "image")):
      raise ValueError(f"{len(images)} images but {len(seeds)} seeds")
    null = None
    if self.settings.null != "zeros":  # the reference's reconstruction compares with black
      null = self._black()
    found = self.encode(images)
    return self.paint(found, seeds, pixel_steps=pixel_steps, null=null, watch=watch)

  def encode(self, images: Sequence[asked.Picture]) -> np.ndarray:
    """Features float32[B, h, w, C] of pictures, squashed to the tower's square (spec 5.6).

    Raises:
      ValueError: see `features`; None among the pictures.
    """
    size = self.cfg.features.tower.image_size
    found = asked.all_images(images, None, "image")
    squashed = np.stack([pictures.square(i, size, squash=True) for i in found])
    return self._targets(pictures.normalise(squashed))

  def _black(self) -> np.ndarray:
    """Features [1, h, w, C] of zero normalised pixels."""
    size = self.cfg.features.tower.image_size
    return self._targets(np.zeros((1, size, size, 3), np.float32))

  def _targets(self, images: np.ndarray) -> np.ndarray:
    padded = buckets.repeat_last(images, buckets.power(len(images)))
    out = np.asarray(_targets(self.system, padded))[: len(images)]
    finite.check(out, "image encoder (features)", self.system)
    return out

  def paint(
    self,
    features: Any,
    seeds: Sequence[int],
    *,
    pixel_steps: int = 0,
    null: Any = None,
    watch: watching.Watch | None = None,
  ) -> np.ndarray:
    """Features float32[B, h, w, C] to pictures uint8[B, H, W, 3].

    Raises:
      ValueError: a model without a pixel decoder; features of another shape, or not finite; others
        as in `features`. Whatever `watch` raises.
    """
    asked.check_numbers(0, pixel_steps=pixel_steps)
    shape = (self.cfg.grid, self.cfg.grid, self.cfg.channels)
    features = np.asarray(features, np.float32)
    if features.shape[1:] != shape or not len(features) or not np.isfinite(features).all():
      sizes = ", ".join(map(str, shape))
      raise ValueError(f"features of {list(features.shape)}: expected finite [B, {sizes}], B > 0")
    return painter.paint(
      self._painter(),
      features,
      seeds,
      steps=pixel_steps or self.settings.pixel_steps,
      scale=self.settings.pixel_scale,
      null=self.null() if null is None else null,
      watch=watch,
    )

  def null(self) -> np.ndarray | None:
    """The pixel decoder's null features, made once: see `released.Settings.null`."""
    if self._null is None and self.settings.null == "space":
      # The raw string, without template (spec 5.5-2), from a seed of its own.
      ids = [*self.tokenizer.encode(" "), self.tokenizer.image_start]
      prompt = self._batches.padded([ids], batches.BUCKETS)
      self._null = self._draw(prompt, seed_arrays.words([0]))
    elif self._null is None and self.settings.null == "black":
      self._null = self._black()
    return self._null

  def talk(
    self, conversations: Sequence[talking.Conversation], **options: Any
  ) -> list[talking.Reply]:
    """Answers conversations of any turns, with any pictures in them; greedy unless asked otherwise.

    An answer does not depend on the others. A picture for which a prompt has no room is shrunk
    further, with a warning.

    Args:
      options: those of `talking.How`.

    Raises:
      ValueError: an option that there is not or a number out of its range; see `talking.checked`; a
        conversation longer than the largest bucket; scores that are not finite.
    """
    how = talking.how(options)
    prompt, counts = self._batches.talks(conversations, how.max_pixels)
    return speaking.talk(self.system, self.tokenizer, self._ends(), prompt, counts, how)

  def chat(
    self, questions: Sequence[str], images: Sequence[asked.Picture | None], **options: Any
  ) -> list[str]:
    """Answers to questions, each of which may have one picture before it; see `talk`.

    Args:
      images: a picture (of PIL or uint8[h, w, 3]; see `data.images.rgb`) or None for each question.
    """
    talking.how(options)  # before pictures are looked at
    asked_of = self._batches.questions(questions, images)
    return [reply.text for reply in self.talk(asked_of, **options)]

  def _ends(self) -> tuple[int, ...]:
    return (self.tokenizer.im_end, self.tokenizer.pad)


@program()
def _targets(network: Network, images: jax.Array) -> jax.Array:
  return network.module().targets(images)


def load(
  directory: str | Path,
  *,
  dtype: layers.Dtype = "float32",
  memory: memories.Memory | None = None,
  decoder: bool = True,
) -> Model:
  """A model of a directory, released, converted or of a run, stored and computing in `dtype`.

  Without `decoder` the pixel decoder is left unread. In int8, if the memory says so, lie the blocks
  of the language model and of the denoiser.

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
  shelf = memories.Shelf(memory or memories.Memory())
  drawn = None if found is None else painter_files.load(found, cfg.grid, dtype, shelf)
  system = memories.load(blip3o, cfg, directory, shelf, dtype=dtype, int8=QUANTISED)
  return Model(cfg, settings, system, drawn, tokenizer)


def _decoder_of(directory: str | Path) -> Path | None:
  """The directory that holds the pixel decoder of a model; None where there is none."""
  try:
    home = loading.home_of(directory, diffusers_files.FOLDER)
  except FileNotFoundError:
    return None
  return home if (home / diffusers_files.FOLDER).is_dir() else None
