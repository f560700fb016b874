"""What a record becomes for each task of BLIP3-o, in numpy.

| task | from | to | arrays of a batch |
|---|---|---|---|
| generate | caption | picture | tokens, segments int32[B, P]; images or features |
| edit | pictures, caption | picture | those of generate, and pictures |
| reconstruct | picture | itself | those of generate, and pictures |
| understand | questions | answers | tokens, segments, labels, positions; pictures |

Rows are padded on the left; prompts for a picture end in [IMG]. labels int32[B, T], positions
int32[B, 3, T]. images uint8[B, S, S, 3] are normalised on the device, as patches are; features
[B, h, w, C] are as they were stored. Pictures that prompts show are patches uint8[B, I, N, p] with
the arrays of `qwen_vision.Layout` (`patch_positions`, `patch_windows`, `patch_segments`): room for
I = `Data.pictures` in each row, absent ones last; none where `Data.image_size` is 0.

`Source.words` gives a record without its pictures. So that lengths are known without reading them,
it says in `Record.extra` how many there are: `pictures` in all, `inputs` of `Record.inputs`.
"""

from collections.abc import Callable

from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Transform
from blip3o_jax.data.text import chat
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o.drawing import Edit
from blip3o_jax.systems.blip3o.drawing import Generate
from blip3o_jax.systems.blip3o.drawing import Reconstruct
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.blip3o.understanding import Understand
from blip3o_jax.systems.parts.shown import Room

TASKS: dict[str, Callable[[Config, Data, prompts.Tokenizer, int], Transform]] = {
  "generate": Generate,
  "edit": Edit,
  "reconstruct": Reconstruct,
  "understand": Understand,
}
# Options of the data that a task does not read.
UNREAD: dict[str, tuple[str, ...]] = {
  "generate": ("pictures", "aspect"),
  "edit": (),
  "reconstruct": ("pictures", "aspect", "drop_captions", "swap_captions"),
  "understand": ("features", "drop_captions", "swap_captions"),
}


def transforms(
  cfg: Config, data: Data, tokenizer: prompts.Tokenizer | None
) -> dict[int, Transform]:
  """{bucket: what makes a record a row of that length}, for the task of `data`.

  Raises:
    ValueError: another task, or an option that it does not read; no tokenizer; buckets that the
      prompt's template does not fit, or none that holds all pictures of a row; an `image_size`
      that the vision tower's patches do not tile; pictures without the part "visual".
  """
  data.check_task(*TASKS)
  if tokenizer is None:
    raise ValueError(f"config.tokenizer: task {data.task!r} needs a directory with tokenizer.json")
  data.refuse(*UNREAD[data.task])
  if data.task != "generate":
    _check_pictures(cfg, data)
  made: dict[int, Transform] = {}
  for bucket in data.buckets:
    # Rows with pictures go where they have room: only the largest need hold all of them.
    _check_bucket(cfg, data, tokenizer, bucket, bucket == data.buckets[-1])
    made[bucket] = TASKS[data.task](cfg, data, tokenizer, bucket)
  return made


def _check_pictures(cfg: Config, data: Data) -> None:
  Room(cfg.visual, data)
  if data.task != "understand" and not data.image_size:
    raise ValueError(f"config.data.image_size: 0, but task {data.task!r} shows pictures")
  if data.image_size and "visual" not in cfg.parts:
    raise ValueError(
      f"config.model.parts: task {data.task!r} shows pictures, which needs the part 'visual'"
    )


def _check_bucket(
  cfg: Config, data: Data, tokenizer: prompts.Tokenizer, bucket: int, largest: bool
) -> None:
  """Raises ValueError for a bucket without the room that it must have."""
  places, what = [], "prompt's"
  if data.task != "generate" and largest:
    places = [Room(cfg.visual, data).places] * data.pictures
  if data.task == "understand":
    ids, what = chat.chat_ids(tokenizer, "", places, system=prompts.SYSTEM), "chat"
  else:
    said = prompts.RECONSTRUCT if data.task == "reconstruct" and largest else ""
    form, limit = cfg.prompt_form, prompts.UNLIMITED
    ids = prompts.drawing_ids(tokenizer, said, places, limit=limit, form=form)
  if len(ids) > bucket:
    pictures = f" and {sum(places)} image tokens" if places else ""
    raise ValueError(
      f"config.data.buckets: {bucket} does not hold the {what} template{pictures}, "
      f"{len(ids)} tokens"
    )
