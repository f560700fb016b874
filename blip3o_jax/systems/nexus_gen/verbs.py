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
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.models import flux
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems.nexus_gen import answering
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
from blip3o_jax.systems.parts import memory as memories
from blip3o_jax.systems.parts import places
from blip3o_jax.systems.parts import seeds as seed_arrays
from blip3o_jax.systems.parts import talking
from blip3o_jax.systems.parts import watching
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program
from blip3o_jax.train import checkpoint

VERBS = ("generate", "chat", "edit", "reconstruct")
Answer = str | tuple[str, list[np.ndarray]]
FLOAT = ("autoencoder", "constants")  # modules that stay as they are declared
QUANTISED = ("backbone", "generator", "editor")  # those whose blocks may lie in int8
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
    words, squashes: see `systems.System.load`.
  """

  squashes = False

  def __init__(
    self,
    cfg: Config,
    settings: released.Settings,
    network: Network,
    tokenizer: Tokenizer,
    choice: answer_files.Choice,
    home: Path = Path("."),
  ):
    self.cfg, self.settings, self.network, self.words = cfg, settings, network, settings.words
    self.tokenizer, self.choice, self.home = tokenizer, choice, home
    self._batches = batches.Batches(cfg, settings, tokenizer)

  def takes(self, verb: str, **given: Any) -> dict[str, Any]:
    """The options of a verb, with what they are unless given, where these are."""
    settings = self.settings
    edits = verb == "edit" and given.get("decoder", "editor") == "editor"
    scale = settings.edit_scale if edits else settings.scale
    paints = {"steps": settings.steps, "scale": scale, "size": (settings.size, settings.size)}
    draws = {**paints, "language": self.cfg.form.language, "words": "template", "max_pixels": 0}
    verbs = {"generate": draws, "edit": {**draws, "decoder": "editor"}}
    # Which decoder paints the pictures of an answer, and so its scale, is known in the end.
    verbs["chat"] = talking.takes(self.choice.temperature, self.choice.limits)
    verbs["chat"] |= {**paints, "scale": None}
    return verbs.get(verb, paints)

  # Pictures --------------------------------------------------------------------------------------

  def generate(
    self,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    images: Sequence[asked.Picture | None] = (),
    watch: watching.Watch | None = None,
    **options: Any,
  ) -> np.ndarray:
    """Captions to pictures uint8[B, H, W, 3] by the generation decoder.

    A picture does not depend on the others; their number is padded to a power of two, and programs
    for different numbers round differently.

    Args:
      seeds: one a picture, each from 0 to 2**64 - 1.
      images: a picture or None for each text, which then is an instruction to change it.
      watch: called between the steps, see `watching.Step`: "features", the vectors of the language
        model, in one, and "pixels", those of the sampler. It changes nothing in what comes out.
      options: `steps`, `scale`, `size`, `language`, `max_pixels` and `words` of `How`.

    Raises:
      ValueError: lists that are empty or of different lengths, what is no text, seed or picture, an
        option that there is not or a number out of its range; a part that the model lacks; an
        output that is not finite, which names the part. Whatever `watch` raises.
    """
    asked.check_options("generate", options, DRAWS)
    how = How(**options)
    self._check("generator")
    texts, words = self._texts(texts, "prompt"), seed_arrays.words(seeds)
    if len(texts) != len(words):
      raise ValueError(f"{len(texts)} prompts but {len(words)} seeds")
    some = images if not isinstance(images, Sequence) or images else [None] * len(texts)
    shown = asked.images_of(some, len(texts), "prompt")
    found = watching.once(self._vectors(texts, shown, how), watch, "features")
    return self._paint(found, seeds, how, watch=watch)

  def edit(
    self,
    images: Sequence[asked.Picture],
    instructions: Sequence[str],
    seeds: Sequence[int],
    *,
    watch: watching.Watch | None = None,
    **options: Any,
  ) -> np.ndarray:
    """Pictures changed as instructions say, uint8[B, H, W, 3] (spec 6.3).

    Args:
      watch: see `generate`.
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
    found = watching.once(self._vectors(texts, shown, how), watch, "features")
    reference = self.reference(shown) if how.decoder == "editor" else None
    return self._paint(found, seeds, how, how.decoder, reference, watch)

  def reconstruct(
    self,
    images: Sequence[asked.Picture],
    seeds: Sequence[int],
    *,
    watch: watching.Watch | None = None,
    **options: Any,
  ) -> np.ndarray:
    """Pictures as the generation decoder paints what `visual` sees of them, uint8[B, H, W, 3].

    The centre is cut out, as that decoder was trained (spec 4).

    Args:
      watch: see `generate`; the stage is "pixels".
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
    return self._paint(self.encode(found), seeds, how, watch=watch)

  def encode(self, images: Sequence[asked.Picture]) -> np.ndarray:
    """What the generation decoder is given of pictures, float32[B, n, D] (spec 4)."""
    side = self.cfg.side(self.cfg.target_grid)
    found = asked.all_images(images, None, "image")
    cut = [pictures.square(image, side, resample="bilinear", nearest=True) for image in found]
    return self.seen(np.stack(cut))

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
    rules = self._rules(len(rows["tokens"]), SPOKEN)
    found = speaking.answer(self.network, batches.prompt(rows), rules, pictures=1)[: len(texts)]
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
    watch: watching.Watch | None = None,
  ) -> np.ndarray:
    settings = self.settings
    scales = {"generator": settings.scale, "editor": settings.edit_scale}
    return painting.paint(
      self.network,
      (vectors, reference),
      seeds,
      decoder=decoder,
      size=how.sides(settings.size, self.cfg.autoencoder.factor * flux.PATCH),
      steps=how.steps or settings.steps,
      scale=how.scale or scales[decoder],
      watch=watch,
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

  def talk(
    self, conversations: Sequence[talking.Conversation], **options: Any
  ) -> list[talking.Reply]:
    """Answers conversations of any turns, with any pictures in them, also those it drew itself.

    A picture of an answer is painted by the editing decoder, where there is one and a picture was
    shown before, beside the last of those. The pictures of an answer have its seed, the next and so
    on.

    Args:
      options: those of `talking.How`; `steps`, `scale` and `size` of the pictures, see `How`.
        Temperature and limits are as the model's generation_config.json says unless given.

    Raises:
      ValueError: see `generate`, `talking.checked`; a conversation longer than the largest bucket.
    """
    told, how = answering.options(options)
    talks = talking.checked(conversations, self.settings.words)
    seeds = told.seeds(len(talks))
    rows, counts = self._batches.talks(talks, told.max_pixels)
    rules = self._rules(len(rows["tokens"]), told.length, told.temperature, told.limits)
    found = answering.answers(self.network, self.tokenizer, rows, rules, seeds, told)
    out = []
    for talk, (answer, text), count, seed in zip(talks, found, counts, seeds, strict=True):
      own = [(seed + i) % (seed_arrays.MOST + 1) for i in range(len(answer.vectors))]
      drawn = self._answered(answer.vectors, talking.shown(talk), own, how) if own else ()
      out.append(text.reply(count, list(drawn)))
    return out

  def chat(
    self,
    questions: Sequence[str],
    images: Sequence[asked.Picture | Sequence[asked.Picture] | None],
    **options: Any,
  ) -> list[Answer]:
    """Answers to questions, see `talk`.

    Args:
      images: for each question a picture, several, or None. They stand where the question has marks
        `<image>`, else before it.

    Returns:
      For each question a text or, where the model draws, (a text with a mark `<image>` in the place
      of each picture, [uint8[H, W, 3]]).
    """
    answering.options(options)  # before pictures are looked at
    questions = asked.texts_of(questions, "question")
    conversations = self._batches.questions(questions, answering.lists(images, len(questions)))
    replies = self.talk(conversations, **options)
    return [(r.text, list(r.pictures)) if r.pictures else r.text for r in replies]

  def _answered(
    self, vectors: np.ndarray, shown: Sequence[Image.Image], seeds: Sequence[int], how: How
  ) -> np.ndarray:
    """The pictures of one answer."""
    edits = bool(shown) and "editor" in self.cfg.parts
    self._check("editor" if edits else "generator")
    reference = self.reference([shown[-1]] * len(vectors)) if edits else None
    return self._paint(vectors, seeds, how, "editor" if edits else "generator", reference)

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


def load(
  directory: str | Path,
  *,
  dtype: layers.Dtype = "float32",
  memory: memories.Memory | None = None,
) -> Model:
  """A model of a directory, released, converted or of a run, stored and computing in `dtype`.

  The parts are those that the directory holds; the autoencoder and the null condition stay float32.
  In int8, if the memory says so, lie the blocks of the language model and of the two decoders.

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
  shelf = memories.Shelf(memory or memories.Memory())
  network = memories.load(nexus_gen, cfg, directory, shelf, dtype=dtype, keep=FLOAT, int8=QUANTISED)
  choice = answer_files.read(home)
  if choice is None:
    choice = answer_files.Choice(limits=decoding.Limits(penalty=settings.penalty))
  return Model(cfg, settings, network, tokenizer, choice, home)


@program()
def _seen(network: Network, images: jax.Array) -> jax.Array:
  module = network.module()
  return places.seen(module.part("visual"), images).astype(np.float32)
