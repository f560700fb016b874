"""A loaded model as a person calls it: `blip3o_jax.load` returns one, of whichever system.

    model = blip3o_jax.load()
    for picture in model.generate("a red circle", seed=7, images_per_prompt=4):
      picture.save(f"circle-{picture.seed}.png")

Lists of any length are cut into batches, whose numbers are padded to a few sizes that are compiled
once. A picture does not depend on the others of its call.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any
from typing import TypedDict
from typing import Unpack

import numpy as np
from PIL import Image

import blip3o_jax
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import watching
from blip3o_jax.use import chatting
from blip3o_jax.use import opening
from blip3o_jax.use.chatting import BATCH
from blip3o_jax.use.chatting import Verb
from blip3o_jax.use.picture import Picture

Shown = asked.Picture  # a picture of PIL, or uint8[h, w, 3]


class Drawing(TypedDict, total=False):
  """How pictures are drawn; what is absent is as the model says. `Model.options` has the names that
  a model takes.

  Attributes:
    steps: of the sampler. pixel_steps: of the pixel decoder, where it is another one.
    guidance: scale of it. sampler: "euler" or "heun". size: height and width in pixels.
    language: of the prompt's template. decoder: that paints an edit. max_pixels: of a picture that
      the model is shown.
  """

  steps: int
  pixel_steps: int
  guidance: float
  sampler: str
  size: tuple[int, int]
  language: str
  decoder: str
  max_pixels: int


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a call is.

  Attributes:
    stage: of the way from prompt to picture. done, total: its steps.
    first, count: which of the call's pictures are being drawn. pictures: how many it has in all.
    preview: what the pictures will look like, uint8[count, H, W, 3], computed when it is called;
      None in stages that know no better than the last.
  """

  stage: str
  done: int
  total: int
  first: int
  count: int
  pictures: int
  preview: Callable[[], np.ndarray] | None = None

  @property
  def part(self) -> float:
    """Of the stage that is done, 0 to 1."""
    return self.done / max(1, self.total)


# Called between steps; what it raises ends the call, and is what the call raises.
Watch = Callable[[Progress], None]


class Model(chatting.Chats):
  """See `blip3o_jax.load`.

  Attributes:
    name: as it was asked for. system: whose model it is.
    dtype: it computes in, with what else changes its results: "float32", "bfloat16+int8+tile512".
    verbs: what it can do, of "generate", "chat", "edit" and "reconstruct".
    words: all that a model of few words knows, in small letters; empty for a model of any words.
  """

  def __init__(self, opened: opening.Opened, verbs: Sequence[str]):
    self.name, self.system, self.dtype = opened.name, opened.system, opened.dtype
    self.verbs = tuple(verbs)
    self.words: tuple[str, ...] = tuple(opened.model.words)
    self._own = opened.model
    self._fingerprint = opening.Fingerprint(opened.directory)

  @property
  def fingerprint(self) -> str:
    """The hash of the weights, "blake3:" and 64 digits; made when it is first asked for."""
    return str(self._fingerprint)

  def options(self, verb: Verb) -> dict[str, Any]:
    """The options of a verb that this model takes, with what they are unless given.

    Raises:
      ValueError: a verb that the model has not.
    """
    return self._options(verb, {})

  def _options(self, verb: Verb, given: Mapping[str, Any]) -> dict[str, Any]:
    """See `options`; some of them are given."""
    self._check(verb)
    told = {chatting.private(name): value for name, value in given.items()}
    return {_public(name): value for name, value in self._own.takes(verb, **told).items()}

  def tokens(self, text: str) -> int:
    """How many tokens a text is to the model, without what its template adds."""
    return len(self._own.tokenizer.encode(text))

  def unknown_words(self, *texts: str) -> list[str]:
    """Those of texts that are none of `words`, in small letters: they are taken for others."""
    return asked.unknown(texts, self.words)

  # Pictures --------------------------------------------------------------------------------------

  def generate(
    self,
    prompts: str | Sequence[str],
    seed: int | Sequence[int] = 0,
    *,
    images_per_prompt: int = 1,
    images: Shown | Sequence[Shown | None] = (),
    batch: int = BATCH,
    progress: Watch | None = None,
    every: float = 0.0,
    **options: Unpack[Drawing],
  ) -> list[Picture]:
    """Draws pictures of prompts.

    Args:
      prompts: one or several.
      seed: a number: picture i of the call has seed + i; or a list, one a picture. Below 2**64.
      images_per_prompt: how many, one after the other.
      images: a picture or None for each prompt, which the model sees before it.
      batch: how many are drawn at once.
      progress: called between steps, see `Progress`. every: about so many seconds apart; 0 is
        after each step, whose call may take as long as the step where a model is small.

    Returns:
      The pictures, prompt by prompt.

    Raises:
      ValueError: before any long work: no text, seed or picture, another number of them, an option
        that the model has not or out of its range; after it: a result that is not finite.
    """
    self._check("generate")
    asked.check_numbers(1, images_per_prompt=images_per_prompt)
    texts = [text for text in _list(prompts, "prompt") for _ in range(images_per_prompt)]
    seeds = chatting.seeds_of(seed, len(texts), "prompts and images_per_prompt")
    more: list[Any] = []
    if given := _pictures(images):
      shown = asked.images_of(given, len(texts) // images_per_prompt, "prompt")
      more = [image for image in shown for _ in range(images_per_prompt)]

    def draw(part: slice, **told: Any) -> np.ndarray:
      if more:
        told["images"] = more[part]
      return self._own.generate(texts[part], seeds[part], **told)

    return self._drawn("generate", draw, texts, seeds, batch, progress, every, options)

  def edit(
    self,
    images: Shown | Sequence[Shown],
    instructions: str | Sequence[str],
    seed: int | Sequence[int] = 0,
    *,
    images_per_prompt: int = 1,
    batch: int = BATCH,
    progress: Watch | None = None,
    every: float = 0.0,
    **options: Unpack[Drawing],
  ) -> list[Picture]:
    """Changes pictures as they are told to: one for each instruction, or one picture for all.

    Args, Returns, Raises: as `generate`.
    """
    self._check("edit")
    asked.check_numbers(1, images_per_prompt=images_per_prompt)
    told = _list(instructions, "instruction")
    shown = _pictures(images)
    shown = shown * len(told) if len(shown) == 1 else shown
    given = asked.all_images(shown, len(told), "instruction")
    texts = [text for text in told for _ in range(images_per_prompt)]
    befores = [image for image in given for _ in range(images_per_prompt)]
    seeds = chatting.seeds_of(seed, len(texts), "instructions and images_per_prompt")

    def draw(part: slice, **told: Any) -> np.ndarray:
      return self._own.edit(befores[part], texts[part], seeds[part], **told)

    return self._drawn("edit", draw, texts, seeds, batch, progress, every, options)

  def reconstruct(
    self,
    images: Shown | Sequence[Shown],
    seed: int | Sequence[int] = 0,
    *,
    batch: int = BATCH,
    progress: Watch | None = None,
    every: float = 0.0,
    **options: Unpack[Drawing],
  ) -> list[Picture]:
    """Sends pictures through image encoder and pixel decoder.

    Args, Returns, Raises: as `generate`.
    """
    self._check("reconstruct")
    shown = asked.all_images(_pictures(images), None, "image")
    seeds = chatting.seeds_of(seed, len(shown), "images")

    def draw(part: slice, **told: Any) -> np.ndarray:
      return self._own.reconstruct(shown[part], seeds[part], **told)

    texts = [""] * len(shown)
    return self._drawn("reconstruct", draw, texts, seeds, batch, progress, every, options)

  def features(self, images: Shown | Sequence[Shown], *, batch: int = BATCH) -> np.ndarray:
    """What the pixel decoder would be given of pictures: float32[B, ...], by the image encoder.

    Raises:
      ValueError: what is no picture; a model that cannot reconstruct; a result that is not finite.
    """
    self._check("reconstruct")
    shown = asked.all_images(_pictures(images), None, "image")
    asked.check_numbers(1, batch=batch)
    parts = (shown[i : i + batch] for i in range(0, len(shown), batch))
    return np.concatenate([np.asarray(self._own.encode(part), np.float32) for part in parts])

  def framed(self, image: Shown, size: tuple[int, int]) -> np.ndarray:
    """What `reconstruct` is shown of a picture, for a look at both: uint8[H, W, 3].

    All of it, squashed, or the square in its middle, as the model has it.

    Args:
      size: height and width that it is brought to.

    Raises:
      ValueError: what is no picture; a model that cannot reconstruct.
    """
    self._check("reconstruct")
    (found,) = asked.all_images([image], None, "image")
    if not self._own.squashes:
      side = min(found.size)
      left, top = ((long - side) // 2 for long in found.size)
      found = found.crop((left, top, left + side, top + side))
    height, width = size
    return np.asarray(found.resize((width, height), Image.Resampling.BICUBIC))

  def _drawn(
    self,
    verb: Verb,
    draw: Callable[..., np.ndarray],
    texts: Sequence[str],
    seeds: Sequence[int],
    batch: int,
    progress: Watch | None,
    every: float,
    options: Mapping[str, Any],
  ) -> list[Picture]:
    """Pictures, batch by batch."""
    asked.check_numbers(1, batch=batch)
    asked.check_numbers(0, every=every)
    takes = self.options(verb)
    given = {name: value for name, value in options.items() if value is not None}
    if "size" in given and "size" not in takes:
      raise ValueError("size: this model draws pictures of one size only; leave it out")
    asked.check_options(verb, given, tuple(takes))
    told = {chatting.private(name): value for name, value in given.items()}
    self._fingerprint.start()
    pixels: list[np.ndarray] = []
    for first in range(0, len(texts), batch):
      part = slice(first, first + batch)
      if progress is not None:
        watch = _watch(progress, first, len(texts[part]), len(texts))
        told["watch"] = watching.Paced(watch, every)
      pixels += list(draw(part, **told))
    settings = self.settings(verb, given)
    return [Picture(*each, settings) for each in zip(pixels, texts, seeds, strict=True)]

  def settings(self, verb: Verb, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture says of how it came to be, of JSON, where these options are given."""
    whole = {**self._options(verb, options), **options}
    # 0 pixels leave it to the model.
    used = {k: v for k, v in whole.items() if v is not None and (v or k != "max_pixels")}
    return {
      "verb": verb,
      **{name: list(value) if isinstance(value, tuple) else value for name, value in used.items()},
      "model": self.name,
      "system": self.system,
      "dtype": self.dtype,
      "fingerprint": self.fingerprint,
      "version": blip3o_jax.__version__,
    }

  def _check(self, verb: Verb) -> None:
    """Raises ValueError for a verb that the model has not."""
    if verb not in self.verbs:
      raise ValueError(opening.unable(self.name, self.system, verb, self.verbs))


def load(
  model: str | Path | None = None,
  *,
  dtype: opening.Dtype = "float32",
  memory: opening.Memory | None = None,
  verb: str = "",
) -> Model:
  """See `blip3o_jax.load`."""
  from blip3o_jax import systems

  opened = opening.open_model(model, dtype=dtype, memory=memory, verb=verb)
  return Model(opened, systems.SYSTEMS[opened.system].VERBS)


def _watch(progress: Watch, first: int, count: int, pictures: int) -> watching.Watch:
  """What a system calls between the steps of one batch."""

  def watch(step: watching.Step) -> None:
    progress(Progress(step.stage, step.done, step.total, first, count, pictures, step.preview))

  return watch


def _list(texts: str | Sequence[str], what: str) -> list[str]:
  return asked.texts_of([texts] if isinstance(texts, str) else texts, what)


def _pictures(images: Any) -> list[Any]:
  """One picture, or several, as a list."""
  if isinstance(images, str | Path):
    raise ValueError(f"images: expected a picture (PIL.Image.open) or a list, got {str(images)!r}")
  one = not hasattr(images, "__len__") or (isinstance(images, np.ndarray) and images.ndim < 4)
  return [images] if one else list(images)


def _public(name: str) -> str:
  return "guidance" if name == "scale" else name
