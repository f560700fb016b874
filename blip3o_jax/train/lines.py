"""JSON lines of a run, gone on with: what a crash or a disk left damaged is set aside, not lost."""

import json
import os
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from blip3o_jax import files


def keep(path: epath.PathLike, start: int) -> None:
  """Drops the lines of later steps than `start`, and puts damaged ones into `NAME.damaged`.

  The file is whole at any time; nothing happens where there is none.
  """
  file = Path(os.fspath(path))
  if not file.exists():
    return
  kept, damaged = [], []
  for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
    if not line.strip():
      continue
    found = _objects(line)
    if found is None:
      damaged.append((number, line))
    else:
      kept += [json.dumps(each) for each in found if each["step"] <= start]
  if damaged:
    aside = file.with_name(f"{file.name}.damaged")
    with aside.open("ab") as out:
      out.writelines(line + b"\n" for _, line in damaged)
    text = "%s:%d: not a line of JSON with a step (%d such lines in all); set aside in %s"
    logging.warning(text, file, damaged[0][0], len(damaged), aside)
  files.write_text(file, "".join(f"{line}\n" for line in kept))


def _objects(line: bytes) -> list[dict[str, Any]] | None:
  """The objects of a line, of which several may have run together; None for a damaged one."""
  out, at, decoder = [], 0, json.JSONDecoder()
  try:
    text = line.decode().strip()
    while at < len(text):
      found, at = decoder.raw_decode(text, at)
      if not isinstance(found, dict) or type(found.get("step")) is not int:
        return None
      out.append(found)
      at += len(text[at:]) - len(text[at:].lstrip())
  except ValueError:
    return None
  return out
