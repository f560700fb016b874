"""What a record becomes for each task of Nexus-Gen, in numpy.

| stage | task | a record becomes |
|---|---|---|
| language | `generate` | a caption in its template, the picture as slots of the answer |
| language | `edit` | the same after pictures and an instruction, or of a caption alone |
| language | `understand` | a conversation about pictures, or about nothing |
| language | `messages` | any of these; pictures in answers of a conversation are drawn |
| generation | `generate` | the picture to paint, and as `visual` sees it, a row, or features |
| editing | `edit` | the picture to paint, and the row that asks for it, or features |

Rows are tokens, segments, labels int32[B, T], padded on the left, positions int32[B, 3, T], and
patches uint8[B, I, N, p] of all pictures with the arrays of `qwen_vision.Layout`: room for I =
`Data.pictures`, inputs and drawings together, absent ones last; none where `Data.image_size` is 0.
labels are what each place predicts: the answers and their <|im_end|>, and `image_token` one place
before each slot (Nexus-Gen spec 2.5). `conditions` has the arrays of the two decoders' stages.
"""

from typing import Any

from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Transform
from blip3o_jax.data.text import chat
from blip3o_jax.models import flux
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen.conditions import Paint
from blip3o_jax.systems.nexus_gen.conditions import PaintEdit
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.nexus_gen.model import Stage
from blip3o_jax.systems.nexus_gen.talks import KINDS
from blip3o_jax.systems.nexus_gen.talks import Talk

TASKS: dict[Stage, tuple[str, ...]] = {
  "language": tuple(KINDS),
  "generation": ("generate",),
  "editing": ("edit",),
}
# Options of the data that a stage does not read.
UNREAD: dict[Stage, tuple[str, ...]] = {
  "language": ("features", "squash", "aspect", "drop_captions"),
  "generation": ("squash", "aspect", "drop_captions", "swap_captions", "pictures"),
  "editing": ("squash", "aspect", "drop_captions", "pictures"),
}


def transforms(cfg: Config, data: Data, tokenizer: Any) -> dict[int, Transform]:
  """{bucket: what makes a record a row of that length}, for the stage and the task of `data`.

  Raises:
    ValueError: a task that the stage has not, or an option that it does not read; no tokenizer, or
      one of other ids than the config's; buckets that the template does not fit, or none that holds
      all pictures of a row; an `image_size` that the decoder cannot paint; no part "visual".
  """
  stage = cfg.stage
  data.check_task(*TASKS[stage])
  data.refuse(*UNREAD[stage])
  if stage != "language":
    _check_pixels(cfg, data)
  if "visual" not in cfg.parts and data.image_size and not data.features:
    raise ValueError(
      f"config.model.parts: task {data.task!r} shows pictures, which needs the part 'visual'"
      + ("" if stage == "language" else ", or data.features")
    )
  paint = PaintEdit if stage == "editing" else Paint
  if data.features or (stage == "generation" and cfg.told == "seen"):
    # Without text all rows are alike.
    return {data.buckets[0]: paint(cfg, data)}
  if stage != "language" and "language" not in cfg.parts:
    raise ValueError(
      f"config.model.parts: the language model draws what the {stage} decoder is told, which needs "
      "the part 'language', or data.features"
    )
  _check_tokenizer(cfg, data, tokenizer)
  made: dict[int, Transform] = {}
  for bucket in data.buckets:
    talk = Talk(cfg, data, tokenizer, bucket)
    # Rows with pictures go where they have room: only the largest need hold all of them.
    _check_bucket(cfg, data, talk, tokenizer, bucket)
    made[bucket] = talk if stage == "language" else paint(cfg, data, talk)
  return made


def _check_pixels(cfg: Config, data: Data) -> None:
  """Raises ValueError for a size that is no whole number of FLUX's patches."""
  unit = cfg.autoencoder.factor * flux.PATCH
  if not data.image_size or data.image_size % unit:
    raise ValueError(
      f"config.data.image_size: {data.image_size}, the side of what the decoder paints, is not a "
      f"multiple of {unit}"
    )


def _check_tokenizer(cfg: Config, data: Data, tokenizer: Any) -> None:
  if tokenizer is None:
    raise ValueError(f"config.tokenizer: task {data.task!r} needs a directory with tokenizer.json")
  for field, name in (("image_token", "image_pad"), ("boi", "vision_start"), ("eoi", "vision_end")):
    wanted, found = getattr(cfg, field), getattr(tokenizer, name)
    if wanted != found:
      raise ValueError(
        f"config.model.{field}: {wanted}, but the tokenizer's {prompts.SPECIAL[name]} is {found}"
      )


def _check_bucket(cfg: Config, data: Data, talk: Talk, tokenizer: Any, bucket: int) -> None:
  """Raises ValueError for a bucket without the room that it must have."""
  largest = bucket == data.buckets[-1]
  drawn = bool(data.image_size) and data.task != "understand"
  drawn = drawn and (largest or data.task != "messages")
  shown = 0
  if largest and data.image_size and data.task != "generate":
    shown = 1 if cfg.stage == "editing" else data.pictures - drawn
    if data.task == "edit" and not shown:
      raise ValueError(
        f"config.data.pictures: {data.pictures} has no room for a picture and what comes of it"
      )
  answer = prompts.drawn(shown, cfg.form.language) if drawn else [""]
  places = [talk.room.places] * shown + [cfg.slots] * (len(answer) - 1)
  turns = chat.turns_of([prompts.asking("", shown)], [answer], places)
  length = len(chat.talk_row(tokenizer, turns, system=prompts.SYSTEM, limit=1 << 30)[0])
  if length > bucket:
    pictures = f" and {sum(places)} image tokens" if places else ""
    raise ValueError(
      f"config.data.buckets: {bucket} does not hold the template{pictures}, {length} tokens"
    )
