"""What lmms-eval asks of a model, answered by one of this package; uses its public names alone.

lmms-eval finds the model `blip3o` by the entry point that this package installs:

    lmms-eval --model blip3o --model_args pretrained=DIR --tasks mmbench_en_dev --batch_size 8

Its picture tasks are asked in the same way as questions, so `mode` says what is wanted: chat (the
default), generate or edit. Here is what needs no lmms-eval; `lmms_model` has the class.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
import re
from typing import Any
from typing import NamedTuple

from blip3o_jax.data import images
from blip3o_jax.evaluate import pictures

MODES = ("chat", "generate", "edit")
LENGTH = 1024  # most tokens of an answer, where a task does not say
# Generation options of tasks that say how text is written; where pictures are asked for none is.
OF_TEXT = (
  *("max_new_tokens", "until", "stop_sequences", "temperature", "do_sample", "top_p", "top_k"),
  *("num_beams", "repetition_penalty"),
)
# Of pictures: names of tasks and of other harnesses -> the model's.
OF_PICTURES = {
  "steps": "steps",
  "num_inference_steps": "steps",
  "guidance": "guidance",
  "guidance_scale": "guidance",
  "pixel_steps": "pixel_steps",
  "sampler": "sampler",
  "language": "language",
  "max_pixels": "max_pixels",
}
FREE = ("image_aspect_ratio",)  # how another family of models pads what it is shown
AGAIN = 10**6  # between the seeds of a question that is asked again


def manifest() -> Any:
  """What the entry point of the group `lmms_eval.models` gives: the model `blip3o`."""
  from lmms_eval.models import registry_v2

  path = "blip3o_jax.evaluate.lmms_model.Blip3o"
  return registry_v2.ModelManifest(model_id="blip3o", chat_class_path=path)


class Asked(NamedTuple):
  """One question.

  Attributes:
    context: as text, by which lmms-eval knows it. messages: of its chat form.
    options: of generation. place: task, split, document and how often it was asked before.
  """

  context: str
  messages: Sequence[Mapping[str, Any]]
  options: Mapping[str, Any]
  place: tuple[str, str, Any, int]

  @property
  def name(self) -> str:
    """Of a file of it, without an ending."""
    task, split, document, again = self.place
    words = [re.sub(r"[^\w.-]+", "-", str(word)) for word in (task, split, document)]
    return f"{words[0]}/{words[1]}/{words[2]}{f'-{again}' if again else ''}"


class Reply(NamedTuple):
  """An answer as lmms-eval takes it; tokens of question and answer where they are known."""

  text: str
  prompt_tokens: int | None = None
  tokens: int | None = None


def read(requests: Iterable[Any], documents: Mapping[str, Any]) -> list[Asked]:
  """Requests of chat models as questions.

  Args:
    requests: each with `args`: context, doc_to_messages, options, document, task, split.
    documents: [task][split][document].

  Raises:
    ValueError: requests of another form.
  """
  asked: list[Asked] = []
  times: dict[tuple[str, str, Any], int] = {}
  for request in requests:
    if len(request.args) != 6 or not callable(request.args[1]):
      raise ValueError(
        f"a request with {len(request.args)} arguments: expected those of a chat model (context, "
        "doc_to_messages, options, document, task, split)"
      )
    context, to_messages, options, document, task, split = request.args
    key = (task, split, document)
    times[key] = again = times.get(key, -1) + 1
    messages = to_messages(documents[task][split][document])
    asked.append(Asked(context, messages, dict(options or {}), (*key, again)))
  return asked


@dataclasses.dataclass(frozen=True)
class Answering:
  """A model with what it is asked for.

  Attributes:
    model: of `blip3o_jax.load`. mode: of `MODES`. output: where pictures are written.
    batch: questions at once. seed: document i is answered with seed + i.
    given: options of every call, before those of a task.
  """

  model: Any
  mode: str
  output: Path
  batch: int = 1
  seed: int = 0
  given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if self.mode not in MODES:
      raise ValueError(f"mode={self.mode}: expected one of {', '.join(MODES)}")
    known = self.model.options(self.mode)  # refuses a mode that the model has not
    if odd := [name for name in self.given if name not in known]:
      raise ValueError(
        f"{odd[0]}: {self.model.name} has it not; {self.mode} has {', '.join(known)}"
      )

  def __call__(self, asked: Sequence[Asked]) -> list[Reply]:
    """The answers, in order.

    Raises:
      ValueError: before anything is computed: options, messages or media that cannot be had, by
        task and name.
    """
    groups: dict[str, list[int]] = {}
    options = [self._options(each) for each in asked]
    given = [self._messages(each) for each in asked]
    for i, each in enumerate(options):
      groups.setdefault(json.dumps(each, sort_keys=True), []).append(i)
    replies: dict[int, Reply] = {}
    for places, found in pictures.told(
      self._parts(asked, given, options, groups), len(asked), self.mode
    ):
      replies.update(zip(places, found, strict=True))
    return [replies[i] for i in range(len(asked))]

  def _parts(
    self,
    asked: Sequence[Asked],
    given: Sequence[Any],
    options: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Sequence[int]],
  ) -> Iterator[tuple[Sequence[int], list[Reply]]]:
    """Batches of questions with the same options."""
    for group in groups.values():
      for first in range(0, len(group), self.batch):
        places = group[first : first + self.batch]
        told = dict(options[places[0]])
        base = told.pop("seed", self.seed)
        seeds = [_seed(base, asked[i].place) for i in places]
        call = self._written if self.mode == "chat" else self._drawn
        yield places, call([asked[i] for i in places], [given[i] for i in places], seeds, told)

  def _written(
    self, asked: Sequence[Asked], talks: Sequence[Any], seeds: list[int], told: Mapping[str, Any]
  ) -> list[Reply]:
    answers = self.model.chat(list(talks), seeds, batch=self.batch, **told)
    replies = []
    for each, answer in zip(asked, answers, strict=True):
      text = answer.text
      if answer.pictures:
        text = self._saved(each, answer.text, answer.pictures)
      replies.append(Reply(text, answer.prompt_tokens, answer.tokens))
    return replies

  def _drawn(
    self, asked: Sequence[Asked], given: Sequence[Any], seeds: list[int], told: Mapping[str, Any]
  ) -> list[Reply]:
    texts, shown = [text for text, _ in given], [image for _, image in given]
    if self.mode == "edit":
      made = self.model.edit(shown, texts, seeds, batch=self.batch, **told)
    else:
      more = {"images": shown} if any(image is not None for image in shown) else {}
      made = self.model.generate(texts, seeds, batch=self.batch, **more, **told)
    return [Reply(self._saved(a, "", [picture])) for a, picture in zip(asked, made, strict=True)]

  def _saved(self, asked: Asked, text: str, made: Sequence[Any]) -> str:
    """Writes pictures, and returns lmms-eval's JSON of their absolute paths."""
    paths = []
    for i, picture in enumerate(made):
      path = self.output / f"{asked.name}{f'_{i}' if len(made) > 1 else ''}.png"
      paths.append(str(picture.save(path).absolute()))
    return json.dumps({"text": text, "images": paths}, ensure_ascii=False)

  # Questions ------------------------------------------------------------------------------------

  def _options(self, asked: Asked) -> dict[str, Any]:
    """Options of the model's verb, and `seed` where the task says one."""
    told = {k: v for k, v in asked.options.items() if v is not None and k not in FREE}
    task = asked.place[0]
    try:
      if self.mode == "chat":
        found = _of_text(told)
      else:
        left = {name: value for name, value in told.items() if name not in OF_TEXT}
        found = _of_pictures(left)
      known = self.model.options(self.mode)
      if odd := [name for name in found if name != "seed" and name not in known]:
        raise ValueError(f"{odd[0]}: {self.model.name} has it not; it has {', '.join(known)}")
    except ValueError as error:
      raise ValueError(f"task {task}: generation_kwargs: {error}") from None
    first = {"length": LENGTH, "temperature": 0.0} if self.mode == "chat" else {}
    return {**first, **self.given, **found}

  def _messages(self, asked: Asked) -> Any:
    """Messages as the model's `chat` takes them; else (text, picture or None)."""
    where = f"task {asked.place[0]}, document {asked.place[2]}"
    talk = [{"role": m["role"], "content": _content(m["content"], where)} for m in asked.messages]
    if self.mode == "chat":
      return talk
    if len(talk) != 1 or talk[0]["role"] != "user":
      raise ValueError(f"{where}: {len(talk)} messages; mode={self.mode} takes one of the user")
    content = talk[0]["content"]
    text = "\n".join(part["text"] for part in content if part["type"] == "text").strip()
    shown = [part["image"] for part in content if part["type"] == "image"]
    least = 1 if self.mode == "edit" else 0
    if not text or not least <= len(shown) <= 1:
      raise ValueError(
        f"{where}: {len(shown)} pictures and the text {text[:40]!r}; mode={self.mode} takes a text "
        f"and {'a picture' if least else 'at most one picture'}"
      )
    return text, _opened(shown[0], where) if shown else None


def _content(content: Any, where: str) -> list[dict[str, Any]]:
  """Parts of a message, in this package's form."""
  parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
  found = []
  for part in parts:
    kind = part["type"]
    if kind not in ("text", "image"):
      raise ValueError(f"{where}: shows {kind}; the model reads text and pictures")
    found.append(
      {"type": "text", "text": part["text"]}
      if kind == "text"
      else {"type": "image", "image": part["url"]}
    )
  return found


def _opened(shown: Any, where: str) -> Any:
  """A picture of PIL as RGB, from one or from a file."""
  if isinstance(shown, str | Path):
    if not Path(shown).is_file():
      raise ValueError(f"{where}: {str(shown)[:80]}: no such file of a picture")
    return images.decode(Path(shown).read_bytes(), str(shown))
  return images.rgb(shown, where)


def _seed(base: int, place: tuple[str, str, Any, int]) -> int:
  _, _, document, again = place
  if not isinstance(document, int):
    raise ValueError(f"document {document!r}: expected its number")
  return base + document + again * AGAIN


def _of_text(told: Mapping[str, Any]) -> dict[str, Any]:
  """Options of `chat` for those of a task; what is not honoured is refused by name."""
  left = dict(told)
  found: dict[str, Any] = {}
  if left.pop("num_beams", 1) != 1:
    raise ValueError(f"num_beams {told['num_beams']}: beams are not searched; expected 1")
  if "max_new_tokens" in left:
    found["length"] = left.pop("max_new_tokens")
  stops: list[str] = []
  for name in ("until", "stop_sequences"):
    value = left.pop(name, ())
    stops += [value] if isinstance(value, str) else list(value)
  if stops := [text for text in stops if text]:
    found["stop"] = stops
  # As transformers: nothing is drawn unless sampling is asked for, and then from all of it.
  says = "temperature" in left or "do_sample" in left
  temperature = left.pop("temperature", None)
  sampled = left.pop("do_sample", bool(temperature)) and temperature != 0
  if says:
    found["temperature"] = (1.0 if temperature is None else temperature) if sampled else 0.0
  for name in ("top_p", "top_k"):
    value = left.pop(name, None)
    if value is not None and (sampled or not says):
      found[name] = value
  for name in ("repetition_penalty", "max_pixels", "seed"):
    if name in left:
      found[name] = left.pop(name)
  if left:
    raise ValueError(f"{min(left)} {left[min(left)]!r}: not known to this package")
  return found


def _of_pictures(told: Mapping[str, Any]) -> dict[str, Any]:
  """Options of `generate` and `edit` for those of a task; the rest is refused by name."""
  left = dict(told)
  found = {OF_PICTURES[name]: left.pop(name) for name in list(left) if name in OF_PICTURES}
  if "seed" in left:
    found["seed"] = left.pop("seed")
  if {"height", "width"} <= left.keys():
    found["size"] = (left.pop("height"), left.pop("width"))
  if left:
    raise ValueError(f"{min(left)} {left[min(left)]!r}: not known to this package")
  return found
