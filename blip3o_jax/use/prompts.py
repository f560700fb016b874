"""A file of prompts as jobs: a picture a line, or several."""

from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from blip3o_jax.data import prompt_files
from blip3o_jax.data.prompt_files import Row
from blip3o_jax.use.job import Job

MOST = 2**64 - 1
PROMPTS = ("prompt", "Prompt", "caption", "text")


def jobs(
  path: Path,
  *,
  seed: int = 0,
  number: int = 1,
  shown: Callable[[], Image.Image] | None = None,
  image: Mapping[str, Any] | None = None,
) -> list[Job]:
  """The jobs of a file: text, JSONL, JSON, or the metadata that GenEval publishes.

  A row's `prompt` is drawn, its `seed` is that of its first picture, its `name` that of its file.
  Without a seed, picture i of the whole file has `seed` + i; without a name, a file is called by
  its row's number from 0: 00000.png, of several pictures 00000-0.png, 00000-1.png, ... What else
  a row has is kept with its pictures.

  Args:
    number: pictures of each row. shown: gives a picture that the model sees before each prompt.
    image: what the metadata says of it, see `Job`.

  Raises:
    FileNotFoundError, ValueError: a file or a row that is not as it should be, by its line.
  """
  rows = prompt_files.read(path)
  digits = max(5, len(str(len(rows) - 1)))
  found: list[Job] = []
  names: dict[str, str] = {}
  for index, row in enumerate(rows):
    prompt = row.text(*PROMPTS)
    name = _name(row) or f"{index:0{digits}d}"
    if name.lower() in names:
      raise ValueError(f"{row.where}: the name {name!r} stands at {names[name.lower()]} too")
    names[name.lower()] = row.where
    first = _seed(row, seed + index * number, number)
    own = ("seed", "name", *PROMPTS)
    rest = {key: value for key, value in row.fields.items() if key not in own}
    about = {"row": rest} if rest else {}
    for i in range(number):
      file = f"{name}.png" if number == 1 else f"{name}-{i}.png"
      found.append(Job(file, prompt, (first + i,), shown, about, image=image or {}))
  return found


def _name(row: Row) -> str:
  """The name of a row's file without its ending; "" where it has none."""
  value: Any = row.fields.get("name")
  if value is None:
    return ""
  text = str(value).removesuffix(".png") if isinstance(value, str | int) else ""
  odd = {"", ".", ".."} & set(text.split("/"))
  if not text.strip() or odd or "\\" in text or not text.isprintable():
    raise ValueError(f"{row.where}: name is {value!r}; expected that of a file below the output")
  return text


def _seed(row: Row, otherwise: int, number: int) -> int:
  value = row.fields.get("seed")
  if isinstance(value, str) and value.isdigit():  # as CSV has it
    value = int(value)
  value = otherwise if value is None or value == "" else value
  if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST - number + 1:
    raise ValueError(f"{row.where}: seed is {value!r}; expected a whole number from 0 to 2**64 - 1")
  return value
