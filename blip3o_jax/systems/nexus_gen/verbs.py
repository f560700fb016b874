"""A loaded model and its verbs: words to pictures, pictures to pictures, questions to answers.

    generate: caption ─► vectors ─► generation decoder
    edit: picture, instruction ─► vectors, beside what visual sees of the picture ─► editing decoder
    chat: pictures, question ─► words, and vectors that a decoder paints
    reconstruct: picture ─► visual ─► generation decoder

The vectors of a picture come from one pass over the template with its answer in it, or from the
answer that the model says itself. Prompts and their number are padded to a few sizes (`batches`),
and what is a number is an argument, so a second call compiles nothing.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from blip3o_jax import layers
from blip3o_jax.data import images as pictures
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.models import flux
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems.nexus_gen import batches
from blip3o_jax.systems.nexus_gen import constants
from blip3o_jax.systems.nexus_gen import painting
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.systems.nexus_gen import speaking
from blip3o_jax.systems.nexus_gen.how import DRAWS
from blip3o_jax.systems.nexus_gen.how import PAINTS
from blip3o_jax.systems.nexus_gen.how import How
from blip3o_jax.systems.nexus_gen.model import PARTS
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.parts import answer_files
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import finite
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import places
from blip3o_jax.systems.parts import seeds as seed_arrays
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.train import checkpoint

VERBS = ("generate", "chat", "edit", "reconstruct")
Answer = str | tuple[str, list[np.ndarray]]
FLOAT = ("autoencoder", "constants")  # modules that stay as they are declared
SPOKEN = 256  # most ids of an answer that is said for the sake of its picture


# What holds a part, for errors.
FILES = {
  "generator": "generation decoder (generation_decoder.safetensors)",
  "editor": "editing decoder (edit_decoder.safetensors)",
  "autoencoder": "autoencoder (ae.safetensors, of FLUX.1-dev)",
}


class Model:
  """What `load` returns.

  Attributes:
    cfg, settings: sizes and settings. network: of `model.NexusGen`, the parts that its files hold.
    tokenizer: of the directory. choice: how the ids of answers are chosen. home: the directory.
  """

  def __init__(
    self,
    cfg: Config,
    settings: released.Settings,
    network: Network,
    tokenizer: Tokenizer,
    choice: answer_files.Choice,
    home: Path = Path("."),
  ):
    self.cfg, self.settings, self.network = cfg, settings, network
    self.tokenizer, self.choice, self.home = tokenizer, choice, home
    self._batches = batches.Batches(cfg, settings, tokenizer)

  # Pictures --------------------------------------------------------------------------------------

  def generate(
    self,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    images: Sequence[asked.Picture | None] = (),
    **options: Any,
  ) -> np.ndarray:
    """Captions to pictures uint8[B, H, W, 3] by the generation decoder.

    A picture does not depend on the others; their number is padded to a power of two, and programs
    for different numbers round differently.

    Args:
      seeds: one a picture, each from 0 to 2**64 - 1.
      images: a picture or None for each text, which then is an instruction to change it.
      options: `steps`, `scale`, `size`, `language`, `max_pixels` and `words` of `How`.

    Raises:
      ValueError: lists that are empty or of different lengths, what is no text, seed or picture, an
        option that there is not or a number out of its range; a part that the model lacks; an
        output that is not finite, which names the part.
    """
    asked.check_options("generate", options, DRAWS)
    how = How(**options)
    self._check("generator")
    texts, words = self._texts(texts, "prompt"), seed_arrays.words(seeds)
    if len(texts) != len(words):
      raise ValueError(f"{len(texts)} prompts but {len(words)} seeds")
    some = images if not isinstance(images, Sequence) or images else [None] * len(texts)
    found = self._vectors(texts, asked.images_of(some, len(texts), "prompt"), how)
    return self._paint(found, seeds, how)

  def edit(
    self,
    images: Sequence[asked.Picture],
    instructions: Sequence[str],
    seeds: Sequence[int],
    **options: Any,
  ) -> np.ndarray:
    """Pictures changed as instructions say, uint8[B, H, W, 3] (spec 6.3).

    Args:
      options: those of `generate`, and `decoder`: "generator" does not look at the picture again,
        which suits large changes.

    Raises:
      ValueError: see `generate`.
    """
    asked.check_options("edit", options, (*DRAWS, "decoder"))
    how = How(**options)
    self._check(how.decoder)
    texts, words = self._texts(instructions, "instruction"), seed_arrays.words(seeds)
    shown = asked.all_images(images, len(texts), "instruction")
    if len(texts) != len(words):
      raise ValueError(f"{len(texts)} instructions but {len(words)} seeds")
    found = self._vectors(texts, shown, how)
    reference = self.reference(shown) if how.decoder == "editor" else None
    return self._paint(found, seeds, how, how.decoder, reference)

  def reconstruct(
    self, images: Sequence[asked.Picture], seeds: Sequence[int], **options: Any
  ) -> np.ndarray:
    """Pictures as the generation decoder paints what `visual` sees of them, uint8[B, H, W, 3].

    The centre is cut out, as that decoder was trained (spec 4).

    Args:
      options: `steps`, `scale` and `size` of `How`.

    Raises:
      ValueError: see `generate`.
    """
    asked.check_options("reconstruct", options, PAINTS)
    how = How(**options)
    self._check("generator")
    found = asked.all_images(images, None, "image")
    if len(found) != len(seed_arrays.words(seeds)):
      raise ValueError(f"{len(found)} images but {len(seeds)} seeds")
    side = self.cfg.side(self.cfg.target_grid)
    cut = [pictures.square(image, side, resample="bilinear", nearest=True) for image in found]
    return self._paint(self.seen(np.stack(cut)), seeds, how)

  def reference(self, images: Sequence[Image.Image]) -> np.ndarray:
    """What the editing decoder sees of pictures, float32[B, r, D] (spec 4)."""
    side = self.cfg.side(self.cfg.reference_grid)
    squashed = [pictures.square(i, side, squash=True, resample="bilinear") for i in images]
    return self.seen(np.stack(squashed))

  def _vectors(
    self, texts: Sequence[str], images: Sequence[Image.Image | None], how: How
  ) -> np.ndarray:
    """The vectors float32[B, n, D] of the picture that each text asks for."""
    language = how.language or self.cfg.form.language
    shown = [[] if image is None else [image] for image in images]
    own = how.words == "own"
    rows = self._batches.drawing(texts, shown, language, how.max_pixels, answered=not own)
    if not own:
      out = np.asarray(speaking.predict(self.network, batches.batch(rows)))[: len(texts)]
      finite.check(out, "language model (vectors of a picture)", self.network)
      return out
    found = self._answers(rows, self._rules(len(rows["tokens"]), SPOKEN), 1)[: len(texts)]
    for i, answer in enumerate(found):
      if not len(answer.vectors):
        said = self.tokenizer.decode(answer.words[0]).strip()
        raise ValueError(
          f"the model answered text {i + 1} without a picture: {said!r}; with the template's words "
          "it always draws one"
        )
    return np.stack([answer.vectors[0] for answer in found])

  def seen(self, images: np.ndarray) -> np.ndarray:
    """What `visual` sees, float32[B, n, D], of pictures uint8[B, S, S, 3], row by row."""
    padded = buckets.repeat_last(images, buckets.power(len(images)))
    out = np.asarray(_seen(self.network, padded))[: len(images)]
    finite.check(out, "vision tower", self.network)
    return out

  def _paint(
    self,
    vectors: np.ndarray,
    seeds: Sequence[int],
    how: How,
    decoder: painting.Which = "generator",
    reference: np.ndarray | None = None,
  ) -> np.ndarray:
    settings = self.settings
    scales = {"generator": settings.scale, "editor": settings.edit_scale}
    return painting.paint(
      self.network,
      vectors,
      seeds,
      reference=reference,
      decoder=decoder,
      size=how.sides(settings.size, self.cfg.autoencoder.factor * flux.PATCH),
      steps=how.steps or settings.steps,
      scale=how.scale or scales[decoder],
    )

  def _check(self, decoder: painting.Which) -> None:
    """Raises ValueError for a part that painting needs and the model lacks, before long work."""
    for part in (decoder, "autoencoder"):
      if part not in self.cfg.parts:
        what = painting.NAMES[decoder] if part == decoder else part
        raise ValueError(
          f"{self.home}: no {what} ({FILES[part]}), without which nothing is painted"
        )
    if "constants" not in self.cfg.parts:
      raise ValueError(constants.absent(self.home))

  # Answers ---------------------------------------------------------------------------------------

  def chat(
    self,
    questions: Sequence[str],
    images: Sequence[asked.Picture | Sequence[asked.Picture] | None],
    *,
    length: int = 64,
    temperature: float | None = None,
    seed: int = 0,
    limits: decoding.Limits | None = None,
    max_pixels: int = 0,
    **options: Any,
  ) -> list[Answer]:
    """Answers of at most `length` tokens, a picture counting as one.

    Args:
      images: for each question a picture, several, or None. They stand where the question has marks
        `<image>`, else before it.
      temperature, limits: how ids are chosen; None is as the model's generation_config.json says.
      seed: of what is drawn, from 0 to 2**64 - 1; the pictures of answers have this one, the next
        and so on.
      max_pixels: of a picture that is shown; 0 is what the model says.
      options: `steps`, `scale` and `size` of the pictures, see `How`.

    Returns:
      For each question a text or, where the model draws, (a text with a mark `<image>` in the place
      of each picture, [uint8[H, W, 3]]). A picture after one that was shown is painted by the
      editing decoder, where there is one, beside the last of those.

    Raises:
      ValueError: see `generate`.
    """
    asked.check_options("chat", options, PAINTS)
    how = How(max_pixels=max_pixels, **options)
    asked.check_numbers(1, length=length)
    asked.check_numbers(0, temperature=temperature or 0.0)
    (words,) = seed_arrays.words([seed])
    questions = self._texts(questions, "question")
    shown = _lists(images, len(questions))
    rows = self._batches.asking(questions, shown, max_pixels)
    rules = self._rules(len(rows["tokens"]), length, temperature, limits)
    key = seed_arrays.keys(words[None])[0] if rules.temperature > 0 else None
    found = self._answers(rows, rules, speaking.PICTURES, key)[: len(questions)]
    out: list[Answer] = []
    drawn = 0
    for answer, own in zip(found, shown, strict=True):
      text = chat.MARK.join(self.tokenizer.decode(ids) for ids in answer.words).strip()
      count = len(answer.vectors)
      if count:
        seeds = [(seed + drawn + i) % (seed_arrays.MOST + 1) for i in range(count)]
        out.append((text, list(self._answered(answer.vectors, own, seeds, how))))
        drawn += count
      else:
        out.append(text)
    return out

  def _answered(
    self, vectors: np.ndarray, shown: Sequence[Image.Image], seeds: Sequence[int], how: How
  ) -> np.ndarray:
    """The pictures of one answer."""
    edits = bool(shown) and "editor" in self.cfg.parts
    self._check("editor" if edits else "generator")
    reference = self.reference([shown[-1]] * len(vectors)) if edits else None
    return self._paint(vectors, seeds, how, "editor" if edits else "generator", reference)

  def _answers(
    self, rows: Any, rules: decoding.Rules, most: int, key: jax.Array | None = None
  ) -> list[speaking.Answer]:
    return speaking.answer(self.network, batches.prompt(rows), rules, pictures=most, key=key)

  def _rules(
    self,
    rows: int,
    length: int,
    temperature: float | None = None,
    limits: decoding.Limits | None = None,
  ) -> decoding.Rules:
    """How the ids of answers are chosen: as asked for, else as the model says."""
    choice, limits = self.choice, limits or self.choice.limits
    return speaking.rules(
      self.cfg,
      rows,
      length,
      min(self.tokenizer.size, self.cfg.backbone.vocab_size),
      choice.ends or (self.tokenizer.im_end, self.tokenizer.pad),
      forced=self.tokenizer.encode(limits.begin),
      temperature=choice.temperature if temperature is None else temperature,
      limits=limits,
    )

  def _texts(self, values: Sequence[str], what: str) -> list[str]:
    return asked.texts_of(values, what, self.settings.words)


def _lists(images: Any, count: int) -> list[list[Image.Image]]:
  """The pictures of each question, of one, several or None; see `asked.images_of`."""
  if isinstance(images, str | Image.Image) or not hasattr(images, "__len__"):
    raise ValueError(f"images: expected a list of pictures, got {type(images).__name__}")
  each = [x if isinstance(x, list | tuple) else [] if x is None else [x] for x in images]
  if len(each) != count:
    raise ValueError(f"{count} questions but {len(each)} images; None stands for no picture")
  flat = iter(
    asked.all_images([x for own in each for x in own], None, "image") if any(each) else []
  )
  return [[next(flat) for _ in own] for own in each]


def load(directory: str | Path, *, dtype: layers.Dtype = "float32") -> Model:
  """A model of a directory, released, converted or of a run, stored and computing in `dtype`.

  The parts are those that the directory holds; the autoencoder and the null condition stay float32.

  Raises:
    FileNotFoundError, ValueError: what is absent or wrong, by file and name.
  """
  home = loading.home_of(directory, "config.json")
  found, (whole, settings) = loading.config_of(nexus_gen, home), released.read(home, dtype)
  # An autoencoder in diffusers' layout has a config.json of its own.
  whole = dataclasses.replace(whole, autoencoder=found.autoencoder)
  if checkpoint.is_run(directory):
    run = loading.config_of(nexus_gen, directory)
    has = tuple(part for part in PARTS if part in run.parts or part in found.parts)
    whole = dataclasses.replace(run, parts=has)
    found = whole
  cfg = dataclasses.replace(released.computing(whole, dtype), parts=found.parts, stage=found.stage)
  tokenizer = Tokenizer.load(loading.tokenizer_of(directory), prompts.SPECIAL)
  network = loading.load(nexus_gen, cfg, directory, dtype=dtype, keep=FLOAT)
  choice = answer_files.read(home)
  if choice is None:
    choice = answer_files.Choice(limits=decoding.Limits(penalty=settings.penalty))
  return Model(cfg, settings, network, tokenizer, choice, home)


@jax.jit
def _seen(network: Network, images: jax.Array) -> jax.Array:
  module = network.module()
  return places.seen(module.part("visual"), images).astype(np.float32)
