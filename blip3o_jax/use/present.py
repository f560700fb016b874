"""What a folder of pictures holds already: drawn before, something else, or left by the killed."""

from collections.abc import Iterable
from collections.abc import Mapping
import json
from pathlib import Path
import re
from typing import Any
import uuid

from blip3o_jax import files
from blip3o_jax.use import picture
from blip3o_jax.use.job import Job

SETTINGS = "settings.json"
# Fields that may differ between calls that draw the same.
FREE = ("model", "version", "commit", "files")
# Those that a picture has only where they say something.
ABSENT = ("image_sha256", "friendly", "max_pixels")


def writable(output: Path) -> None:
  """Makes the folder, and raises OSError in one line where nothing can be written to it."""
  if output.is_file():
    raise OSError(f"{output}: is a file; name a folder")
  probe = output / f".{uuid.uuid4().hex[:12]}.partial"
  try:
    output.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise OSError(f"{output}: {error.strerror}; nothing was drawn") from None


def metadata(output: Path, job: Job) -> dict[str, Any]:
  if job.sidecar:
    return files.read_json(output / job.sidecar)
  return picture.read(output / job.file)


def is_there(output: Path, job: Job, asked: Mapping[str, Any]) -> bool:
  """Whether a job's picture is there.

  Raises:
    ValueError: the file is there, and is not what is asked for.
  """
  path = output / job.file
  if not path.is_file():
    return False
  try:
    found = metadata(output, job)
  except (ValueError, OSError) as error:
    raise ValueError(f"{path} is there, but not from this package: {error}") from None
  wanted = {**dict.fromkeys(ABSENT), **asked, **job.metadata}
  for name, value in wanted.items():
    if name not in FREE and found.get(name) != value:
      raise ValueError(
        f"{path} is there with another {name}: {_short(found.get(name))}, and {_short(value)} is "
        "asked for; name another folder, or remove it"
      )
  return True


def same_settings(output: Path, asked: Mapping[str, Any]) -> None:
  """Raises ValueError where settings.json of the folder says that it is about something else."""
  path = output / SETTINGS
  if not path.is_file():
    return
  found = files.read_json(path)
  for name, value in json.loads(json.dumps(asked, default=str)).items():
    if name not in FREE and name in found and found[name] != value:
      raise ValueError(
        f"{path}: the folder has another {name}: {_short(found[name])}, and {_short(value)} is "
        "asked for; name another folder"
      )


def sweep(output: Path, mine: Iterable[Job]) -> None:
  """Removes what a killed process left of the files that are this process's own."""
  names = {output / job.file for job in mine} | {
    output / job.sidecar for job in mine if job.sidecar
  }
  for folder in {path.parent for path in names}:
    for path in folder.glob(".*.partial") if folder.is_dir() else ():
      found = re.fullmatch(r"\.(.+)\.[0-9a-f]{12}\.partial", path.name)
      if found and folder / found[1] in names:
        path.unlink(missing_ok=True)


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 80 else f"{text[:77]}..."
