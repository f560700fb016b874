"""The manifest of a folder of pictures: a line of JSON for each, from several processes.

Each process appends to a file of its own in `manifest/`, and at its end puts all of them together
in manifest.jsonl. Nobody waits for anybody: whoever ends last has seen everything.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import os
from pathlib import Path
from typing import Any

from blip3o_jax import files

PARTS, WHOLE = "manifest", "manifest.jsonl"


class Manifest:
  """The part that one process writes.

  Args:
    output: the folder of the pictures, which is there. process, processes: whose part it is.
  """

  def __init__(self, output: Path, process: int, processes: int):
    self._output = output
    self._path = output / PARTS / f"{process}-of-{processes}.jsonl"
    self._path.parent.mkdir(exist_ok=True)
    _mend(self._path)

  def known(self) -> set[str]:
    """The files that some process has a line of."""
    return {line["file"] for path in _parts(self._output) for line in _lines(path)}

  def add(self, line: Mapping[str, Any]) -> None:
    """Appends a line, by one write."""
    data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
    handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
      if os.write(handle, data) != len(data):
        _mend(self._path)
        raise OSError(f"{self._path}: a line could not be written whole; is the disk full?")
    finally:
      os.close(handle)

  def merge(self) -> Path:
    """Writes what all parts say, the last line of each file, in the order of the files' names."""
    target = self._output / WHOLE
    while True:
      before = _sizes(self._output)
      found = {line["file"]: line for path in _parts(self._output) for line in _lines(path)}
      text = "".join(f"{json.dumps(found[name], ensure_ascii=False)}\n" for name in sorted(found))
      with files.replacing(target, shared=True) as partial:
        partial.write_text(text, encoding="utf-8")
      # Another process may have added lines, and put its own together before this one did.
      if _sizes(self._output) == before:
        return target


def read(output: Path) -> list[dict[str, Any]]:
  """The lines of a folder's manifest; of none, []."""
  return list(_lines(output / WHOLE))


def begun(output: Path) -> bool:
  """Whether any process has drawn something there."""
  return any(_sizes(output).values())


def _parts(output: Path) -> list[Path]:
  return sorted((output / PARTS).glob("*-of-*.jsonl"))


def _sizes(output: Path) -> dict[str, int]:
  return {path.name: path.stat().st_size for path in _parts(output)}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
  """The whole lines; a last one without its end is being written, or was when its process died."""
  if not path.is_file():
    return
  *whole, _ = path.read_bytes().split(b"\n")
  for number, line in enumerate(whole, 1):
    try:
      value = json.loads(line)
    except ValueError:
      value = None
    if not isinstance(value, dict) or not isinstance(value.get("file"), str):
      raise ValueError(f"{path}, line {number}: no line of a manifest; remove it to go on")
    yield value


def _mend(path: Path) -> None:
  """Cuts off the beginning of a line that a killed process left."""
  if not path.is_file():
    return
  data = path.read_bytes()
  whole = data.rfind(b"\n") + 1
  if whole != len(data):
    os.truncate(path, whole)
